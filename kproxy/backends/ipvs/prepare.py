"""The privileged part of IPVS mode, done ahead: what ``kproxy run --init-only`` leaves behind."""

from __future__ import annotations

from kproxy.backends.ipvs import sysctls
from kproxy.backends.ipvs.apply import IpvsBackend
from kproxy.core.snapshot import Snapshot


def prepare(backend: IpvsBackend, snapshot: Snapshot) -> tuple[tuple[str, str], ...]:
    """Set the sysctls that ``snapshot``'s settings need, and load IPVS where it is a module.

    Returns those that were set as (name, value); the ports of ``snapshot`` do not matter. Both
    families need the same ones: for the second there is nothing to do.
    """
    door = backend.door
    wanted = sorted(sysctls.wanted(snapshot.settings.ipvs, backend.machine.kernel))
    done = []
    for name, value in wanted:
        if door.sysctl(name) != value:
            door.set_sysctl(name, value)
            done.append((name, value))
    return tuple(done)
