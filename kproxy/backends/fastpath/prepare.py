"""The privileged part of fastpath mode, done ahead: what ``kproxy run --init-only`` leaves.

Only what is the node's and harmless without the mode. All else belongs to the device and the table
that the daemon makes, ``route_localnet`` too: it stands behind a guard there.
"""

from __future__ import annotations

from kproxy.backends.fastpath.apply import FastpathBackend
from kproxy.backends.fastpath.steer import LIBERAL, RESERVED
from kproxy.core.snapshot import Snapshot
from kproxy.kernel import sysctl


def prepare(backend: FastpathBackend, snapshot: Snapshot) -> tuple[tuple[str, str], ...]:
    """The sysctls that were set, as (name, value)."""
    missing = sorted({RESERVED, LIBERAL[0]} - backend.door.sysctls())
    backend.door.set(missing)
    return tuple((name, sysctl.read(name) or "") for name in missing)
