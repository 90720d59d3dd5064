"""Rung by a thread of the engine that has ended unasked; heard by the watch of the mode."""

from __future__ import annotations

import os
from contextlib import suppress


class Alarm:
    """One for the process: a daemon has one watch, and whichever family rings, both are looked at.

    The descriptor is made when it is first asked for, so that it belongs to the daemon and not to
    who forked it.
    """

    def __init__(self) -> None:
        self._fd = -1

    def fileno(self) -> int:
        """Readable when it has rung."""
        if self._fd < 0:
            self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return self._fd

    def ring(self) -> None:
        os.eventfd_write(self.fileno(), 1)

    def heard(self) -> bool:
        """Whether it rang since this was last asked."""
        with suppress(BlockingIOError):
            return os.eventfd_read(self.fileno()) > 0
        return False


ALARM = Alarm()
