"""Names of chains, and where the base chains jump to, in IPVS mode. Pure.

Source: ``pkg/proxy/ipvs`` of Kubernetes, whose names these are. Where IPVS acts is why they stand
where they do (net/netfilter/ipvs/ip_vs_core.c)::

    from a link   nat PREROUTING ─ routing: a VIP is this node's ─ filter INPUT ─ IPVS (prio 98, 99)
    from here     mangle OUTPUT ─ nat OUTPUT ─ IPVS (-99, -98) ─ filter OUTPUT
    translated    mangle OUTPUT ─ filter OUTPUT ─ nat POSTROUTING      addressed to the endpoint now
    replies       filter FORWARD ─ IPVS (99, 100) ─ nat POSTROUTING

What the node itself sends is therefore dropped in mangle: filter OUTPUT only sees it translated.
"""

from __future__ import annotations

from kproxy.backends.xtables.layout import Layout, Place, own
from kproxy.backends.xtables.rules import Jump, Rule, Table

SERVICES = "KUBE-SERVICES"
NODE_PORT = "KUBE-NODE-PORT"
LOAD_BALANCER = "KUBE-LOAD-BALANCER"
FROM_LOOPBACK = "KUBE-FROM-LOOPBACK"
POSTROUTING = "KUBE-POSTROUTING"
MARK_MASQ = "KUBE-MARK-MASQ"
FORWARD = "KUBE-FORWARD"
PROXY_FIREWALL = "KUBE-PROXY-FIREWALL"
SOURCE_RANGES = "KUBE-SOURCE-RANGES-FIREWALL"
IPVS_FILTER = "KUBE-IPVS-FILTER"
IPVS_OUT_FILTER = "KUBE-IPVS-OUT-FILTER"
CANARY = "KUBE-PROXY-CANARY"
#: Ours, while connections are given to conntrack (:mod:`kproxy.backends.ipvs.departure`).
LEAVING = "KUBE-IPVS-LEAVING"

#: Of nat, and not this mode's: where kube-proxy's userspace mode, and ours, leads from.
PORTALS = "KUBE-PORTALS-CONTAINER"

#: Every chain of the mode: a rule may go to those before it in its table.
PLACES: tuple[Place, ...] = (
    (Table.NAT, MARK_MASQ),
    (Table.NAT, NODE_PORT),
    (Table.NAT, LOAD_BALANCER),
    (Table.NAT, FROM_LOOPBACK),
    (Table.NAT, SERVICES),
    (Table.NAT, POSTROUTING),
    (Table.NAT, CANARY),
    (Table.FILTER, SOURCE_RANGES),
    (Table.FILTER, PROXY_FIREWALL),
    (Table.FILTER, IPVS_FILTER),
    (Table.FILTER, NODE_PORT),
    (Table.FILTER, FORWARD),
    (Table.FILTER, CANARY),
    (Table.MANGLE, SOURCE_RANGES),
    (Table.MANGLE, IPVS_OUT_FILTER),
    (Table.MANGLE, CANARY),
)

#: (table, base chain, chain, comment), in the order in which they are put at the top: the last one
#: ends up first. A health check's port is open even on a VIP, so that it is asked before the filter
#: that keeps others off VIPs. They are kube-proxy's to the letter, and the chains themselves look
#: at the connection's state: a jump that kube-proxy left behind leads to the same.
_JUMPS: tuple[tuple[Table, str, str, str], ...] = (
    (Table.FILTER, "INPUT", IPVS_FILTER, "kubernetes ipvs access filter"),
    (Table.FILTER, "INPUT", PROXY_FIREWALL, "kube-proxy firewall rules"),
    (Table.FILTER, "INPUT", NODE_PORT, "kubernetes health check rules"),
    (Table.FILTER, "FORWARD", FORWARD, "kubernetes forwarding rules"),
    (Table.FILTER, "FORWARD", PROXY_FIREWALL, "kube-proxy firewall rules"),
    (Table.MANGLE, "OUTPUT", IPVS_OUT_FILTER, "kubernetes ipvs access filter"),
    (Table.NAT, "OUTPUT", SERVICES, "kubernetes service portals"),
    (Table.NAT, "PREROUTING", SERVICES, "kubernetes service portals"),
    (Table.NAT, "POSTROUTING", POSTROUTING, "kubernetes postrouting rules"),
)

#: kube-proxy's own version has this chain where we have none.
_KUBE_PROXYS: tuple[Place, ...] = ((Table.FILTER, IPVS_OUT_FILTER),)

#: Whoever is killed in between leaves them, with the chain, to the next one's first sync or sweep.
_PASSING = tuple(
    Rule(Table.MANGLE, base, Jump(LEAVING), comment="connections that another mode takes over")
    for base in ("PREROUTING", "OUTPUT")
)

LAYOUT = Layout(
    own=own(*PLACES, *_KUBE_PROXYS, (Table.MANGLE, LEAVING)),
    jumps=tuple(
        Rule(table, base, Jump(chain), comment=comment) for table, base, chain, comment in _JUMPS
    ),
    # Other programs may mark packets for masquerading.
    shared=frozenset({(Table.NAT, MARK_MASQ)}),
    passing=_PASSING,
)
