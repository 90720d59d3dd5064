"""What the kernel holds of ours, read from the text of ``iptables-save``. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from kproxy.backends.base import Scope
from kproxy.backends.iptables import chains
from kproxy.backends.iptables.layout import LAYOUT
from kproxy.backends.iptables.render import Desired, Place
from kproxy.backends.xtables.found import find
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.saved import Line, Saved
from kproxy.core.objects import Family

#: Where our lines stand among the kubelet's.
_GUARDED = (Table.FILTER, chains.KUBELET_FIREWALL)


class Held:
    """What is in force of ours.

    ``tables``: chain -> its lines, for the chains that are ours alone. ``guard``: our lines in the
    chain shared with the kubelet, None when there is no such chain. ``jumps``: lines of base chains
    that are ours to the letter, sorted, with repeats. ``pinned``: chains of ours to which a foreign
    rule goes, so that the kernel will not delete them. ``members`` is the set of endpoints, None
    when there is none. ``desired``: what is believed to be in force after a good apply; then
    ``tables`` and ``members`` are made of it when somebody looks.
    """

    __slots__ = ("_members", "_tables", "desired", "guard", "jumps", "pinned", "sysctls")

    def __init__(
        self,
        *,
        tables: Mapping[Table, Mapping[str, str]] | None = None,
        guard: tuple[str, ...] | None = None,
        jumps: tuple[Line, ...] = (),
        pinned: frozenset[Place] = frozenset(),
        sysctls: Mapping[str, str | None] | None = None,
        members: AbstractSet[bytes] | None = None,
        desired: Desired | None = None,
    ) -> None:
        self._members = members
        self._tables = tables
        self.guard = guard
        self.jumps = jumps
        self.pinned = pinned
        self.sysctls = sysctls or {}
        self.desired = desired

    @property
    def tables(self) -> Mapping[Table, Mapping[str, str]]:
        if self._tables is None:
            self._tables = _tables_of(self.desired) if self.desired is not None else {}
        return self._tables

    @property
    def members(self) -> AbstractSet[bytes] | None:
        if self.desired is not None:
            return self.desired.endpoints
        return self._members

    def __eq__(self, other: object) -> bool:
        """Equal rules in force. Sysctls and foreign rules are looked at, but are not ours."""
        if not isinstance(other, Held):
            return NotImplemented
        mine = (self.guard, self.jumps, self.members, self.tables)
        return mine == (other.guard, other.jumps, other.members, other.tables)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        size = {table.value: len(content) for table, content in self.tables.items()}
        return f"Held(chains={size}, jumps={len(self.jumps)}, guard={self.guard})"


def settled(desired: Desired) -> Held:
    """What reading gives once ``desired`` is in force."""
    return Held(guard=desired.guard, jumps=tuple(sorted(desired.jumps)), desired=desired)


def _tables_of(desired: Desired) -> dict[Table, dict[str, str]]:
    tables: dict[Table, dict[str, str]] = {table: {} for table in Table}
    for places in (desired.fixed, desired.dispatch):
        for (table, chain), text in places.items():
            tables[table][chain] = text
    nat = tables[Table.NAT]
    for block in desired.blocks.values():
        nat.update(block.chains)
    return tables


def held(
    saved: Saved,
    family: Family,
    sysctls: Mapping[str, str | None] | None = None,
    members: AbstractSet[bytes] | None = None,
) -> Held:
    """Ours, picked out of everything that is in force."""
    found = find(saved, LAYOUT, family)
    return Held(
        tables=found.tables,
        guard=found.guests.get(_GUARDED),
        jumps=found.jumps,
        pinned=found.pinned,
        sysctls=sysctls,
        members=members,
    )


def reheld(
    believed: Desired,
    read: Saved,
    scope: Scope,
    sysctls: Mapping[str, str | None] | None = None,
    members: AbstractSet[bytes] | None = None,
) -> Held:
    """What is in force when ``believed`` was, but for what others did within ``scope``; ``read``
    is what is there now."""
    found = find(read, LAYOUT, believed.context.family)
    tables = _tables_of(believed)
    for table in Table:
        if table in scope.tables:
            tables[table] = dict(found.tables[table])
        else:
            tables[table].update(found.tables[table])
    before = settled(believed)

    def stays(table: Table, chain: str) -> bool:
        return table not in scope.tables and (table, chain) not in scope.chains

    stay = [(table, row) for table, row in before.jumps if stays(table, row.split(" ", 2)[1])]
    return Held(
        tables=tables,
        guard=before.guard if stays(*_GUARDED) else found.guests.get(_GUARDED),
        jumps=tuple(sorted([*stay, *found.jumps])),
        pinned=found.pinned,
        sysctls=sysctls,
        members=members,
    )
