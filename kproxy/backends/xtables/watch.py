"""Notices when others change rules of a mode: by size in legacy tables, by word in the nft variant.

legacy tells nobody, so its sizes are compared some times a second; an edit that changes no size is
found by the next sync that reads the kernel. nf_tables tells of each transaction what it changed,
so that other people's work on their own chains is nobody's business here.

While we write ourselves, nothing is looked at. Afterwards the sizes must be the old ones if we
wrote nothing, and have as many entries as we know they should if we did; of nft, the generation
must have risen by exactly our own transactions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from kproxy.backends.base import Harm, Scope, worse
from kproxy.backends.xtables.layout import Layout
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.kernel.nftables import Event, Kind
from kproxy.kernel.timer import Ticker
from kproxy.kernel.transactions import Transactions
from kproxy.kernel.xtables import Tables
from kproxy.kernel.xtables import entries as entries_of

#: What IPT_SO_GET_INFO says of each table; None: the table is not there.
Sizes = Mapping[tuple[Family, Table], bytes | None]

#: Seconds between two looks at the legacy tables, 20 µs each: what they find is to be mended within
#: a second of its making.
PERIOD = 0.2

_TABLES = {table.value: table for table in Table}


def watch(
    variant: Variant, families: Iterable[Family], layout: Layout, period: float = PERIOD
) -> LegacyWatch | NftWatch:
    """The watch of a variant over a mode's rules, in the namespace of the calling thread.
    ``period``: seconds between two looks where nobody tells of changes."""
    if variant is Variant.LEGACY:
        return LegacyWatch(families, period)
    return NftWatch(families, layout)


class LegacyWatch:
    """See :class:`kproxy.backends.base.Watch`."""

    def __init__(self, families: Iterable[Family], period: float = PERIOD) -> None:
        self._tables = tuple(Tables(family) for family in families)
        self._ticker = Ticker(period)
        #: What should be there; None before anything was written: looking at a table makes it.
        self._known: Sizes | None = None
        #: What was there when we began to write.
        self._before: Sizes | None = None
        self._harm: Harm = {}
        self._paused = False

    def fileno(self) -> int:
        return self._ticker.fileno()

    def look(self) -> str:
        self._ticker.drain()
        if self._paused or self._known is None:
            return ""
        return self._resized(self._known, self._sizes())

    def pause(self) -> str:
        self._ticker.drain()
        self._paused = True
        if self._known is None:
            return ""
        self._before = self._sizes()
        return self._resized(self._known, self._before)

    def resume(
        self, transactions: int | None, entries: Mapping[Family, Mapping[str, int]] | None = None
    ) -> str:
        now, before = self._sizes(), self._before
        self._known, self._paused = now, False
        if transactions == 0:
            return "" if before is None else self._resized(before, now)
        return "" if transactions is None else self._grown(entries or {}, now)

    def harm(self) -> Harm:
        harm, self._harm = self._harm, {}
        return harm

    def _resized(self, known: Sizes, now: Sizes) -> str:
        """Which tables have another size than the known one."""
        other = [place for place, size in now.items() if size != known[place]]
        self._note(other)
        names = [f"{table} (IPv{family})" for family, table in other]
        return f"another size of table {', '.join(names)}" if names else ""

    def _grown(self, wanted: Mapping[Family, Mapping[str, int]], now: Sizes) -> str:
        """Which tables have not as many entries as they should, where that is known."""
        other = {
            (family, table): entries_of(info) - wanted[family][table]
            for (family, table), info in now.items()
            if family in wanted and table in wanted[family]
        }
        other = {place: count for place, count in other.items() if count}
        self._note(other)
        said = [f"{table} (IPv{family}) by {n:+d}" for (family, table), n in other.items()]
        return f"during a sync, entries of table {', '.join(said)}" if said else ""

    def _note(self, places: Iterable[tuple[Family, Table]]) -> None:
        for family, table in places:
            self._harm = worse(self._harm, {family: Scope(frozenset({table.value}))})

    def close(self) -> None:
        self._ticker.close()
        for tables in self._tables:
            tables.close()

    def _sizes(self) -> Sizes:
        return {
            (tables.family, table): tables.info(table) for tables in self._tables for table in Table
        }


class NftWatch:
    """See :class:`kproxy.backends.base.Watch`."""

    def __init__(self, families: Iterable[Family], layout: Layout) -> None:
        self._families = frozenset(families)
        self._layout = layout
        #: Table and chain of what others changed, since harm was last asked for.
        self._places: dict[Family, set[tuple[str, str]]] = defaultdict(set)
        self._transactions = Transactions(self._concern)
        self._paused = False

    def fileno(self) -> int:
        return self._transactions.fileno()

    def look(self) -> str:
        return "" if self._paused else self._transactions.look()

    def pause(self) -> str:
        self._paused = True
        return self._transactions.pause()

    def resume(
        self, transactions: int | None, entries: Mapping[Family, Mapping[str, int]] | None = None
    ) -> str:
        self._paused = False
        return self._transactions.resume(transactions)

    def harm(self) -> Harm:
        harm = None if self._transactions.missed() else _scopes(self._places)
        self._places.clear()
        return harm

    def close(self) -> None:
        self._transactions.close()

    def _concern(self, event: Event) -> str:
        what = concern(event, self._families, self._layout)
        if what and event.version is not None:
            self._places[event.version].add((event.table, event.chain))
        return what


def _scopes(places: Mapping[Family, Iterable[tuple[str, str]]]) -> dict[Family, Scope]:
    """A table that was made or deleted has no chain's name."""
    return {
        family: Scope(
            frozenset(table for table, chain in some if not chain),
            frozenset((table, chain) for table, chain in some if chain),
        )
        for family, some in places.items()
    }


def concern(event: Event, families: frozenset[Family], layout: Layout) -> str:
    """What a change did to rules of a mode, "" when they may be as they were. Pure.

    A rule that somebody adds to a base chain is theirs; one that is deleted there may be our jump.
    """
    table = _TABLES.get(event.table)
    if table is None or event.version not in families:
        return ""
    what = event.what
    if event.kind in (Kind.NEWTABLE, Kind.DELTABLE) or layout.owns(table, event.chain):
        return what
    taken = event.kind in (Kind.DELCHAIN, Kind.DELRULE)
    return what if taken and layout.knows(table, event.chain) else ""
