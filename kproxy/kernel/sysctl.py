"""Sysctls of the network namespace that the calling thread is in.

Names are paths below /proc/sys with slashes (``net/ipv4/ip_forward``), because interface names
may hold dots.
"""

from __future__ import annotations

from pathlib import Path

from kproxy.errors import KernelError

_ROOT = Path("/proc/sys")


def read(name: str) -> str | None:
    """Current value without its newline; None when this kernel has no such sysctl."""
    try:
        return (_ROOT / name).read_text().strip()
    except FileNotFoundError:
        return None


def write(name: str, value: str) -> None:
    """Set a value. KernelError when the sysctl is missing or may not be written here."""
    try:
        (_ROOT / name).write_text(value)
    except OSError as error:
        raise KernelError(
            f"cannot set {name}={value}: {error.strerror}",
            hint=f"try: sysctl -w {name.replace('/', '.')}={value}",
        ) from error
