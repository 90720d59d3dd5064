"""What this host's iptables can do, and which variant is the host's own."""

from __future__ import annotations

from kproxy.backends.xtables.host import (
    Feature,
    asks_sets,
    common_features,
    counts_packets,
    drops_invalid,
    knows_random_fully,
    require,
)
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family, Value


class Machine(Value, frozen=True):
    """What the rules have to know of the host; see :class:`service.Context`."""

    random_fully: bool = True
    drop_invalid: bool = True
    endpoint_set: bool = True
    counters: bool = False


def machine(family: Family, variant: Variant) -> Machine:
    """Asks the tool for its version, and the calling thread's namespace for its sysctls."""
    return Machine(
        random_fully=knows_random_fully(family, variant),
        drop_invalid=drops_invalid(),
        endpoint_set=asks_sets(family, variant),
        counters=counts_packets(family, variant),
    )


def features(family: Family) -> tuple[Feature, ...]:
    """Everything that rules of ours are made of."""
    localhost = {Family.IPV4: "127.0.0.1", Family.IPV6: "[::1]"}[family]
    rows = (
        ("port matches", Table.NAT, "-p tcp -m tcp --dport 80", "xt_tcpudp", "NETFILTER_XTABLES"),
        (
            "load balancing",
            Table.NAT,
            "-m statistic --mode random --probability 0.5",
            "xt_statistic",
            "NETFILTER_XT_MATCH_STATISTIC",
        ),
        (
            "session affinity",
            Table.NAT,
            "-m recent --name KP --set",
            "xt_recent",
            "NETFILTER_XT_MATCH_RECENT",
        ),
        (
            "destination NAT",
            Table.NAT,
            f"-p tcp -m tcp -j DNAT --to-destination {localhost}:80",
            "xt_nat",
            "NETFILTER_XT_NAT",
        ),
    )
    return (*common_features(family), *(Feature(*row) for row in rows))


def probe(family: Family, variant: Variant) -> None:
    """MachineError that names what is missing and what would give it."""
    require("iptables", family, variant, features(family))
