"""The rules that depend on this node's settings only, and the tail of KUBE-SERVICES. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from kproxy.backends.iptables import chains, endpoint_set
from kproxy.backends.iptables.counters import INVALID_DROPPED
from kproxy.backends.iptables.service import Context
from kproxy.backends.xtables.localnet import LOCALNET, LOCALNET_GUARD, ROUTE_LOCALNET
from kproxy.backends.xtables.rules import (
    Accept,
    Drop,
    Jump,
    Mark,
    Masquerade,
    Return,
    Rule,
    SetMark,
    SetMatch,
    Table,
)
from kproxy.backends.xtables.text import host
from kproxy.core.objects import Family

_NODE_PORTS_NOTE = "kubernetes service nodeports; NOTE: this must be the last rule in this chain"


def guard_rules(context: Context) -> list[Rule]:
    """What must stand in the chain that is shared with the kubelet."""
    return [LOCALNET_GUARD] if context.serves_localhost else []


def fixed_rules(context: Context) -> dict[tuple[Table, str], list[Rule]]:
    """The chains of :data:`chains.FIXED` with their rules."""
    bit = context.settings.masquerade_mark
    rules: dict[tuple[Table, str], list[Rule]] = {key: [] for key in chains.FIXED}
    rules[Table.NAT, chains.MARK_MASQ] = [
        Rule(Table.NAT, chains.MARK_MASQ, SetMark(bit, bit)),
    ]
    rules[Table.NAT, chains.POSTROUTING] = [
        Rule(Table.NAT, chains.POSTROUTING, Return(), mark=Mark(bit, bit), negated=("mark",)),
        # Cleared, because an encapsulated packet passes here once more and must not be
        # translated twice.
        Rule(Table.NAT, chains.POSTROUTING, SetMark(bit, 0)),
        Rule(
            Table.NAT,
            chains.POSTROUTING,
            Masquerade(context.random_fully),
            comment="kubernetes service traffic requiring SNAT",
        ),
    ]
    rules[Table.FILTER, chains.FORWARD] = list(_forward_rules(context, bit))
    return rules


def _forward_rules(context: Context, bit: int) -> Iterator[Rule]:
    if context.drop_invalid:
        # A reply that conntrack cannot place is not translated back: forwarded, it would reach the
        # client from an address that it never spoke to, and be answered by a reset.
        asked = SetMatch(endpoint_set.NAMES[context.family], ("src", "src"))
        counter = INVALID_DROPPED if INVALID_DROPPED in context.counted else ""
        yield Rule(
            Table.FILTER,
            chains.FORWARD,
            Drop(),
            ctstate=("INVALID",),
            sets=(asked,) if context.uses_set else (),
            counter=counter,
        )
    yield Rule(
        Table.FILTER,
        chains.FORWARD,
        Accept(),
        comment="kubernetes forwarding rules",
        mark=Mark(bit, bit),
    )
    yield Rule(
        Table.FILTER,
        chains.FORWARD,
        Accept(),
        comment="kubernetes forwarding conntrack rule",
        ctstate=("RELATED", "ESTABLISHED"),
    )


def node_port_jumps(context: Context) -> list[Rule]:
    """The end of KUBE-SERVICES in nat: what is addressed to this node, by ports."""
    targets = context.settings.node_port_targets
    family = context.family
    jump = Jump(chains.NODE_PORTS)
    if targets.all:
        unserved = {Family.IPV4: LOCALNET, Family.IPV6: "::1/128"}[family]
        spared = not context.serves_localhost
        return [
            Rule(
                Table.NAT,
                chains.SERVICES,
                jump,
                comment=_NODE_PORTS_NOTE,
                destination=unserved if spared else "",
                destination_local=True,
                negated=("destination",) if spared else (),
            )
        ]
    places = [host(address, family) for address in targets.addresses]
    if context.serves_localhost:
        places.append(LOCALNET)
    return [
        Rule(Table.NAT, chains.SERVICES, jump, comment=_NODE_PORTS_NOTE, destination=place)
        for place in places
    ]


def _serves_localhost(context: Context) -> bool:
    return context.serves_localhost


#: Sysctls that the rules need, each with its condition; route_localnet only together with the
#: guard above. Bridged traffic (net/bridge/bridge-nf-call-iptables) is the network plugin's choice.
SYSCTLS = ((*ROUTE_LOCALNET, _serves_localhost),)


def wanted_sysctls(context: Context) -> frozenset[tuple[str, str]]:
    """(name, value) of the sysctls that must be set for these settings."""
    return frozenset((name, value) for name, value, needed in SYSCTLS if needed(context))
