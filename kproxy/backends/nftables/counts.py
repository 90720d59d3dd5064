"""How much of nftables mode is in force: what a metric shows. Pure."""

from __future__ import annotations

from kproxy.backends.nftables.render import Desired


def objects(desired: Desired) -> dict[str, int]:
    """Rules, and elements of sets and maps."""
    common = sum(map(len, desired.common.values()))
    rules = sum(len(chain.rules) for chain in desired.chains.values())
    return {"rules": rules, "elements": desired.own + len(desired.shared) + common}
