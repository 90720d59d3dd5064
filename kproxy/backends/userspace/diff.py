"""What has to be done in userspace mode: for the relay now, for rules as soon as ports stand. Pure.

Rules name relay ports, which are known when sockets stand: a patch says what the relay is told and
whose rules may differ, and :func:`lines_between` or :func:`rules_between` make lines of it then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet

from msgspec.structs import replace

from kproxy.backends.userspace.chains import PLACES, RELAY_GUARD
from kproxy.backends.userspace.held import (
    Held,
    Relaying,
    Rows,
    guard_in,
    lines_in,
    place_of,
    rows_of,
    wanted_of,
)
from kproxy.backends.userspace.plan import NodePort, Service
from kproxy.backends.userspace.render import Block, Desired
from kproxy.backends.xtables.found import Found, jump_change
from kproxy.backends.xtables.layout import Place
from kproxy.backends.xtables.localnet import KUBELET_FIREWALL
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.saved import Line
from kproxy.backends.xtables.script import Call, deleted, flushes, on_top, section
from kproxy.core.objects import PortName, Value

#: With more lines than this to be deleted from a chain it is written anew: the tools look for each
#: one from the chain's beginning.
MOST_DELETIONS = 200


class Patch(Value, frozen=True, eq=False):
    """A change. ``put`` services the relay serves from now on as they say, ``drop`` it no longer
    serves; node ports to ``hold`` and to ``release``; ``sysctls`` to set, once the ``guard``
    stands. ``sources``: other addresses to connect from, None: those that it has. ``names``: the
    service ports of which rules may differ, when not all were compared. ``read``: what the kernel
    held, when it was read for this."""

    desired: Desired
    put: tuple[Service, ...] = ()
    drop: tuple[PortName, ...] = ()
    hold: tuple[NodePort, ...] = ()
    release: tuple[NodePort, ...] = ()
    names: tuple[PortName, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    guard: tuple[str, ...] = ()
    sources: tuple[str, ...] | None = None
    read: Held | None = None

    def __bool__(self) -> bool:
        """Whether there is something to do besides what reading may have found in the rules."""
        relay = self.put or self.drop or self.hold or self.release
        other = self.names or self.sysctls or self.guard or self.sources is not None
        return bool(relay or other)

    @property
    def full(self) -> bool:
        """Whether everything was compared."""
        return self.read is not None

    def ports(self) -> Iterator[PortName]:
        """The service ports of which something is written."""
        if self.read is None:
            yield from dict.fromkeys((*(service.name for service in self.put), *self.names))
        else:
            yield from self.desired.blocks


def diff(desired: Desired, actual: Held) -> Patch | None:
    """None when all is as it should be."""
    believed = actual.desired
    if believed is None:
        return _from_read(desired, actual)
    return None if believed is desired else _from_believed(desired, believed)


def _from_believed(desired: Desired, before: Desired) -> Patch | None:
    """After a good sync: work for the service ports that differ."""
    put: list[Service] = []
    drop: list[PortName] = []
    names: dict[PortName, None] = {}
    held: set[NodePort | None] = set()
    free: set[NodePort | None] = set()
    for name in _differing(desired, before):
        new, old = desired.blocks.get(name), before.blocks.get(name)
        now, then = _service(new), _service(old)
        if _served(now) and now is not None and now != then:
            put.append(now)
            names[name] = None
        elif _served(then) and not _served(now):
            drop.append(name)
        if _node_port(new) != _node_port(old):
            held.add(_node_port(new))
            free.add(_node_port(old))
        if new is None or old is None or not new.same_rules(old):
            names[name] = None
    # One that goes from one service to another stays held.
    patch = Patch(
        desired,
        put=tuple(put),
        drop=tuple(drop),
        hold=_sorted(held - free),
        release=_sorted(free - held),
        names=tuple(names),
        sysctls=tuple(sorted(desired.sysctls - before.sysctls)),
        guard=tuple([row for row in desired.guard if row not in before.guard]),
        sources=None if desired.sources == before.sources else desired.sources,
    )
    return patch or None


def _differing(desired: Desired, before: Desired) -> Iterable[PortName]:
    if desired.follows(before):
        return sorted(desired.snapshot.changed | desired.snapshot.removed)
    blocks, old = desired.blocks, before.blocks
    return [name for name in {**blocks, **old} if blocks.get(name) is not old.get(name)]


def _service(block: Block | None) -> Service | None:
    return block.service if block is not None else None


def _served(service: Service | None) -> bool:
    return service is not None and bool(service.uses)


def _node_port(block: Block | None) -> NodePort | None:
    return block.node_port if block is not None else None


def _sorted(ports: AbstractSet[NodePort | None]) -> tuple[NodePort, ...]:
    found = [port for port in ports if port is not None]
    return tuple(sorted(found, key=lambda port: (port.port, port.udp, port.addresses)))


def _from_read(desired: Desired, actual: Held) -> Patch | None:
    """Everything is compared."""
    relaying = actual.relaying
    services, ports = wanted_of(desired, relaying)
    serving = relaying.serving
    patch = Patch(
        desired,
        put=tuple(
            desired.blocks[name].service or service
            for name, service in services.items()
            if name not in serving or serving[name].service != service
        ),
        drop=tuple(sorted(serving.keys() - services.keys())),
        hold=_sorted(ports - relaying.held),
        release=_sorted(relaying.held - ports),
        sysctls=tuple(sorted(desired.sysctls - set(actual.sysctls.items()))),
        sources=None if desired.sources == relaying.sources else desired.sources,
        read=actual,
    )
    return patch if patch or rules_between(desired, relaying, actual.rules) else None


# --- rules, when it is known where they lead -----------------------------------------------------


class RulesPatch(Value, frozen=True):
    """``written``: chains made or emptied, and then filled; ``added`` and ``deleted``: single
    lines of others. ``anew``: chains of filter that lose so many lines that they are emptied and
    filled, when what has to come is there (it is in ``added`` too). ``surplus`` lines of base
    chains go before ``jumps`` are put at their top. ``guard`` lines are added to the chain shared
    with the kubelet (``declare_guard``: it has to be made)."""

    written: tuple[tuple[Place, tuple[str, ...]], ...] = ()
    added: tuple[Line, ...] = ()
    deleted: tuple[Line, ...] = ()
    anew: tuple[tuple[Place, tuple[str, ...]], ...] = ()
    jumps: tuple[Line, ...] = ()
    surplus: tuple[Line, ...] = ()
    guard: tuple[str, ...] = ()
    declare_guard: bool = False

    def __bool__(self) -> bool:
        lines = self.written or self.added or self.deleted or self.anew or self.guard
        return bool(lines or self.jumps or self.surplus or self.declare_guard)


def rules_between(desired: Desired, relaying: Relaying, found: Found) -> RulesPatch:
    """From what was found to what ``desired`` needs with the relay as it is."""
    written, added, deleted, anew = [], [], [], []
    for place, rows in rows_of(desired.blocks.values(), relaying).items():
        there = lines_in(found, place)
        if there is None:
            written.append((place, tuple(rows)))
            continue
        held = Counter(there)
        # What stands twice is taken away once.
        surplus = list((held - Counter(list(rows))).elements())
        many = len(surplus) > MOST_DELETIONS
        if many and place[0] is Table.NAT:
            written.append((place, tuple(rows)))
            continue
        added += [(place[0], row) for row in rows if row not in held]
        if many:
            anew.append((place, tuple(rows)))
            continue
        deleted += [(place[0], row) for row in surplus]
    jumps, others = jump_change(desired.jumps, found.jumps)
    guard = guard_in(found)
    return RulesPatch(
        tuple(written),
        tuple(added),
        tuple(deleted),
        tuple(anew),
        jumps,
        others,
        guard=tuple([row for row in desired.guard if row not in (guard or ())]),
        declare_guard=guard is None,
    )


def lines_between(
    new: Mapping[PortName, Iterable[Line]],
    old: Mapping[PortName, Iterable[Line]],
    whole: Callable[[], Rows],
    guard: tuple[str, ...] = (),
) -> RulesPatch:
    """From the lines of some service ports to other ones; ``whole`` are those of all."""
    added, deleted = [], []
    for name in {**new, **old}:
        now, then = dict.fromkeys(new.get(name, ())), dict.fromkeys(old.get(name, ()))
        added += [line for line in now if line not in then]
        deleted += [line for line in then if line not in now]
    many = Counter(map(place_of, deleted))
    filled = {place for place, count in many.items() if count > MOST_DELETIONS}
    rows = whole() if filled else {}
    chains = [(place, tuple(rows[place])) for place in PLACES if place in filled]
    return RulesPatch(
        written=tuple([(place, lines) for place, lines in chains if place[0] is Table.NAT]),
        added=tuple(
            [line for line in added if line[0] is Table.FILTER or place_of(line) not in filled]
        ),
        deleted=tuple([line for line in deleted if place_of(line) not in filled]),
        anew=tuple([(place, lines) for place, lines in chains if place[0] is Table.FILTER]),
        guard=guard,
    )


def guards_last(patch: RulesPatch) -> tuple[RulesPatch, RulesPatch]:
    """In two: all but the guards that go, then these, for when what they guarded is closed."""
    guards = (Table.FILTER, RELAY_GUARD)
    return (
        replace(
            patch,
            deleted=tuple([line for line in patch.deleted if place_of(line) != guards]),
            anew=tuple([each for each in patch.anew if each[0] != guards]),
        ),
        RulesPatch(
            deleted=tuple([line for line in patch.deleted if place_of(line) == guards]),
            anew=tuple([each for each in patch.anew if each[0] == guards]),
        ),
    )


def guards_first(patch: RulesPatch) -> tuple[RulesPatch, RulesPatch]:
    """In two: what comes in filter, then the rest."""
    first, rest = (
        RulesPatch(
            written=tuple([(place, rows) for place, rows in patch.written if place[0] is table]),
            added=tuple([line for line in patch.added if line[0] is table]),
            jumps=tuple([line for line in patch.jumps if line[0] is table]),
            surplus=tuple([line for line in patch.surplus if line[0] is table]),
        )
        for table in (Table.FILTER, Table.NAT)
    )
    return (
        replace(first, guard=patch.guard, declare_guard=patch.declare_guard),
        replace(rest, deleted=patch.deleted, anew=patch.anew),
    )


def call(patch: RulesPatch) -> Call:
    """The restore tool's input, in an order that leaves nobody untreated: what filter refuses is
    refused before nat lets go of it, and no more only when nat has it."""
    yield from section(Table.FILTER, *_come(patch, Table.FILTER))
    yield from section(Table.NAT, *_come(patch, Table.NAT), deleted(patch.deleted, Table.NAT))
    yield from section(
        Table.FILTER, *_filled(patch.anew, Table.FILTER), deleted(patch.deleted, Table.FILTER)
    )


def _filled(
    chains: tuple[tuple[Place, tuple[str, ...]], ...], table: Table
) -> Iterator[Iterator[str]]:
    written = [(chain, rows) for (owner, chain), rows in chains if owner is table]
    yield flushes(chain for chain, _ in written)
    yield (f"{row}\n" for _, rows in written for row in rows)


def _come(patch: RulesPatch, table: Table) -> Iterator[Iterator[str]]:
    if table is Table.FILTER:
        yield flushes((KUBELET_FIREWALL,) if patch.declare_guard else ())
        yield (f"{row}\n" for row in patch.guard)
    yield from _filled(patch.written, table)
    yield (f"{row}\n" for owner, row in patch.added if owner is table)
    yield deleted(patch.surplus, table)
    yield on_top(patch.jumps, table)
