"""Takes IPVS mode's traces away: rules, addresses, virtual servers, sets.

Rules go first, then the addresses that lead to servers, then the servers, and at the end the sets,
which no rule asks any more. Other programs' virtual servers stay (kube-proxy takes them all away).
"""

from __future__ import annotations

import errno
from collections.abc import Collection

from kproxy.backends.ipvs import refusal, sets
from kproxy.backends.ipvs.chains import LAYOUT
from kproxy.backends.ipvs.door import Door
from kproxy.backends.ipvs.ours import ours
from kproxy.backends.xtables.cleanup import cleanup_calls
from kproxy.backends.xtables.layout import Layout
from kproxy.backends.xtables.saved import parse
from kproxy.backends.xtables.script import chunks
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.core.servers import Order, Verb
from kproxy.errors import NetlinkError


def clean(
    door: Door,
    family: Family,
    variant: Variant,
    *,
    spared: Layout | None = None,
    rules_only: bool = False,
    hosts: Collection[str] = (),
) -> bool:
    """Whether there was anything. ``spared`` is the layout of the mode that serves now in the same
    variant; ``rules_only`` leaves servers, addresses and sets to whom they belong now. ``hosts``:
    where node ports answered, beside the addresses that the node has now."""
    found = False
    for call in cleanup_calls(LAYOUT, parse(door.save()), family, variant, spared=spared):
        door.restore(chunks(call))
        found = True
    return found if rules_only else _clean_rest(door, family, hosts) or found


def _clean_rest(door: Door, family: Family, hosts: Collection[str]) -> bool:
    # kube-proxy makes its own of other sizes.
    held = door.read_sets(sets.kinds(family), any_form=True)
    members = {name: there for name, there in held.items() if there is not None}
    bound = door.addresses()
    own = (*door.host_addresses(), *hosts)
    servers = list(ours(_servers(door), members, bound or (), own, family))
    if bound is not None:
        # What is refused goes with the device, or is the other family's reason to keep it.
        door.unbind(bound)
        door.remove_device()
    if servers:
        orders = [Order(Verb.REMOVE_SERVER, server) for server in servers]
        refusal.raise_for_servers(door.send(orders), None)
    # All names: one of another kind is none of which we know members.
    door.destroy_sets(sets.kinds(family), wait=True)
    return bool(members or servers or bound is not None)


def _servers(door: Door) -> Collection[bytes]:
    """None on a kernel without IPVS, where sets and a device may be all the same."""
    try:
        return door.servers().servers
    except NetlinkError as failed:
        if failed.errno != errno.ENOENT:
            raise
        return ()
