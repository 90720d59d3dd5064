"""What makes node ports answer on 127.0.0.0/8, and keeps neighbours away from it. Pure.

A packet with a loopback address leaves a socket for elsewhere only where ``route_localnet`` is on,
and then neighbours may address 127.0.0.1 of this node as well: the guard stands before.
"""

from __future__ import annotations

from kproxy.backends.xtables.rules import Drop, Rule, Table

#: This node's loopback addresses.
LOCALNET = "127.0.0.0/8"

#: Shared with the kubelet, which keeps rules of its own there: never flushed by us.
KUBELET_FIREWALL = "KUBE-FIREWALL"

#: The kubelet's rule to the letter (CVE-2020-8558): only what NAT of this node sent to 127.0.0.1
#: may arrive there.
LOCALNET_GUARD = Rule(
    Table.FILTER,
    KUBELET_FIREWALL,
    Drop(),
    comment="block incoming localnet connections",
    source=LOCALNET,
    destination=LOCALNET,
    ctstate=("RELATED", "ESTABLISHED", "DNAT"),
    negated=("source", "ctstate"),
)

ROUTE_LOCALNET = ("net/ipv4/conf/all/route_localnet", "1")

#: Modes that serve node ports there by it: one of them leaves it as the one before had it.
NEEDED_BY = frozenset({"iptables", "userspace", "fastpath"})
