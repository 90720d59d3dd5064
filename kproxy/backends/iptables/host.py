"""What this host's iptables can do, and which variant is the host's own."""

from __future__ import annotations

from kproxy.backends.xtables.host import Feature, asks_sets, counts_packets, require, version
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family, Value
from kproxy.kernel import sysctl

_BE_LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"

#: MASQUERADE --random-fully, and restore's own -w, came with this version.
_RANDOM_FULLY_SINCE = (1, 6, 2)


class Machine(Value, frozen=True):
    """What the rules have to know of the host; see :class:`service.Context`."""

    random_fully: bool = True
    drop_invalid: bool = True
    endpoint_set: bool = True
    counters: bool = False


def machine(family: Family, variant: Variant) -> Machine:
    """Asks the tool for its version, and the calling thread's namespace for its sysctls."""
    return Machine(
        random_fully=version(family, variant) >= _RANDOM_FULLY_SINCE,
        # With tcp_be_liberal conntrack calls fewer packets INVALID, and those are better let
        # through (kubernetes issue 117924).
        drop_invalid=sysctl.read(_BE_LIBERAL) in (None, "0"),
        endpoint_set=asks_sets(family, variant),
        counters=counts_packets(family, variant),
    )


_REJECT = {Family.IPV4: "ipt_REJECT", Family.IPV6: "ip6t_REJECT"}
_COMMENT = '-m comment --comment "kproxy probe"'


def features(family: Family) -> tuple[Feature, ...]:
    """Everything that rules of ours are made of."""
    localhost = {Family.IPV4: "127.0.0.1", Family.IPV6: "[::1]"}[family]
    rows = (
        ("comments", Table.NAT, _COMMENT, "xt_comment", "NETFILTER_XT_MATCH_COMMENT"),
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
            "node ports",
            Table.NAT,
            "-m addrtype --dst-type LOCAL",
            "xt_addrtype",
            "NETFILTER_XT_MATCH_ADDRTYPE",
        ),
        (
            "destination NAT",
            Table.NAT,
            f"-p tcp -m tcp -j DNAT --to-destination {localhost}:80",
            "xt_nat",
            "NETFILTER_XT_NAT",
        ),
        ("masquerading", Table.NAT, "-j MASQUERADE", "xt_MASQUERADE", "IP_NF_TARGET_MASQUERADE"),
        ("marks", Table.NAT, "-j MARK --set-xmark 0x1/0x1", "xt_MARK", "NETFILTER_XT_MARK"),
        (
            "mark matches",
            Table.FILTER,
            "-m mark --mark 0x1/0x1",
            "xt_mark",
            "NETFILTER_XT_MARK",
        ),
        (
            "connection states",
            Table.FILTER,
            "-m conntrack --ctstate NEW",
            "xt_conntrack",
            "NETFILTER_XT_MATCH_CONNTRACK",
        ),
        ("refusals", Table.FILTER, "-j REJECT", _REJECT[family], "IP_NF_TARGET_REJECT"),
    )
    return tuple(Feature(*row) for row in rows)


def probe(family: Family, variant: Variant) -> None:
    """MachineError that names what is missing and what would give it."""
    require("iptables", family, variant, features(family))
