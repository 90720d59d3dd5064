"""Other programs in our network namespace: what they change, and what earlier proxies left.

A change of our rules is noticed within half a second, and where it was is remembered until it is
mended; what serves in another mode or variant is swept away when our own rules stand.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from kproxy import logs
from kproxy.backends import registry
from kproxy.backends.base import Harm, Watch, worse
from kproxy.core.objects import Family
from kproxy.errors import KernelError, KproxyError

_log = logs.get("others")


class Others:
    """For the families that are served, in the namespace of the thread that makes it.

    ``noticed`` is what others did during the last sync, "" for nothing. ``spared`` are ranges in
    which virtual servers are somebody else's.
    """

    def __init__(
        self, choice: registry.Choice, families: Sequence[Family], spared: Sequence[str] = ()
    ) -> None:
        self.noticed = ""
        self._harm: Harm = {}
        #: Looks come from the loop, syncs from a thread.
        self._lock = threading.Lock()
        self._choice = choice
        self._families = families
        self._swept = False
        #: Called before anything of another mode is taken away, while both stand.
        self.before_sweep: Callable[[], None] | None = None
        #: Whether what is noticed now has been told already.
        self._told = False
        self._trouble = ""
        self._watch: Watch | None = None
        try:
            self._watch = registry.watch(choice, families, spared)
        except (KernelError, OSError) as failed:
            self._blind(failed)

    def fileno(self) -> int | None:
        """Readable when it is time to :meth:`look`; None when there is nothing to wait for."""
        return None if self._watch is None else self._watch.fileno()

    def look(self) -> str:
        """What others changed of ours, in words; "" for nothing. The caller tells it."""
        with self._lock:
            try:
                what = self._remembered("" if self._watch is None else self._watch.look())
            except KernelError as failed:
                self._blind(failed)
                return ""
            self._told = self._told or bool(what)
            return what

    def before_sync(self) -> bool:
        """Whether the kernel is not what we believe. Tells what nobody looked at before."""
        with self._lock:
            try:
                what = self._remembered("" if self._watch is None else self._watch.pause())
            except KernelError as failed:
                self._blind(failed)
                return True
            if what and not self._told:
                _log.warning("rules were changed by others", what=what, mended_in=0.0)
            return bool(what)

    @property
    def harm(self) -> Harm:
        """Where others were at work since the last sync that mended it."""
        return self._harm

    def after_sync(
        self,
        transactions: Sequence[int | None],
        entries: Mapping[Family, Mapping[str, int]],
        *,
        ok: bool,
        mended: bool,
    ) -> None:
        """``transactions`` of each family, None where that is not known; ``entries`` where they
        are, see :class:`kproxy.backends.base.Counting`. ``mended``: all :attr:`harm` was."""
        counts = [count for count in transactions if count is not None]
        known = ok and len(counts) == len(transactions)
        if ok and not self._swept:
            # While the watch pauses: what we take away ourselves is nobody else's change.
            known = not self._sweep() and known
        with self._lock:
            self._told = False
            if ok and mended:
                self._harm = {}
            try:
                watch, done = self._watch, sum(counts) if known else None
                noticed = "" if watch is None else watch.resume(done, entries if known else None)
                self.noticed = self._remembered(noticed)
            except KernelError as failed:
                self._blind(failed)

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    @property
    def swept(self) -> bool:
        """Whether nothing of another mode is left."""
        return self._swept

    def again(self) -> None:
        """Another mode may have been here."""
        self._swept = False

    def _remembered(self, noticed: str) -> str:
        if noticed and self._watch is not None:
            self._harm = worse(self._harm, self._watch.harm())
        return noticed

    def _sweep(self) -> bool:
        """Until it has worked once: a lock that is held now is not held for ever. Whether it may
        have taken something away."""
        if self.before_sweep is not None:
            self.before_sweep()
        try:
            left = registry.sweep(self._choice, self._families)
        except KproxyError as failed:
            self._tell("cannot remove what another mode left", failed)
            return True
        for choice in left:
            _log.info("removed what was left of another mode", mode=choice)
        self._swept = True
        return bool(left)

    def _blind(self, why: Exception) -> None:
        """Not closed: somebody waits for its descriptor, and it may see again."""
        self.noticed, self._harm = "", None
        self._tell("cannot watch for changes by others", why)

    def _tell(self, what: str, why: Exception) -> None:
        if str(why) != self._trouble:
            _log.warning(what, why=why)
        self._trouble = str(why)
