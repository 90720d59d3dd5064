"""What this host has for nftables mode, found by doing it in a scratch namespace."""

from __future__ import annotations

from contextlib import closing

from kproxy.backends.nftables import library
from kproxy.backends.nftables.door import NftDoor
from kproxy.backends.nftables.render import frame_of
from kproxy.backends.nftables.rules import ALWAYS, Fence, Pick, Spec, Treat, Way, chain_of
from kproxy.backends.nftables.script import chain_text, skeleton
from kproxy.core.objects import Family
from kproxy.core.snapshot import LocalDetector, NodeSettings, Snapshot
from kproxy.errors import ApplyError, MachineError, NetlinkError
from kproxy.kernel import netns


def probe(family: Family) -> None:
    """MachineError that names what is missing and what would give it."""
    library.require()
    try:
        with netns.fresh(), closing(NftDoor(family)) as door:
            door.run(_everything(family))
    except (ApplyError, NetlinkError) as refused:
        raise MachineError(
            f"nftables mode: {refused.what}",
            hint="a kernel (5.13 or later) with CONFIG_NF_TABLES, CONFIG_NFT_NAT, CONFIG_NFT_FIB,"
            " CONFIG_NFT_NUMGEN, CONFIG_NFT_HASH, CONFIG_NFT_REJECT and CONFIG_NFT_MASQ",
        ) from refused


def _everything(family: Family) -> str:
    """Rules of every kind."""
    settings = NodeSettings("probe", detector=LocalDetector(prefix="kp"))
    frame = frame_of(Snapshot(family=family, settings=settings, ports={}))
    picks = [
        Pick(2),
        Pick(2, by_client=True),
        Pick(2, stay=10),
        Pick(2, node=True),
        Pick(ALWAYS + 1),
    ]
    specs: list[Spec] = [*picks, Pick(2, local=True, stay=10), Fence((8, 24))]
    specs += [Treat(way, picks[0]) for way in Way]
    chains = "".join(chain_text(chain_of(spec, frame), frame) for spec in specs)
    return skeleton(frame) + chains
