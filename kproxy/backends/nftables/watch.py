"""Notices when others change the table: the kernel tells of every transaction.

The packet path tells nothing when it writes affinities. What we write ourselves is told of as well,
and telling of an element costs the kernel a page: during a sync nobody listens, and transactions
are counted. The count is of all tables, though. Where others work at tables of their own while we
sync, the next syncs are listened to: a busy neighbour is not taken for one who meddles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kproxy.backends.base import Harm
from kproxy.backends.nftables.rules import TABLE
from kproxy.core.objects import Family
from kproxy.kernel.nftables import Event, Kind, Listener, generations

_VERSIONS = {2: Family.IPV4, 10: Family.IPV6}


def watch(families: Iterable[Family]) -> NftablesWatch:
    """In the namespace of the calling thread."""
    return NftablesWatch(frozenset(families))


class NftablesWatch:
    """See :class:`kproxy.backends.base.Watch`."""

    def __init__(self, families: frozenset[Family]) -> None:
        self._families = families
        self._listener = Listener()
        #: Everything up to here has been heard, or is ours.
        self._generation = self._listener.generation()
        self._touched = ""
        self._paused = False
        #: Whether somebody else has been at work during a sync.
        self._neighbour = False
        #: Whether the sync that runs is listened to, what was heard of it, and whether that is all.
        self._listens = False
        self._heard: list[Event] = []
        self._lost = False

    def fileno(self) -> int:
        return self._listener.fileno()

    def look(self) -> str:
        if not self._paused:
            return self._look()
        if self._listens:
            # Else the loop that waits for us would be woken again and again.
            self._take_in()
        return ""

    def _take_in(self) -> None:
        found, lost = self._listener.heard()
        self._heard += found
        self._lost = self._lost or lost

    def pause(self) -> str:
        noticed = self.look()
        # Much has to be written after damage: nobody could hear all of that.
        self._listens = self._neighbour and not noticed
        if not self._listens:
            self._listener.deafen()
            # What came before that is heard, what comes after it is counted.
            noticed = self.look() or noticed
        self._paused = True
        return noticed

    def resume(
        self, transactions: int | None, entries: Mapping[Family, Mapping[str, int]] | None = None
    ) -> str:
        told = self._touching() if self._listens else None
        self._listener.hear()
        now = self._listener.generation()
        others = generations(self._generation, now) - (transactions or 0)
        self._generation, self._touched, self._paused = now, "", False
        if transactions is None or others == 0:
            return ""
        self._neighbour = True
        if told is not None and told <= transactions:
            # All that the table saw was ours.
            return ""
        return f"{others} transactions of others during a sync"

    def _touching(self) -> int | None:
        """How many transactions on the table have been told of; None when some were not."""
        self._take_in()
        found, lost = self._heard, self._lost
        self._heard, self._lost = [], False
        if lost:
            return None
        count, touched = 0, False
        for event in found:
            if event.kind is not Kind.NEWGEN:
                touched = touched or bool(self._concern(event))
                continue
            count += touched
            touched = False
        return count

    def harm(self) -> Harm:
        # The mode is read as a whole.
        return None

    def close(self) -> None:
        self._listener.close()

    def _look(self) -> str:
        found, lost = self._listener.heard()
        if lost:
            self._generation, self._touched = self._listener.generation(), ""
            return "more changes of rules than could be told"
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
        return noticed

    def _concern(self, event: Event) -> str:
        if _VERSIONS.get(event.family) not in self._families or event.table != TABLE:
            return ""
        return f"{event.kind.name} {event.table} {event.chain}".rstrip()
