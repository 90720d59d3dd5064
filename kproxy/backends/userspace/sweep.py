"""What an earlier userspace mode, ours or kube-proxy's, left behind when another mode serves."""

from __future__ import annotations

from collections.abc import Collection

from kproxy.backends.userspace.cleanup import clean
from kproxy.backends.userspace.render import SYSCTLS
from kproxy.backends.xtables.door import ToolDoor, tool
from kproxy.backends.xtables.layout import Layout, Place
from kproxy.backends.xtables.localnet import KUBELET_FIREWALL, NEEDED_BY, ROUTE_LOCALNET
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.kernel import command, sysctl

_MODE = "userspace"


def sweep(family: Family, variant: Variant, standing: str, spared: Layout | None) -> bool:
    """Take its rules away; whether there were any. ``standing`` is the mode that serves now, and
    ``spared`` its layout if it stands in this variant."""
    if command.find(tool(family, variant, "save")) is None:
        return False
    other = standing != _MODE
    kept = _guarded(family, standing) if other else ()
    return clean(ToolDoor(family, variant), family, variant, spared, kept)


def _guarded(family: Family, standing: str) -> Collection[Place]:
    """The chain of the guard, where neighbours could reach 127.0.0.1 without it: route_localnet is
    on, because the mode that stands needs it or somebody else has set it."""
    name, on = ROUTE_LOCALNET
    needed = {name} if standing in NEEDED_BY else set()
    sysctl.restore(only={known for known, _ in SYSCTLS} - needed)
    if family is Family.IPV4 and sysctl.read(name) == on:
        return {(Table.FILTER, KUBELET_FIREWALL)}
    return ()
