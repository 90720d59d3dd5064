"""Which capabilities this process has, and the refusal when it lacks what a command needs."""

from __future__ import annotations

from pathlib import Path

from kproxy.errors import MachineError

#: linux/capability.h
BITS = {
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_RESOURCE": 24,
}


def missing(*names: str) -> tuple[str, ...]:
    """Those of ``names`` that are not in the effective set."""
    effective = _effective()
    return tuple(name for name in names if not effective >> BITS[name] & 1)


def require(what: str, *names: str) -> None:
    """MachineError, naming ``what`` needs them, unless this process has all of ``names``."""
    lacking = missing(*names)
    if lacking:
        raise MachineError(f"{what} needs root ({', '.join(lacking)})", hint="try again with sudo")


def _effective() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0
