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
from kproxy.kernel.nftables import Event, Kind, Listener, generations
from kproxy.kernel.timer import Ticker
from kproxy.kernel.xtables import Tables
from kproxy.kernel.xtables import entries as entries_of

#: What IPT_SO_GET_INFO says of each table; None: the table is not there.
Sizes = Mapping[tuple[Family, Table], bytes | None]

#: Seconds between two looks at the legacy tables, 20 µs each: what they find is to be mended within
#: a second of its making.
PERIOD = 0.2

_TABLES = {table.value: table for table in Table}
#: linux/netfilter.h: NFPROTO_IPV4, NFPROTO_IPV6
_PROTOCOLS = {2: Family.IPV4, 10: Family.IPV6}


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
        self._listener = Listener()
        #: Everything up to here has been heard, or is ours.
        self._generation = self._listener.generation()
        self._touched = ""
        self._harm: Harm = {}
        self._paused = False

    def fileno(self) -> int:
        return self._listener.fileno()

    def look(self) -> str:
        if self._paused:
            return ""
        found, lost = self._listener.heard()
        if lost:
            self._generation, self._touched, self._harm = self._listener.generation(), "", None
            return "more changes than could be told"
        noticed = ""
        places: dict[Family, set[tuple[str, str]]] = defaultdict(set)
        for event in found:
            if event.kind is not Kind.NEWGEN:
                if what := self._concern(event):
                    self._touched = self._touched or what
                    places[_PROTOCOLS[event.family]].add((event.table, event.chain))
                continue
            if generations(self._generation, event.generation) < 1 << 31:
                self._generation = event.generation
            if self._touched:
                noticed = noticed or f"{event.program} ({event.pid}) {self._touched}"
            self._touched = ""
        self._harm = worse(self._harm, _scopes(places))
        return noticed

    def pause(self) -> str:
        noticed = self.look()
        self._listener.deafen()
        # What came before that is heard, what comes after it is counted.
        noticed = self.look() or noticed
        self._paused = True
        return noticed

    def resume(
        self, transactions: int | None, entries: Mapping[Family, Mapping[str, int]] | None = None
    ) -> str:
        self._listener.hear()
        now = self._listener.generation()
        others = generations(self._generation, now) - (transactions or 0)
        self._generation, self._touched, self._paused = now, "", False
        if transactions is None or others == 0:
            return ""
        self._harm = None
        return f"{others} transactions of others during a sync"

    def harm(self) -> Harm:
        harm, self._harm = self._harm, {}
        return harm

    def close(self) -> None:
        self._listener.close()

    def _concern(self, event: Event) -> str:
        return concern(event, self._families, self._layout)


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
    if table is None or _PROTOCOLS.get(event.family) not in families:
        return ""
    what = f"{event.kind.name} {table} {event.chain}".rstrip()
    if event.kind in (Kind.NEWTABLE, Kind.DELTABLE) or layout.owns(table, event.chain):
        return what
    taken = event.kind in (Kind.DELCHAIN, Kind.DELRULE)
    return what if taken and layout.knows(table, event.chain) else ""
