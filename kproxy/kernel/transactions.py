"""Others' transactions on nf_tables: heard while nobody writes, counted while we write ourselves.

What we write ourselves is told of as well, and telling of a rule or element costs the kernel a
page: while we write nobody listens, and afterwards the generation must have risen by exactly our
own transactions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from kproxy.core.objects import Family
from kproxy.kernel.nftables import Event, Kind, Listener, generations

#: Transactions are counted modulo 2^32: more than half of that is a number that lies behind.
_HALF = 1 << 31


def of_table(table: str, families: Collection[Family]) -> Callable[[Event], str]:
    """What a change did to the tables of one name; "" for other tables and families."""

    def concern(event: Event) -> str:
        return event.what if event.table == table and event.version in families else ""

    return concern


class Transactions:
    """Of the namespace of the thread that makes it; not for two threads at once.

    ``concern`` is shown every change that is heard of, and says what it did that matters, "" for
    nothing.
    """

    def __init__(self, concern: Callable[[Event], str]) -> None:
        self._concern = concern
        self._listener = Listener()
        #: Everything up to here has been heard, or is ours.
        self._generation = self._listener.generation()
        #: What matters of a transaction whose end has not been heard yet.
        self._touched = ""
        self._missed = False
        #: See :meth:`tally`.
        self._count: int | None = 0

    def fileno(self) -> int:
        """Readable when there is something to hear."""
        return self._listener.fileno()

    def look(self) -> str:
        """Who did what that matters since the last look, "" for nobody."""
        found, lost = self._listener.heard()
        if lost:
            self._generation, self._touched = self._listener.generation(), ""
            self._missed = True
            return "more changes of rules than could be told"
        noticed = ""
        for event in found:
            if event.kind is not Kind.NEWGEN:
                what = self._concern(event)
                self._touched = self._touched or what
                continue
            if generations(self._generation, event.generation) < _HALF:
                self._generation = event.generation
            if self._touched:
                noticed = noticed or f"{event.program} ({event.pid}) {self._touched}"
            self._touched = ""
        return noticed

    def pause(self) -> str:
        """The last look before we write: what came before is heard, what comes after it is
        counted."""
        noticed = self.look()
        self._listener.deafen()
        return self.look() or noticed

    def tally(self) -> int | None:
        """Instead of a pause, which is for those who write much: how many transactions since the
        last resumption, ours and others', did something that matters; None when not all
        was told."""
        found, lost = self._listener.heard()
        count = None if lost else self._count
        if count is not None:
            for event in found:
                if event.kind is not Kind.NEWGEN:
                    what = self._concern(event)
                    self._touched = self._touched or what
                    continue
                count += bool(self._touched)
                self._touched = ""
        self._count = count
        return count

    def resume(self, own: int | None) -> str:
        """What is said of others' transactions since the last look, beside ``own`` ones of ours;
        "" where ours are not known to the last one (None)."""
        self._listener.hear()
        now = self._listener.generation()
        others = generations(self._generation, now) - (own or 0)
        self._generation, self._touched, self._count = now, "", 0
        if own is None or others == 0:
            return ""
        self._missed = True
        return f"{others} transactions of others during a sync"

    def missed(self) -> bool:
        """Whether, since this was last asked, something was done that ``concern`` was not shown."""
        missed, self._missed = self._missed, False
        return missed

    def close(self) -> None:
        self._listener.close()
