"""What an earlier IPVS mode, ours or kube-proxy's, left behind, taken away when another serves."""

from __future__ import annotations

from kproxy.backends.ipvs import sets
from kproxy.backends.ipvs.cleanup import clean
from kproxy.backends.ipvs.door import KernelDoor
from kproxy.backends.ipvs.sysctls import NAMES
from kproxy.backends.xtables.door import tool
from kproxy.backends.xtables.layout import Layout
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.kernel import command, dummy, sysctl
from kproxy.kernel.ipset import IpSets

_MODE = "ipvs"

#: Forwarding is what every mode needs, and the next one may not have set it itself.
_SYSCTLS = frozenset(NAMES) - {"net/ipv4/ip_forward"}


def sweep(family: Family, variant: Variant, standing: str, spared: Layout | None) -> bool:
    """Whether there was anything. ``standing`` is the mode that serves now, and ``spared`` its
    layout if it stands in this variant; where it is this mode, only rules are taken away."""
    if command.find(tool(family, variant, "save")) is None:
        return False
    # Asking for servers loads IPVS into a kernel that may never have had use for it.
    used = standing != _MODE and _was_used(family)
    door = KernelDoor(family, variant)
    found = clean(door, family, variant, spared=spared, rules_only=not used)
    if used:
        sysctl.restore(only=_SYSCTLS)
    return found


def _was_used(family: Family) -> bool:
    """Whether this mode has left more than rules: its device or a set of its own."""
    if dummy.addresses() is not None:
        return True
    with IpSets(family) as door:
        return not door.heads().keys().isdisjoint(sets.kinds(family))
