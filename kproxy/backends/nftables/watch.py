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
from kproxy.kernel.transactions import Transactions, of_table


def watch(families: Iterable[Family]) -> NftablesWatch:
    """In the namespace of the calling thread."""
    return NftablesWatch(frozenset(families))


class NftablesWatch:
    """See :class:`kproxy.backends.base.Watch`."""

    def __init__(self, families: frozenset[Family]) -> None:
        self._transactions = Transactions(of_table(TABLE, families))
        self._paused = False
        #: Whether somebody else has been at work during a sync.
        self._neighbour = False
        #: Whether the sync that runs is listened to.
        self._listens = False

    def fileno(self) -> int:
        return self._transactions.fileno()

    def look(self) -> str:
        if not self._paused:
            return self._transactions.look()
        if self._listens:
            # Else the loop that waits for us would be woken again and again.
            self._transactions.tally()
        return ""

    def pause(self) -> str:
        noticed = self._transactions.look()
        # Much has to be written after damage: nobody could hear all of that.
        self._listens = self._neighbour and not noticed
        if not self._listens:
            noticed = self._transactions.pause() or noticed
        self._paused = True
        return noticed

    def resume(
        self, transactions: int | None, entries: Mapping[Family, Mapping[str, int]] | None = None
    ) -> str:
        told = self._transactions.tally() if self._listens else None
        noticed = self._transactions.resume(transactions)
        self._paused = False
        if not noticed or transactions is None:
            return ""
        self._neighbour = True
        # All that the table saw may have been ours.
        return "" if told is not None and told <= transactions else noticed

    def harm(self) -> Harm:
        # The mode is read as a whole.
        return None

    def close(self) -> None:
        self._transactions.close()
