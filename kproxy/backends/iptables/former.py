"""What rules found in the kernel do for UDP: the memory that survives a restart. Pure.

The rules of a proxy that ran here before, ours or kube-proxy's own, name every way in that it
served and every endpoint that it chose. Flows that they made are ours to clean; nobody else's are.
"""

from __future__ import annotations

import re

from kproxy.backends.iptables import chains
from kproxy.backends.iptables.held import Held
from kproxy.backends.xtables.rules import Table
from kproxy.core.stale_flows import Former

#: As the save tool prints them, ours and kube-proxy's alike.
_VIP = re.compile(r"-d ([0-9a-f.:]+)/(?:32|128) -p udp .*-m udp --dport (\d+) -j KUBE-").search
_NODE_PORT = re.compile(r" -p udp .*-m udp --dport (\d+) -j KUBE-").search
_ENDPOINT = re.compile(r" -p udp .*--to-destination \[?([0-9a-f.:]+?)\]?:(\d+)(?: |$)").search


def former(held: Held) -> Former:
    """The ways in and the endpoints of UDP service ports."""
    nat = held.tables.get(Table.NAT, {})
    vips = map(_VIP, nat.get(chains.SERVICES, "").splitlines())
    node_ports = map(_NODE_PORT, nat.get(chains.NODE_PORTS, "").splitlines())
    endpoints = (
        _ENDPOINT(row)
        for chain, text in nat.items()
        if chain.startswith(chains.ENDPOINT) and " -p udp " in text
        for row in text.splitlines()
    )
    return Former(
        vips=frozenset((found[1], int(found[2])) for found in vips if found),
        node_ports=frozenset(int(found[1]) for found in node_ports if found),
        endpoints=frozenset((found[1], int(found[2])) for found in endpoints if found),
    )
