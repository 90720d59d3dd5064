"""Notices when others change rules of a mode: by size in legacy tables, by word in the nft variant.

legacy tells nobody, so its sizes are compared twice a second; an edit that changes no size is found
by the next sync that reads the kernel. nf_tables tells of each transaction what it changed, so that
other people's work on their own chains is nobody's business here.

While we write ourselves, nothing is looked at. Afterwards the sizes must be the old ones if we
wrote nothing, and are taken as they are if we did; of nft, the generation must have risen by
exactly our own transactions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from kproxy.backends.xtables.layout import Layout
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.kernel.nftables import Event, Kind, Listener, generations
from kproxy.kernel.timer import Ticker
from kproxy.kernel.xtables import Tables

#: What IPT_SO_GET_INFO says of each table; None: the table is not there.
Sizes = Mapping[tuple[Family, Table], bytes | None]

#: Seconds between two looks at the legacy tables.
PERIOD = 0.5

_TABLES = {table.value: table for table in Table}
#: linux/netfilter.h: NFPROTO_IPV4, NFPROTO_IPV6
_PROTOCOLS = {2: Family.IPV4, 10: Family.IPV6}


def watch(variant: Variant, families: Iterable[Family], layout: Layout) -> LegacyWatch | NftWatch:
    """The watch of a variant over a mode's rules, in the namespace of the calling thread."""
    return LegacyWatch(families) if variant is Variant.LEGACY else NftWatch(families, layout)


class LegacyWatch:
    """See :class:`kproxy.backends.base.Watch`."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._tables = tuple(Tables(family) for family in families)
        self._ticker = Ticker(PERIOD)
        self._known: Sizes | None = None
        self._noticed = ""
        self._paused = False

    def fileno(self) -> int:
        return self._ticker.fileno()

    def look(self) -> str:
        self._ticker.drain()
        return "" if self._paused else self._resized(self._sizes)

    def pause(self) -> str:
        self._noticed = self.look()
        self._paused = True
        return self._noticed

    def resume(self, transactions: int | None) -> str:
        # Not before we have written: looking at a table makes it.
        now = self._sizes()
        wrote_nothing = transactions == 0 and not self._noticed
        noticed = self._resized(lambda: now) if wrote_nothing else ""
        self._known, self._paused = now, False
        return noticed

    def _resized(self, sizes: Callable[[], Sizes]) -> str:
        """Which tables have another size than the known one. Looks only when one is known."""
        if self._known is None:
            return ""
        other = [
            f"{table} (IPv{family})"
            for (family, table), size in sizes().items()
            if size != self._known[family, table]
        ]
        return f"another size of table {', '.join(other)}" if other else ""

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
        self._paused = False

    def fileno(self) -> int:
        return self._listener.fileno()

    def look(self) -> str:
        if self._paused:
            return ""
        found, lost = self._listener.heard()
        noticed = ""
        for event in found:
            if event.kind is not Kind.NEWGEN:
                self._touched = self._touched or self._concern(event)
                continue
            if generations(self._generation, event.generation) < 1 << 31:
                self._generation = event.generation
            if self._touched:
                noticed = noticed or f"{event.program} ({event.pid}) {self._touched}"
            self._touched = ""
        if lost:
            self._generation, self._touched = self._listener.generation(), ""
            return noticed or "more changes than could be told"
        return noticed

    def pause(self) -> str:
        noticed = self.look()
        self._listener.deafen()
        # What came before that is heard, what comes after it is counted.
        noticed = self.look() or noticed
        self._paused = True
        return noticed

    def resume(self, transactions: int | None) -> str:
        self._listener.hear()
        now = self._listener.generation()
        others = generations(self._generation, now) - (transactions or 0)
        self._generation, self._touched, self._paused = now, "", False
        if transactions is None or others == 0:
            return ""
        return f"{others} transactions of others during a sync"

    def close(self) -> None:
        self._listener.close()

    def _concern(self, event: Event) -> str:
        return concern(event, self._families, self._layout)


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
