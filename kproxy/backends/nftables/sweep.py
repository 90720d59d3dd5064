"""What an earlier nftables mode left behind when another mode serves: ours and kube-proxy's."""

from __future__ import annotations

from contextlib import closing

from kproxy.backends.nftables.door import NftDoor
from kproxy.core.objects import Family
from kproxy.kernel import command

#: The table of kube-proxy's nftables mode.
KUBE_PROXYS = "kube-proxy"


def sweep(family: Family) -> bool:
    """Take it away; whether there was anything."""
    if command.find("nft") is None:
        return False
    with closing(NftDoor(family)) as door:
        return any([door.delete(), door.delete(KUBE_PROXYS)])
