"""Which chains and rules of the kernel's tables are one mode's: for reading, sweeping, watching.

Pure. Several modes have chains of the same name (KUBE-SERVICES in nat is kube-proxy's name in all
of them), so a sweep is told what stands now.
"""

from __future__ import annotations

from collections.abc import Mapping

from kproxy.backends.xtables.rules import BASE, Rule, Table
from kproxy.core.objects import Value

#: A chain, by table.
Place = tuple[Table, str]


class Layout(Value, frozen=True):
    """``own``: the chains that are the mode's alone, what is not ours in them is taken out;
    ``prefixes``: so are all that begin like this. ``jumps``: its rules in base chains, in the order
    in which they are put at the top (the last one ends up first). ``passing``: others of them that
    stand only while the mode gives way to another one; found at any other time they are taken away.

    ``shared``: chains that other programs may use as well; at the end they stay while somebody
    does. ``guests``: rules of the mode in those of them that it does not own.
    """

    own: Mapping[Table, frozenset[str]]
    jumps: tuple[Rule, ...]
    prefixes: Mapping[Table, tuple[str, ...]] = {}
    shared: frozenset[Place] = frozenset()
    guests: tuple[Rule, ...] = ()
    passing: tuple[Rule, ...] = ()

    def owns(self, table: Table, chain: str) -> bool:
        """Whether a chain is the mode's alone."""
        return chain in self.own[table] or chain.startswith(self.prefixes.get(table, ()))

    def knows(self, table: Table, chain: str) -> bool:
        """Whether rules of the mode may be in a chain, so that a deletion there concerns it."""
        return self.owns(table, chain) or chain in BASE[table] or (table, chain) in self.shared


def own(*chains: Place) -> dict[Table, frozenset[str]]:
    """Places, by table."""
    return {table: frozenset(chain for owner, chain in chains if owner is table) for table in Table}
