"""In the daemon's event loop: waits for what others change, and asks for the sync that mends it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from kproxy import logs
from kproxy.others import Others
from kproxy.repairs import Repairs
from kproxy.sync import Schedule

_log = logs.get("others")


class Mender:
    """``wake`` is called when the schedule has something new. Made in the event loop's thread."""

    def __init__(self, others: Others, schedule: Schedule, wake: Callable[[], None]) -> None:
        self._others = others
        self._schedule = schedule
        self._wake = wake
        self._repairs = Repairs()
        self._loop = asyncio.get_running_loop()
        self._descriptor = others.fileno()
        if self._descriptor is not None:
            self._loop.add_reader(self._descriptor, self._look)

    def synced(self, now: float, *, seconds: float, mended: bool) -> None:
        """A sync of so many seconds ended; ``mended``: all went well, and the kernel was read
        wherever others were known to have been."""
        if mended:
            self._repairs.mended(now, seconds)
        if what := self._others.noticed:
            self._mend(what)

    def close(self) -> None:
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            self._descriptor = None

    def _look(self) -> None:
        if what := self._others.look():
            self._mend(what)

    def _mend(self, what: str) -> None:
        now = time.monotonic()
        told = self._repairs.pending
        due = self._repairs.noticed(now)
        if not told:
            _log.warning("rules were changed by others", what=what, mended_in=max(0.0, due - now))
        self._schedule.mend(due)
        self._wake()
