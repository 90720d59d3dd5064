"""What is one mode's in the text of ``iptables-save``, and how far from what is wanted. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from kproxy.backends.xtables.layout import Layout, Place
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.saved import Line, Saved, target_of
from kproxy.backends.xtables.text import line
from kproxy.core.objects import Family, Value


class Found(Value, frozen=True):
    """``tables``: chain -> its lines, for the chains that are the mode's alone. ``jumps``: lines of
    base chains that are its own to the letter, sorted, with repeats. ``guests``: its lines in
    shared chains, for those of these chains that there are. ``pinned``: chains of its own to which
    a foreign rule goes, so that the kernel will not delete them."""

    tables: Mapping[Table, Mapping[str, str]]
    jumps: tuple[Line, ...] = ()
    guests: Mapping[Place, tuple[str, ...]] = {}
    pinned: frozenset[Place] = frozenset()


def find(saved: Saved, layout: Layout, family: Family) -> Found:
    """One mode's, picked out of everything that is in force."""
    known = {(rule.table, line(rule, family)) for rule in (*layout.jumps, *layout.passing)}
    own_lines = {(rule.table, line(rule, family)) for rule in layout.guests}
    hosts = {(rule.table, rule.chain) for rule in layout.guests}
    tables: dict[Table, dict[str, str]] = {table: {} for table in Table}
    guests: dict[Place, tuple[str, ...]] = {}
    jumps: list[Line] = []
    pinned: set[Place] = set()
    for table, content in saved.items():
        for chain, rows in content.items():
            if layout.owns(table, chain):
                tables[table][chain] = "".join([f"{row}\n" for row in rows])
                continue
            if (table, chain) in hosts:
                guests[table, chain] = tuple(row for row in rows if (table, row) in own_lines)
            for row in rows:
                if (table, row) in known:
                    jumps.append((table, row))
                elif layout.owns(table, target_of(row)):
                    pinned.add((table, target_of(row)))
    return Found(tables, tuple(sorted(jumps)), guests, frozenset(pinned))


def jump_change(
    wanted: Iterable[Line], there: Iterable[Line]
) -> tuple[tuple[Line, ...], tuple[Line, ...]]:
    """(to be put at the top, in this order; to be taken away before).

    A base chain with one missing, or one too many, gets all of its jumps anew: at the top, in their
    order.
    """
    wanted, held = tuple(wanted), Counter(there)
    other = {_base(jump) for jump in wanted if held[jump] != 1}
    other |= {_base(jump) for jump in held.keys() - set(wanted)}
    return (
        tuple(jump for jump in wanted if _base(jump) in other),
        tuple(sorted(jump for jump in held.elements() if _base(jump) in other)),
    )


def _base(jump: Line) -> Line:
    table, row = jump
    return table, row.split(" ", 2)[1]
