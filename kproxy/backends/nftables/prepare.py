"""The privileged part of nftables mode, done ahead: there is none, it sets no sysctl."""

from __future__ import annotations

from kproxy.backends.nftables.apply import NftablesBackend
from kproxy.core.snapshot import Snapshot


def prepare(backend: NftablesBackend, snapshot: Snapshot) -> tuple[tuple[str, str], ...]:
    """No sysctl was set; MachineError when the kernel cannot do it at all."""
    backend.probe()
    return ()
