"""What of nftables mode is in force, and the smallest change to what is wanted. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from kproxy.backends.nftables.elements import KINDS, Record
from kproxy.backends.nftables.plan import Block
from kproxy.backends.nftables.render import Desired
from kproxy.backends.nftables.rules import Chain, Spec, Treat, chain_of
from kproxy.core.objects import Family, PortName, Value

Members = Mapping[str, set[Record]]


class Held:
    """``table``: it is there, and its sets and base chains are as this mode makes them.
    ``chains`` by name, None: there is something of that name that no rule of ours made."""

    __slots__ = ("_chains", "_elements", "_table", "believed", "family")

    def __init__(
        self,
        *,
        table: bool = True,
        chains: Mapping[str, Chain | None] | None = None,
        elements: Members | None = None,
        believed: Desired | None = None,
        family: Family = Family.IPV4,
    ) -> None:
        self.family = believed.frame.family if believed is not None else family
        self._table = table
        self._chains = chains or {}
        self._elements = elements
        self.believed = believed

    @property
    def table(self) -> bool:
        return self._table

    @property
    def chains(self) -> Mapping[str, Chain | None]:
        return self._chains if self.believed is None else self.believed.chains

    @property
    def elements(self) -> Members:
        if self._elements is None:
            empty: dict[str, set[Record]] = {name: set() for name in KINDS}
            self._elements = empty if self.believed is None else self.believed.elements()
        return self._elements

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Held):
            return NotImplemented
        mine = (self.table, self.chains, self.elements)
        return mine == (other.table, other.chains, other.elements)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        sizes = {name: len(records) for name, records in self.elements.items() if records}
        return f"Held(table={self.table}, chains={sorted(self.chains)}, elements={sizes})"


def settled(desired: Desired) -> Held:
    """What reading gives once ``desired`` is in force."""
    return Held(believed=desired)


class Patch(Value, frozen=True, eq=False):
    """``full``: everything was compared. ``rebuild``: table, sets and base chains have to be made
    from nothing. ``chains`` have to be made, or made anew, before elements lead there; ``spare``
    are names of those that nothing leads to afterwards."""

    desired: Desired
    full: bool
    rebuild: bool
    chains: tuple[Chain, ...]
    spare: tuple[str, ...]
    added: Mapping[str, list[Record]]
    gone: Mapping[str, list[Record]]
    before: Desired | None

    def names(self) -> Iterator[PortName]:
        """Service ports of which something is written."""
        for name, block in self.desired.blocks.items():
            if self.before is not None and self.before.blocks.get(name) is block:
                continue
            if self.writes(block):
                yield name
        if self.before is not None:
            yield from self.before.blocks.keys() - self.desired.blocks.keys()

    def writes(self, block: Block) -> bool:
        """Whether something of a service port is in it."""
        return any(
            not set(records).isdisjoint(self.added.get(which, ()))
            for part in (block.own, block.shared)
            for which, records in part.items()
        )


def diff(desired: Desired, actual: Held) -> Patch | None:
    """None when there is nothing to do."""
    before = actual.believed
    if before is desired:
        return None
    if before is not None and (before.frame, before.common) == (desired.frame, desired.common):
        return _follow(desired, before)
    wanted, there = desired.chains, actual.chains
    if not actual.table:
        return Patch(
            desired=desired,
            full=True,
            rebuild=True,
            chains=tuple(wanted.values()),
            spare=(),
            added=desired.listed(),
            gone={},
            before=None,
        )
    # The same rule of another frame reads otherwise.
    stale = before is not None and before.frame != desired.frame
    held, wants = actual.elements, desired.elements()
    added = {name: list(found - held[name]) for name, found in wants.items()}
    gone = {name: list(found - wants[name]) for name, found in held.items()}
    patch = Patch(
        desired=desired,
        full=before is None,
        rebuild=False,
        chains=tuple(chain for name, chain in wanted.items() if stale or there.get(name) != chain),
        spare=tuple(sorted(there.keys() - wanted.keys())),
        added={name: found for name, found in added.items() if found},
        gone={name: found for name, found in gone.items() if found},
        before=None,
    )
    return patch if patch.chains or patch.spare or patch.added or patch.gone else None


def _follow(desired: Desired, before: Desired) -> Patch | None:
    """From what is believed to be in force; work follows the service ports that differ."""
    names = _changed(before, desired)
    added: dict[str, list[Record]] = {}
    gone: dict[str, list[Record]] = {}
    for name in names:
        old, new = before.blocks.get(name), desired.blocks.get(name)
        _differences(old, new, added)
        _differences(new, old, gone)
    if desired.shared is not before.shared:
        for which, record in _shared(names, before, desired):
            found = added if (which, record) in desired.shared else gone
            if ((which, record) in desired.shared) != ((which, record) in before.shared):
                found.setdefault(which, []).append(record)
    chains, spare = [], []
    if desired.specs is not before.specs:
        fresh = desired.specs.keys() - before.specs.keys()
        # A chain that another goes to comes first.
        chains = [chain_of(spec, desired.frame) for spec in sorted(fresh, key=_order)]
        spare = [
            spec.name for spec in sorted(before.specs.keys() - desired.specs.keys(), key=_order)
        ]
    if not (added or gone or chains or spare):
        return None
    return Patch(
        desired=desired,
        full=False,
        rebuild=False,
        chains=tuple(chains),
        spare=tuple(spare),
        added=added,
        gone=gone,
        before=before,
    )


def _order(spec: Spec) -> tuple[bool, str]:
    return isinstance(spec, Treat), spec.name


def _changed(before: Desired, desired: Desired) -> set[PortName]:
    now = desired.snapshot
    if now.base == before.snapshot.generation:
        return set(now.changed | now.removed)
    old, new = before.blocks, desired.blocks
    return {name for name, one in new.items() if old.get(name) is not one} | (
        old.keys() - new.keys()
    )


def _shared(names: Iterable[PortName], *desired: Desired) -> dict[tuple[str, Record], None]:
    """What some service ports may have in common with others."""
    return dict.fromkeys(
        (which, record)
        for name in names
        for one in desired
        if (block := one.blocks.get(name)) is not None
        for which, records in block.shared.items()
        for record in records
    )


def _differences(one: Block | None, other: Block | None, found: dict[str, list[Record]]) -> None:
    """What ``other`` has beyond ``one``."""
    if other is None:
        return
    mine = one.own if one is not None else {}
    for which, records in other.own.items():
        had = mine.get(which, ())
        if records == had:
            continue
        more = set(records).difference(had)
        if more:
            found.setdefault(which, []).extend(more)
