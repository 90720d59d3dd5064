"""Rules of a mode that are few: wanted, compared chain by chain, written where they differ.

Pure. For modes whose rules depend on the settings of the node only, while services live elsewhere
(in sets, in servers). One call of the restore tool brings all of it about.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain as joined

from kproxy.backends.xtables.found import Found, find, jump_change
from kproxy.backends.xtables.layout import Layout, Place
from kproxy.backends.xtables.rules import Rule, Table
from kproxy.backends.xtables.saved import Line, Saved
from kproxy.backends.xtables.script import Call, deleted, deletions, flushes, on_top, section
from kproxy.backends.xtables.text import line, lines
from kproxy.core.objects import Family, Value


class Ruleset(Value, frozen=True):
    """``chains``: every chain of the mode with its lines. ``jumps``: lines for the top of base
    chains, in order. Equal rules are equal values."""

    chains: Mapping[Place, str]
    jumps: tuple[Line, ...]


def ruleset(layout: Layout, rules: Mapping[Place, Iterable[Rule]], family: Family) -> Ruleset:
    """Typed rules of the layout's chains as text."""
    return Ruleset(
        chains={place: lines(content, family) for place, content in rules.items()},
        jumps=tuple((rule.table, line(rule, family)) for rule in layout.jumps),
    )


class RulesHeld(Value, frozen=True):
    """What is in force of a :class:`Ruleset`; ``pinned`` as in :class:`Found`."""

    chains: Mapping[Place, str] = {}
    jumps: tuple[Line, ...] = ()
    pinned: frozenset[Place] = frozenset()


def read(saved: Saved, layout: Layout, family: Family) -> RulesHeld:
    """What the save tool says is in force."""
    found = find(saved, layout, family)
    return RulesHeld(_flat(found), found.jumps, found.pinned)


def _flat(found: Found) -> dict[Place, str]:
    return {
        (table, chain): text
        for table, content in found.tables.items()
        for chain, text in content.items()
    }


def settled(wanted: Ruleset) -> RulesHeld:
    """What reading gives once ``wanted`` is in force."""
    return RulesHeld(wanted.chains, tuple(sorted(wanted.jumps)))


class RulesPatch(Value, frozen=True):
    """``written``: chains with the lines that they are to have. ``emptied``: chains that nobody
    needs, those of them that can be deleted are in ``doomed``. ``surplus`` lines of base chains go
    before ``jumps`` are put at their top, in order."""

    written: tuple[tuple[Place, str], ...] = ()
    emptied: tuple[Place, ...] = ()
    doomed: tuple[Place, ...] = ()
    jumps: tuple[Line, ...] = ()
    surplus: tuple[Line, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.written or self.emptied or self.doomed or self.jumps or self.surplus)


def diff(wanted: Ruleset, held: RulesHeld) -> RulesPatch | None:
    """The smallest change; None when there is nothing."""
    stale = held.chains.keys() - wanted.chains.keys()
    jumps, surplus = jump_change(wanted.jumps, held.jumps)
    patch = RulesPatch(
        written=tuple(
            (place, text) for place, text in wanted.chains.items() if held.chains.get(place) != text
        ),
        emptied=tuple(sorted(place for place in stale if held.chains[place])),
        doomed=tuple(sorted(stale - held.pinned)),
        jumps=jumps,
        surplus=surplus,
    )
    return patch or None


def call(patch: RulesPatch) -> Call:
    """The restore tool's input. nat first: a packet that is marked and not yet filtered is served
    as before, one that is filtered and not yet marked would be refused for nothing."""
    return joined.from_iterable(
        section(table, _content(patch, table), _removal(patch, table))
        for table in (Table.NAT, Table.FILTER, Table.MANGLE)
    )


def _content(patch: RulesPatch, table: Table) -> Iterator[str]:
    mine = [(chain, text) for (owner, chain), text in patch.written if owner is table]
    # All are made before any is filled: a rule can only go to a chain that is there.
    yield from flushes(chain for chain, _ in mine)
    yield from (text for _, text in mine if text)
    yield from deleted(patch.surplus, table)
    yield from on_top(patch.jumps, table)


def _removal(patch: RulesPatch, table: Table) -> Iterator[str]:
    yield from flushes(chain for owner, chain in patch.emptied if owner is table)
    yield from deletions(chain for owner, chain in patch.doomed if owner is table)
