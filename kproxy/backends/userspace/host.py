"""What this host has for userspace mode: rules that translate to a port of the node itself."""

from __future__ import annotations

from kproxy.backends.xtables import host
from kproxy.backends.xtables.host import Feature, common_features, require
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family


def features(family: Family) -> tuple[Feature, ...]:
    """Everything that the rules are made of."""
    localhost = {Family.IPV4: "127.0.0.1", Family.IPV6: "[::1]"}[family]
    rows = (
        ("port matches", Table.NAT, "-p tcp -m tcp --dport 80", "xt_tcpudp", "NETFILTER_XTABLES"),
        (
            "original sources",
            Table.NAT,
            "-m conntrack --ctorigsrc " + ("192.0.2.0/24" if family is Family.IPV4 else "::/64"),
            "xt_conntrack",
            "NETFILTER_XT_MATCH_CONNTRACK",
        ),
        (
            "destination NAT",
            Table.NAT,
            f"-p tcp -m tcp -j DNAT --to-destination {localhost}:80",
            "xt_nat",
            "NETFILTER_XT_NAT",
        ),
        (
            "redirection",
            Table.NAT,
            "-p tcp -m tcp -j REDIRECT --to-ports 80",
            "xt_REDIRECT",
            "NETFILTER_XT_TARGET_REDIRECT",
        ),
    )
    return (*common_features(family), *(Feature(*row) for row in rows))


def working_variant() -> Variant:
    """The iptables variant for this host; see :mod:`kproxy.backends.xtables.host`."""
    return host.working_variant(features)


def probe(family: Family, variant: Variant) -> None:
    """MachineError that names what is missing and what would give it."""
    require("userspace", family, variant, features(family))
