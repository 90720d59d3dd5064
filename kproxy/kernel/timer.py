"""A timer of the kernel's as a descriptor, for who waits for descriptors (timerfd_create(2))."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_libc = ctypes.CDLL(None, use_errno=True)
_CLOCK_MONOTONIC = 1


class _Spec(ctypes.Structure):
    _fields_ = [
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("first_s", ctypes.c_long),
        ("first_ns", ctypes.c_long),
    ]


class Ticker:
    """Its descriptor becomes readable every ``seconds``."""

    def __init__(self, seconds: float) -> None:
        # The flags of timerfd are those of open(2).
        self._fd = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_CLOEXEC | os.O_NONBLOCK)
        _checked(self._fd)
        whole = int(seconds)
        part = int((seconds - whole) * 1e9)
        spec = _Spec(whole, part, whole, part)
        _checked(_libc.timerfd_settime(self._fd, 0, ctypes.byref(spec), None))

    def fileno(self) -> int:
        return int(self._fd)

    def drain(self) -> None:
        """Not readable any more, until the next tick."""
        with suppress(BlockingIOError):
            os.read(self._fd, 8)

    def close(self) -> None:
        os.close(self._fd)


def _checked(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
