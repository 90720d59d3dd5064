"""What an earlier fastpath mode left behind when another mode serves."""

from __future__ import annotations

from kproxy.backends.fastpath.apply import clean
from kproxy.backends.fastpath.door import SteerDoor
from kproxy.backends.xtables.localnet import NEEDED_BY, ROUTE_LOCALNET
from kproxy.core.objects import Family
from kproxy.kernel import command


def sweep(family: Family, standing: str) -> bool:
    """Take it away; whether there was anything. Its connections end. ``standing`` is the mode that
    serves now."""
    if command.find("nft") is None:
        return False
    kept = {ROUTE_LOCALNET[0]} if standing in NEEDED_BY else set()
    return clean(SteerDoor(family), kept)
