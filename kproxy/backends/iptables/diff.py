"""The smallest change from what the kernel holds to what it should hold. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from kproxy.backends.iptables import chains
from kproxy.backends.iptables.endpoint_set import SetChange, change
from kproxy.backends.iptables.fixed import wanted_sysctls
from kproxy.backends.iptables.held import Held
from kproxy.backends.iptables.render import Block, Desired, Place
from kproxy.backends.xtables.found import jump_change
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.saved import Line, chain_entries
from kproxy.core.objects import PortName, Value


class Part(Value, frozen=True, eq=False):
    """Chains of one service port that are to be written: ``only`` these, None: all of them."""

    block: Block
    only: frozenset[str] | None = None

    def chains(self) -> Iterable[tuple[str, str]]:
        for chain, text in self.block.chains.items():
            if self.only is None or chain in self.only:
                yield chain, text


class Patch(Value, frozen=True, eq=False):
    """A change, not yet text: see :mod:`kproxy.backends.iptables.script`.

    ``parts`` are services' chains to write, ``places`` fixed and dispatch chains to write,
    ``doomed`` chains of nat that nobody needs any more (``kept``: emptied only, since a foreign
    rule goes there), ``jumps`` lines for the top of base chains, ``surplus`` lines of theirs that
    go before, ``guard`` lines to add to the chain shared with the kubelet (``declare_guard``: it
    has to be made), ``members`` what becomes of the set of endpoints, ``sysctls`` to set. ``full``:
    the kernel was read for this; ``first``: it held no rule of any service. ``replaced``: entries
    of each table that chains had which are written or go.
    """

    desired: Desired
    full: bool
    first: bool = False
    parts: tuple[Part, ...] = ()
    places: tuple[Place, ...] = ()
    doomed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    jumps: tuple[Line, ...] = ()
    surplus: tuple[Line, ...] = ()
    guard: tuple[str, ...] = ()
    declare_guard: bool = False
    members: SetChange = SetChange()
    sysctls: tuple[tuple[str, str], ...] = ()
    replaced: Mapping[str, int] = {}

    def __bool__(self) -> bool:
        return self.rules or bool(self.members or self.sysctls)

    def ports(self) -> Iterator[PortName]:
        """The service ports of which something is written, each once. Those with lines in a chain
        that is written whole are among them: which of these lines are new is not known."""
        seen = {part.block.plan.name for part in self.parts}
        yield from (part.block.plan.name for part in self.parts)
        places = frozenset(self.places)
        for name, block in self.desired.blocks.items():
            if name not in seen and not places.isdisjoint(block.dispatch):
                yield name

    def owners(self, row: str) -> tuple[PortName, ...]:
        """The service ports whose rule or chain a line of restore text is about."""
        chain = row[1:].split(" ", 1)[0] if row.startswith(":") else "".join(row.split()[1:2])
        if chains.is_service_chain(chain):
            found = (part.block for part in self.parts if chain in part.block.chains)
        else:
            texts = ((block, block.dispatch.values()) for block in self.desired.blocks.values())
            line = f"{row}\n"
            found = (block for block, places in texts if any(line in text for text in places))
        return tuple(block.plan.name for block in found)

    @property
    def rules(self) -> bool:
        """Whether any rule or chain changes."""
        return bool(
            self.parts
            or self.places
            or self.doomed
            or self.kept
            or self.jumps
            or self.surplus
            or self.guard
            or self.declare_guard
        )


def diff(desired: Desired, actual: Held) -> Patch | None:
    """None when the kernel is as it should be."""
    believed = actual.desired
    if believed is not None:
        patch = _from_believed(desired, believed)
    else:
        patch = _from_read(desired, actual)
    return patch or None


def _from_believed(desired: Desired, before: Desired) -> Patch:
    """After a good sync: unchanged blocks are the same objects, so they cost nothing."""
    if desired is before:
        return Patch(desired, full=False)
    parts: list[Part] = []
    doomed: list[str] = []
    held: dict[str, str] = {}
    changed, removed = _differing(desired, before)
    for name in changed:
        block, old = desired.blocks[name], before.blocks.get(name)
        if old is block:
            continue
        if old is None:
            parts.append(Part(block))
            continue
        held.update(old.chains)
        parts += _part(block, old.chains)
        doomed += old.chains.keys() - block.chains.keys()
    for name in removed:
        if name in before.blocks:
            held.update(before.blocks[name].chains)
            doomed += before.blocks[name].chains
    places = [place for place in chains.FIXED if desired.fixed[place] != before.fixed[place]]
    if desired.dispatch is not before.dispatch:
        places += [
            place for place in chains.DISPATCH if desired.dispatch[place] != before.dispatch[place]
        ]
    return Patch(
        desired,
        full=False,
        parts=tuple(parts),
        places=tuple(places),
        doomed=tuple(sorted(doomed)),
        guard=tuple(row for row in desired.guard if row not in before.guard),
        members=_members_since(desired, before),
        sysctls=tuple(sorted(wanted_sysctls(desired.context) - wanted_sysctls(before.context))),
        replaced=_replaced(parts, doomed, held, {place: before.text_of(place) for place in places}),
    )


def _replaced(
    parts: Iterable[Part],
    gone: Iterable[str],
    nat: Mapping[str, str],
    places: Mapping[Place, str],
) -> Counter[str]:
    """``nat`` and ``places`` are the chains that are there, with their lines. Where none of a
    service is, no service's text has to be made for this."""
    counts: Counter[str] = Counter()
    written = (chain for part in parts for chain, _ in part.chains()) if nat else ()
    for chain in (*written, *gone):
        if chain in nat:
            counts[Table.NAT] += chain_entries(nat[chain].count("\n"))
    for (table, _), text in places.items():
        counts[table] += chain_entries(text.count("\n"))
    return counts


def _members_since(desired: Desired, before: Desired) -> SetChange:
    now, then = desired.members, before.members
    if now is not None and then is not None:
        added, gone = now.since(then)
        return SetChange(added=added, gone=gone)
    return SetChange() if now is then else change(desired.endpoints, before.endpoints)


def _differing(desired: Desired, before: Desired) -> tuple[Iterable[PortName], Iterable[PortName]]:
    """Service ports that may have changed, and those that are gone: those that the Snapshot names
    when it follows the one that is in force, else all that there are."""
    snapshot = desired.snapshot
    follows = snapshot.base is not None and snapshot.base == before.snapshot.generation
    if follows and desired.context == before.context:
        # In the order of all blocks: equal changes give equal text.
        return sorted(snapshot.changed), snapshot.removed
    return desired.blocks, before.blocks.keys() - desired.blocks.keys()


def _part(block: Block, held: Mapping[str, str]) -> list[Part]:
    """The chains of a block that are not held as they should be."""
    stale = frozenset(chain for chain, text in block.chains.items() if held.get(chain) != text)
    return [Part(block, stale)] if stale else []


def _from_read(desired: Desired, actual: Held) -> Patch:
    """Against what was read: everything is compared."""
    tables = actual.tables
    nat = tables.get(Table.NAT, {})
    present = {chain for chain in nat if chains.is_service_chain(chain)}
    services = bool(present)
    parts: list[Part] = []
    first = not any(nat[chain] for chain in present)
    if not services:
        # Nothing to compare with: the text is made while it streams into the tool.
        parts += [Part(block) for block in desired.blocks.values() if block.has_chains]
    else:
        for block in desired.blocks.values():
            parts += _part(block, nat)
            present.difference_update(block.chains)
    jumps, surplus = jump_change(desired.jumps, actual.jumps)
    shared = actual.guard
    pinned = {chain for table, chain in actual.pinned if table is Table.NAT} & present
    sysctls = wanted_sysctls(desired.context) - set(actual.sysctls.items())
    places = tuple(_stale_places(desired, tables))
    doomed = tuple(sorted(present - pinned))
    kept = tuple(sorted(chain for chain in pinned if nat[chain]))
    there = {
        (table, chain): tables[table][chain]
        for table, chain in places
        if chain in tables.get(table, {})
    }
    return Patch(
        desired,
        full=True,
        first=first,
        parts=tuple(parts),
        places=places,
        doomed=doomed,
        kept=kept,
        jumps=jumps,
        surplus=surplus,
        guard=tuple(row for row in desired.guard if row not in (shared or ())),
        declare_guard=shared is None,
        members=change(desired.endpoints, actual.members),
        sysctls=tuple(sorted(sysctls)),
        replaced=_replaced(parts, (*doomed, *kept), nat if services else {}, there),
    )


def _stale_places(desired: Desired, tables: Mapping[Table, Mapping[str, str]]) -> Iterable[Place]:
    for place in (*chains.FIXED, *chains.DISPATCH):
        table, chain = place
        now = tables.get(table, {}).get(chain)
        if now is None or now != desired.text_of(place):
            yield place
