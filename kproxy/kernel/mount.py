"""Mounts of a process that has a mount namespace of its own: for programs run inside a lab."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 1 << 19

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def own_mounts() -> None:
    """From here on this process's mounts are its own; the machine's still reach it."""
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
    _checked(_libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None), "make / a slave mount")


def bind(source: str | Path, target: str | Path) -> None:
    """``target`` shows ``source``."""
    _checked(
        _libc.mount(os.fsencode(source), os.fsencode(target), None, _MS_BIND, None),
        f"bind {source} to {target}",
    )


def sysfs(target: str | Path) -> None:
    """``target`` shows the devices of the caller's network namespace."""
    _checked(
        _libc.mount(b"sysfs", os.fsencode(target), b"sysfs", 0, None), f"mount sysfs on {target}"
    )
