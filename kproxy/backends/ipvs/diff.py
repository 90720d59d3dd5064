"""The smallest change from what the kernel holds to what IPVS mode wants. Pure.

Virtual servers are edited where they stand: connections know them by identity. An endpoint of a TCP
service that goes is *let go*: it takes no new connection, and those that it has end by themselves
(:mod:`kproxy.backends.ipvs.drain`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from ipaddress import ip_address, ip_network

from kproxy.backends.ipvs import sets
from kproxy.backends.ipvs.held import FULL_PREFIX, TCP, Held, wanted_sets
from kproxy.backends.ipvs.plan import Virtual
from kproxy.backends.ipvs.render import Desired
from kproxy.backends.xtables import ruleset
from kproxy.backends.xtables.ruleset import RulesPatch
from kproxy.core.objects import PortName, Value
from kproxy.core.servers import MASQUERADE, HeldServer, Order, Timeouts, Verb
from kproxy.core.snapshot import IpvsSettings

#: (server key, real key)
Leaving = tuple[bytes, bytes]


class SetChange(Value, frozen=True, eq=False):
    """What becomes of one set, by its name in the kernel. ``make``: it is not there yet."""

    name: str
    kind: str
    make: bool = False
    added: AbstractSet[bytes] = frozenset()
    gone: AbstractSet[bytes] = frozenset()


class Patch(Value, frozen=True, eq=False):
    """A change, in the order in which it is made: sets and members that come, rules, ``orders``
    about servers (with ``let_go`` at weight 0), ``bound`` addresses; before the orders that take
    servers away (``removals``), addresses that go (``unbound``); members that go come last.

    ``sysctls`` are to be set, ``timeouts`` as well (0: leave). ``full``: the kernel was read for
    this; ``first``: it held no server.
    """

    desired: Desired
    full: bool
    first: bool = False
    sets: tuple[SetChange, ...] = ()
    rules: RulesPatch | None = None
    orders: tuple[Order, ...] = ()
    let_go: tuple[Leaving, ...] = ()
    removals: tuple[Order, ...] = ()
    bound: AbstractSet[str] = frozenset()
    unbound: AbstractSet[str] = frozenset()
    #: There is no dummy device.
    device: bool = False
    sysctls: tuple[tuple[str, str], ...] = ()
    timeouts: Timeouts | None = None
    #: Server key -> whose it was, for servers that nobody wants any more.
    former: Mapping[bytes, PortName] = {}

    def __bool__(self) -> bool:
        return bool(
            self.sets
            or self.rules
            or self.orders
            or self.let_go
            or self.removals
            or self.bound
            or self.unbound
            or self.device
            or self.sysctls
            or self.timeouts
        )

    def ports(self) -> Iterator[PortName]:
        """The service ports of which something is written, each once."""
        wanted = self.desired.servers
        keys = [order.server for order in self.orders] + [server for server, _ in self.let_go]
        names = {wanted[key][1]: None for key in keys if key in wanted}
        # A member or an address alone: who has it is not kept, all that have some are asked.
        added = {(change.name, one) for change in self.sets for one in change.added}
        if added or self.bound:
            family = self.desired.context.family
            for name, block in self.desired.blocks.items():
                if name not in names and (
                    not self.bound.isdisjoint(block.addresses)
                    or any(
                        (sets.in_family(of, family), member) in added
                        for of, members in block.members.items()
                        for member in members
                    )
                ):
                    names[name] = None
        yield from names

    def owner(self, server: bytes) -> PortName | None:
        """The service port whose virtual server this is, or was."""
        wanted = self.desired.servers.get(server)
        return wanted[1] if wanted is not None else self.former.get(server)

    def owners_of_member(self, name: str, member: bytes) -> tuple[PortName, ...]:
        """The service ports that have a member in a set (by its name in the kernel)."""
        family = self.desired.context.family
        return tuple(
            port
            for port, block in self.desired.blocks.items()
            if any(
                member in members
                for of, members in block.members.items()
                if sets.in_family(of, family) == name
            )
        )

    def owners_of_address(self, address: str) -> tuple[PortName, ...]:
        """The service ports that need an address on the dummy device."""
        return tuple(
            port for port, block in self.desired.blocks.items() if address in block.addresses
        )


def diff(desired: Desired, actual: Held) -> Patch | None:
    """None when the kernel is as it should be."""
    believed = actual.desired
    if believed is not None and desired is believed:
        return None
    follows = believed is not None and desired.follows(believed)
    if believed is not None and follows:
        return _from_believed(desired, believed) or None
    return _from_held(desired, actual) or None


# --- what is believed --------------------------------------------------------------------------


def _from_believed(desired: Desired, before: Desired) -> Patch:
    """After a good sync: work for the service ports that the Snapshot names."""
    snapshot = desired.snapshot
    touched: dict[bytes, None] = {}
    for name in (*sorted(snapshot.changed), *sorted(snapshot.removed)):
        for blocks in (before.blocks, desired.blocks):
            if name in blocks:
                touched.update(dict.fromkeys(blocks[name].servers))
    work = _Work()
    former = {}
    for key in touched:
        new, old = desired.servers.get(key), before.servers.get(key)
        if new is None and old is not None:
            former[key] = old[1]
        work.between(key, new and new[0], old and old[0])
    bound, unbound = desired.addresses.since(before.addresses)
    return Patch(
        desired,
        full=False,
        sets=_member_changes(desired, *desired.members.since(before.members)),
        orders=tuple(work.orders),
        let_go=tuple(work.let_go),
        removals=tuple(work.removals),
        bound=bound,
        unbound=unbound,
        former=former,
    )


def _member_changes(
    desired: Desired,
    added: Iterable[tuple[str, bytes]],
    gone: Iterable[tuple[str, bytes]],
) -> tuple[SetChange, ...]:
    come: dict[str, set[bytes]] = {}
    go: dict[str, set[bytes]] = {}
    for by_name, members in ((come, added), (go, gone)):
        for name, member in members:
            by_name.setdefault(name, set()).add(member)
    family = desired.context.family
    return tuple(
        SetChange(
            sets.in_family(name, family),
            kind,
            added=come.get(name, frozenset()),
            gone=go.get(name, frozenset()),
        )
        for name, kind in sets.KINDS.items()
        if name in come or name in go
    )


# --- what was read, or is believed of another context --------------------------------------------


def _from_held(desired: Desired, actual: Held) -> Patch:
    """Everything is compared."""
    settings, family = desired.snapshot.settings.ipvs, desired.context.family
    work, held = _Work(), actual.servers
    for key, (virtual, _) in desired.servers.items():
        work.from_held(key, virtual, held.get(key), FULL_PREFIX[family])
    believed = actual.desired
    for key in held.keys() - desired.servers.keys():
        if believed is not None or not excluded(key, settings):
            work.removals.append(Order(Verb.REMOVE_SERVER, key))
    addresses, bound = desired.addresses.all, actual.addresses
    known = believed is not None
    changed = desired.sysctls - (believed.sysctls if believed else set(actual.sysctls.items()))
    return Patch(
        desired,
        full=not known,
        first=not known and not held,
        sets=tuple(_set_changes(desired, actual)),
        rules=ruleset.diff(desired.rules, actual.rules),
        orders=tuple(work.orders),
        let_go=tuple(work.let_go),
        removals=tuple(work.removals),
        bound=addresses - (bound or frozenset()),
        unbound=(bound or frozenset()) - addresses,
        device=bound is None,
        sysctls=tuple(sorted(changed)),
        timeouts=_timeouts(settings, actual),
        former={key: name for key, (_, name) in believed.servers.items()} if believed else {},
    )


def _set_changes(desired: Desired, actual: Held) -> Iterator[SetChange]:
    kinds = sets.kinds(desired.context.family)
    for name, members in wanted_sets(desired).items():
        held = actual.sets.get(name)
        if held is None:
            yield SetChange(name, kinds[name], make=True, added=members)
        elif held != members:
            yield SetChange(name, kinds[name], added=members - held, gone=held - members)


def excluded(server: bytes, settings: IpvsSettings) -> bool:
    """Whether a virtual server that is not wanted is somebody else's, as the operator says."""
    address = ip_address(server[:-3])
    return any(address in ip_network(text) for text in settings.exclude_cidrs)


def leaving(desired: Desired, actual: Held) -> Iterator[Leaving]:
    """Real servers that the kernel holds at weight 0 and that nobody wants: they drain."""
    for key, (virtual, _) in desired.servers.items():
        held = actual.servers.get(key)
        if held is not None and key[-1] == TCP:
            for real, state in held.reals.items():
                if not state.weight and real not in virtual.reals:
                    yield key, real


def _timeouts(settings: IpvsSettings, actual: Held) -> Timeouts | None:
    wanted = _asked(settings)
    if actual.desired is not None:
        held: Timeouts | None = _asked(actual.desired.snapshot.settings.ipvs)
    else:
        held = actual.timeouts
    differs = [
        value and (held is None or value != held[index]) for index, value in enumerate(wanted)
    ]
    return wanted if any(differs) else None


def _asked(settings: IpvsSettings) -> Timeouts:
    return Timeouts(settings.tcp_timeout, settings.tcp_fin_timeout, settings.udp_timeout)


class _Work:
    """Collects what is done to servers: first virtual ones, each followed by its real ones."""

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.let_go: list[Leaving] = []
        self.removals: list[Order] = []

    def between(self, key: bytes, new: Virtual | None, old: Virtual | None) -> None:
        """From what is believed: weights and forwarding are as they were to be."""
        if new is None:
            if old is not None:
                self.removals.append(Order(Verb.REMOVE_SERVER, key))
            return
        if old is None:
            self._add(key, new)
            return
        if new.scheduling != old.scheduling:
            self.orders.append(Order(Verb.SET_SERVER, key, scheduling=new.scheduling))
        if (new.reals, new.weights) != (old.reals, old.weights):
            there = dict(old.weighed)
            self._come(key, [each for each in new.weighed if each[0] not in there])
            for real, weight in new.weighed:
                if there.get(real, weight) != weight:
                    self.orders.append(Order(Verb.SET_REAL, key, real, weight))
            for real in there.keys() - new.reals:
                self._go(key, real)

    def from_held(self, key: bytes, new: Virtual, held: HeldServer | None, prefix: int) -> None:
        """From what was read: every attribute counts."""
        if held is None:
            self._add(key, new)
            return
        if (held.scheduling, held.prefix) != (new.scheduling, prefix):
            self.orders.append(Order(Verb.SET_SERVER, key, scheduling=new.scheduling))
        self._come(key, [each for each in new.weighed if each[0] not in held.reals])
        for real, weight in new.weighed:
            known = held.reals.get(real)
            if known is not None and (known.weight, known.forwarding) != (weight, MASQUERADE):
                self.orders.append(Order(Verb.SET_REAL, key, real, weight))
        for real in held.reals.keys() - new.reals:
            if held.reals[real].weight or key[-1] != TCP:
                self._go(key, real)

    def _add(self, key: bytes, new: Virtual) -> None:
        self.orders.append(Order(Verb.ADD_SERVER, key, scheduling=new.scheduling))
        self._come(key, new.weighed)

    def _come(self, key: bytes, reals: Iterable[tuple[bytes, int]]) -> None:
        self.orders += [Order(Verb.ADD_REAL, key, real, weight) for real, weight in reals]

    def _go(self, key: bytes, real: bytes) -> None:
        """UDP and SCTP have nothing to wait for: what is gone cannot answer."""
        if key[-1] == TCP:
            self.let_go.append((key, real))
        else:
            self.orders.append(Order(Verb.REMOVE_REAL, key, real))
