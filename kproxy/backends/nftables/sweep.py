"""What an earlier nftables mode left behind: ours when another mode serves, kube-proxy's always."""

from __future__ import annotations

from contextlib import closing

from kproxy.backends.nftables.door import KUBE_PROXYS, NftDoor
from kproxy.backends.nftables.rules import TABLE
from kproxy.core.objects import Family


def sweep(family: Family, standing: str) -> bool:
    """Take it away; whether there was anything. ``standing`` is the mode that serves now."""
    tables = (KUBE_PROXYS,) if standing == "nftables" else (TABLE, KUBE_PROXYS)
    with closing(NftDoor(family)) as door:
        # No short cut: each of them has to go.
        return any(list(map(door.delete, tables)))
