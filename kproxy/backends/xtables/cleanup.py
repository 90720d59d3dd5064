"""What has to go so that no trace of a mode is left, but for what another one uses. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kproxy.backends.xtables.layout import Layout, Place
from kproxy.backends.xtables.rules import BASE, Rule, Table
from kproxy.backends.xtables.saved import Line, Saved, target_of
from kproxy.backends.xtables.script import Call, deleted, deletions, flushes, removals, section
from kproxy.backends.xtables.text import line
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family


class Leaving:
    """One table of a mode that goes. ``spared`` is the mode that stands there instead: chains and
    jumps that both have are its own. ``kept`` are shared chains that stay in any case."""

    def __init__(
        self,
        layout: Layout,
        table: Table,
        content: dict[str, list[str]],
        family: Family,
        spared: Layout | None,
        kept: Collection[Place],
    ) -> None:
        self._layout, self._spared = layout, spared
        self._table, self._content = table, content
        self._known = _texts(layout.jumps, table, family)
        self._theirs = _texts(spared.jumps if spared else (), table, family)
        self._guests = _texts(layout.guests, table, family)
        self._inhabited = self._with_rules_of_others() | {
            chain for owner, chain in kept if owner is table
        }
        self._kept = self._inhabited | self._in_use()

    def calls(self, variant: Variant) -> Iterator[Call]:
        """First the rules that lead there, so that traffic never meets half of it, then the
        chains."""
        leading = self._leading()
        if leading:
            yield section(self._table, deleted(leading, self._table))
        mine = [chain for chain in self._content if self._goes(chain)]
        pinned = self._pinned(leading)
        gone = [chain for chain in mine if chain not in pinned]
        if variant is Variant.NFT:
            yield from removals(self._table, mine, gone)
        elif mine:
            yield section(self._table, flushes(mine), deletions(gone))

    def _shares(self, chain: str) -> bool:
        return (self._table, chain) in self._layout.shared

    def _stays(self, chain: str) -> bool:
        """Whether a chain is the standing mode's as well."""
        spared = self._spared
        return spared is not None and (
            spared.owns(self._table, chain) or (self._table, chain) in spared.shared
        )

    def _goes(self, chain: str) -> bool:
        mine = self._layout.owns(self._table, chain) or self._shares(chain)
        return mine and chain not in self._kept and not self._stays(chain)

    def _with_rules_of_others(self) -> set[str]:
        """Shared chains in which somebody else keeps rules: then the jumps to them, which are alike
        to the letter, are that one's."""
        hosts = {rule.chain for rule in self._layout.guests if rule.table is self._table}
        return {
            chain
            for chain in hosts
            if any(row not in self._guests for row in self._content.get(chain, ()))
        }

    def _in_use(self) -> set[str]:
        """Shared chains to which a rule goes that is not the mode's."""
        used = {
            target_of(row)
            for chain, rows in self._content.items()
            if not self._layout.owns(self._table, chain)
            for row in rows
            if row not in self._known
        }
        return {chain for chain in used if self._shares(chain)}

    def _leading(self) -> list[Line]:
        """Rules of base chains that go to chains of the mode, whoever's version wrote them."""
        return [
            (self._table, row)
            for base in sorted(BASE[self._table] & self._content.keys())
            for row in self._content[base]
            if self._leads(row)
        ]

    def _leads(self, row: str) -> bool:
        target = target_of(row)
        ours = self._layout.owns(self._table, target) and not self._shares(target)
        return (
            (ours or row in self._known)
            and row not in self._theirs
            and target not in self._inhabited
        )

    def _pinned(self, leading: list[Line]) -> frozenset[str]:
        """Chains of the mode to which a foreign chain goes: emptied, but the kernel keeps them."""
        taken = {row for _, row in leading}
        return frozenset(
            target_of(row)
            for chain, rows in self._content.items()
            if not self._layout.owns(self._table, chain)
            for row in rows
            if row not in taken and self._layout.owns(self._table, target_of(row))
        )


def _texts(rules: tuple[Rule, ...], table: Table, family: Family) -> frozenset[str]:
    return frozenset(line(rule, family) for rule in rules if rule.table is table)


def cleanup_calls(
    layout: Layout,
    saved: Saved,
    family: Family,
    variant: Variant,
    *,
    spared: Layout | None = None,
    kept: Collection[Place] = (),
) -> Iterator[Call]:
    """Calls of the restore tool that take away what is the mode's in ``saved``; none when there is
    nothing. See :class:`Leaving`."""
    for table in Table:
        content = saved.get(table, {})
        yield from Leaving(layout, table, content, family, spared, kept).calls(variant)
