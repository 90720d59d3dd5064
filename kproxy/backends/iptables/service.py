"""The rules of one service port: what kube-proxy writes for it, as typed values.

Pure, and the one place that knows which rules a :class:`PortPlan` becomes.

::

    nat KUBE-SERVICES / KUBE-NODEPORTS   dispatch by address, protocol, port
      └─ KUBE-SVC or KUBE-SVL            cluster IP: masquerade?, affinity, choice by chance
      └─ KUBE-EXT                        other ways in: masquerade?, who may use which set
      └─ KUBE-FW ─ KUBE-EXT              load-balancer addresses with source ranges
           └─ KUBE-SEP                   hairpin, affinity record, DNAT
    filter                               refusals (nobody anywhere), drops (nobody allowed here)
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from kproxy.backends.iptables import chains
from kproxy.backends.iptables.counters import INVALID_DROPPED, LOCALHOST_ACCEPTED
from kproxy.backends.xtables.detector import of_others, of_pods
from kproxy.backends.xtables.localnet import LOCALNET
from kproxy.backends.xtables.rules import (
    Accept,
    Dnat,
    Drop,
    Jump,
    Recent,
    Reject,
    Rule,
    Table,
    Target,
)
from kproxy.backends.xtables.text import comment, host, probability
from kproxy.core.objects import Family, TrafficPolicy, Value
from kproxy.core.policy import EXTERNAL, INTERNAL, VERDICT, Client, Use, Verdict
from kproxy.core.snapshot import Endpoint, NodeSettings, PortPlan

_MASQUERADE = Jump(chains.MARK_MASQ)
_NAT_SERVICES = (Table.NAT, chains.SERVICES)
_FILTER_SERVICES = (Table.FILTER, chains.SERVICES)
_EXTERNAL_SERVICES = (Table.FILTER, chains.EXTERNAL_SERVICES)
_PROXY_FIREWALL = (Table.FILTER, chains.PROXY_FIREWALL)


class Context(Value, frozen=True):
    """What the rules of every service depend on besides its plan.

    ``brief``: no comments on rules of endpoints, which are most of all (large clusters).
    ``random_fully``: the tool knows that flag of MASQUERADE. ``drop_invalid``: packets that
    conntrack calls INVALID are dropped when forwarded, with ``endpoint_set`` those of endpoints
    only: rules can ask a set for them. ``counters``: rules can count with the objects of
    :mod:`kproxy.backends.iptables.counters`.
    """

    family: Family
    settings: NodeSettings
    brief: bool = False
    random_fully: bool = True
    drop_invalid: bool = True
    endpoint_set: bool = True
    counters: bool = False

    @property
    def uses_set(self) -> bool:
        """Whether a rule asks the set of endpoints."""
        return self.drop_invalid and self.endpoint_set

    @property
    def serves_localhost(self) -> bool:
        """Whether node ports answer on 127.0.0.0/8. Never on ::1: IPv6 has no route_localnet."""
        return self.family is Family.IPV4 and self.settings.node_port_targets.localhost

    @property
    def counted(self) -> tuple[str, ...]:
        """The counters that rules count with."""
        used = ((INVALID_DROPPED, self.drop_invalid), (LOCALHOST_ACCEPTED, self.serves_localhost))
        return tuple(name for name, is_used in used if is_used and self.counters)


class PortChains:
    """The chains of one service port, and which of them its endpoints call for."""

    __slots__ = (
        "cluster",
        "external",
        "external_policy",
        "firewall",
        "internal",
        "label",
        "local",
        "protocol",
    )

    def __init__(self, plan: PortPlan) -> None:
        sets = plan.endpoints
        key = chains.port_hash(plan.name)
        self.label = comment(str(plan.name))
        self.protocol = plan.protocol.value.lower()
        self.cluster = chains.CLUSTER + key if sets.cluster else ""
        self.local = chains.LOCAL + key if sets.local else ""
        self.external = chains.EXTERNAL + key if sets.has_any and plan.external else ""
        restricted = sets.has_any and plan.restricted and plan.load_balancer_ips
        self.firewall = chains.FIREWALL + key if restricted else ""
        by_use = {Use.CLUSTER: self.cluster, Use.LOCAL: self.local}
        #: Where packets to the cluster IP go, "" when nobody may take them.
        self.internal = by_use[INTERNAL[plan.internal_policy]] if sets.has_any else ""
        #: Where packets of clients outside go behind the EXT chain.
        use = EXTERNAL[plan.external_policy, Client.OTHER].use
        self.external_policy = by_use[use] if sets.has_any else ""


def dispatch_rules(plan: PortPlan, names: PortChains, context: Context) -> list[Rule]:
    """The rules that a service port adds to the chains of :data:`chains.DISPATCH`."""
    rules = list(_cluster_ip_dispatch(plan, names, context))
    rules += _vip_dispatch(plan, names, context)
    rules += _node_port_dispatch(plan, names, context)
    if plan.health_check_node_port:
        rules.append(
            Rule(
                Table.FILTER,
                chains.NODE_PORTS,
                Accept(),
                comment=f"{names.label} health check node port",
                protocol="tcp",
                dport=plan.health_check_node_port,
            )
        )
    return rules


def _cluster_ip_dispatch(plan: PortPlan, names: PortChains, context: Context) -> Iterator[Rule]:
    if not plan.cluster_ip:
        return
    address = host(plan.cluster_ip, context.family)
    if names.internal:
        place, target, note = _NAT_SERVICES, Jump(names.internal), "cluster IP"
        yield _to_address(plan, names, address, place, target, note)
    else:
        yield _to_address(plan, names, address, _FILTER_SERVICES, *_nobody(plan))


def _vip_dispatch(plan: PortPlan, names: PortChains, context: Context) -> Iterator[Rule]:
    """External IPs, then load-balancer addresses."""
    behind_firewall = names.firewall or names.external
    ways = (
        (plan.external_ips, "external IP", names.external, ""),
        (plan.load_balancer_ips, "loadbalancer IP", behind_firewall, names.firewall),
    )
    for addresses, kind, chain, firewall in ways:
        for text in addresses:
            address = host(text, context.family)
            if chain:
                yield _to_address(plan, names, address, _NAT_SERVICES, Jump(chain), kind)
            if firewall:
                # What the FW chain did not translate has no right to be here.
                note = f"traffic not accepted by {firewall}"
                yield _to_address(plan, names, address, _PROXY_FIREWALL, Drop(), note)
    if not names.external_policy:
        yield from refusals(plan, names, context)


def refusals(plan: PortPlan, names: PortChains, context: Context) -> Iterator[Rule]:
    """What becomes, at its external addresses, of packets to a service port without endpoints."""
    for text in (*plan.external_ips, *plan.load_balancer_ips):
        address = host(text, context.family)
        yield _to_address(plan, names, address, _EXTERNAL_SERVICES, *_nobody(plan))


def _to_address(
    plan: PortPlan,
    names: PortChains,
    address: str,
    place: tuple[Table, str],
    target: Target,
    note: str,
) -> Rule:
    return Rule(
        *place,
        target,
        comment=f"{names.label} {note}",
        protocol=names.protocol,
        destination=address,
        dport=plan.port,
    )


def _node_port_dispatch(plan: PortPlan, names: PortChains, context: Context) -> Iterator[Rule]:
    if not plan.node_port:
        return
    if names.external:
        jump = Rule(
            Table.NAT,
            chains.NODE_PORTS,
            Jump(names.external),
            comment=names.label,
            protocol=names.protocol,
            dport=plan.node_port,
        )
        if LOCALHOST_ACCEPTED in context.counted:
            yield replace(jump, destination=LOCALNET, counter=LOCALHOST_ACCEPTED)
        yield jump
    if not names.external_policy:
        target, why = _nobody(plan)
        yield Rule(
            Table.FILTER,
            chains.EXTERNAL_SERVICES,
            target,
            comment=f"{names.label} {why}",
            protocol=names.protocol,
            destination_local=True,
            dport=plan.node_port,
        )


_UNSERVED: dict[Verdict, tuple[Target, str]] = {
    Verdict.REFUSE: (Reject(), "has no endpoints"),
    Verdict.DROP: (Drop(), "has no local endpoints"),
}


def _nobody(plan: PortPlan) -> tuple[Target, str]:
    """What becomes of packets whose endpoint set is empty, and the comment that says why."""
    return _UNSERVED[VERDICT[plan.endpoints.has_any, False]]


def chain_rules(
    plan: PortPlan, names: PortChains, context: Context
) -> list[tuple[str, list[Rule]]]:
    """The chains of a service port, but for those of its endpoints, with the rules at their head.

    The rules that choose an endpoint follow these in KUBE-SVC and KUBE-SVL: :func:`choice_rules`.
    """
    made: list[tuple[str, list[Rule]]] = []
    if names.external:
        made.append((names.external, list(_external_rules(plan, names, context))))
    if names.firewall:
        made.append((names.firewall, list(_firewall_rules(plan, names, context))))
    for chain in (names.cluster, names.local):
        if chain:
            head = _internal_masquerade(plan, names, context) if chain == names.internal else []
            made.append((chain, head))
    return made


def _internal_masquerade(plan: PortPlan, names: PortChains, context: Context) -> list[Rule]:
    """Who reaches the cluster IP with this node's address (policy.masquerades_internal)."""
    settings = context.settings
    if not plan.cluster_ip:
        return []
    place, address = (Table.NAT, names.internal), host(plan.cluster_ip, context.family)
    rule = _to_address(plan, names, address, place, _MASQUERADE, "cluster IP")
    if settings.masquerade_all:
        return [rule]
    others = None if settings.detector is None else of_others(rule, settings.detector)
    return [] if others is None else [others]


def _external_rules(plan: PortPlan, names: PortChains, context: Context) -> Iterator[Rule]:
    """KUBE-EXT: the rows of policy.EXTERNAL for this policy."""
    note = f"{names.label} external destinations"
    chain = names.external
    if plan.external_policy is TrafficPolicy.CLUSTER:
        yield Rule(Table.NAT, chain, _MASQUERADE, comment=f"masquerade traffic for {note}")
    elif names.cluster:
        detector = context.settings.detector
        if detector is not None:
            pods = Rule(Table.NAT, chain, Jump(names.cluster), comment=f"pod traffic for {note}")
            yield of_pods(pods, detector)
        # The node picks the address that it connects to as its source when it owns it: an
        # endpoint elsewhere could not answer that.
        yield Rule(
            Table.NAT,
            chain,
            _MASQUERADE,
            comment=f"masquerade LOCAL traffic for {note}",
            source_local=True,
        )
        yield Rule(
            Table.NAT,
            chain,
            Jump(names.cluster),
            comment=f"route LOCAL traffic for {note}",
            source_local=True,
        )
    if names.external_policy:
        yield Rule(Table.NAT, chain, Jump(names.external_policy))


def _firewall_rules(plan: PortPlan, names: PortChains, context: Context) -> Iterator[Rule]:
    """KUBE-FW: permitted sources go on; what falls out undone is dropped in filter."""
    note = f"{names.label} loadbalancer IP"
    permitted = list(plan.source_ranges)
    if _contains_node(plan.source_ranges, context.settings.addresses):
        # A load-balancer address may stand on this node as well: the node's own packets to it
        # then have it as their source.
        permitted += [host(address, context.family) for address in plan.load_balancer_ips]
    for source in permitted:
        yield Rule(Table.NAT, names.firewall, Jump(names.external), comment=note, source=source)
    dropped = f"other traffic to {names.label} will be dropped by {chains.PROXY_FIREWALL}"
    yield Rule(Table.NAT, names.firewall, comment=dropped)


def _contains_node(ranges: Sequence[str], addresses: Sequence[str]) -> bool:
    if not addresses:
        return False
    node = ipaddress.ip_address(addresses[0])
    return any(node in ipaddress.ip_network(text) for text in ranges)


def choice_rules(
    plan: PortPlan, names: PortChains, chain: str, endpoints: Sequence[Endpoint], context: Context
) -> list[Rule]:
    """Affinity first, then each endpoint with its chance (:func:`chances`)."""
    ends = [str(endpoint) for endpoint in endpoints]
    targets = list(zip(ends, chains.endpoint_chains(plan.name, ends), strict=True))
    rules = []
    if plan.affinity_seconds is not None:
        rules += [affinity_rule(plan, names, chain, *each, context) for each in targets]
    for (end, target), chance in zip(targets, chances(endpoints), strict=True):
        rules.append(choice_rule(names, chain, end, target, chance, context))
    return rules


def chances(endpoints: Sequence[Endpoint]) -> list[str]:
    """The probability of each, should none before it have been chosen; "" for the last: in any
    case. That is its weight's part of what is left: 1/n, 1/(n-1), … where all weigh the same."""
    weights = [endpoint.weight for endpoint in endpoints]
    left = sum(weights)
    found = []
    for weight in weights[:-1]:
        found.append(probability(left, weight))
        left -= weight
    return [*found, ""] if weights else []


def affinity_rule(
    plan: PortPlan, names: PortChains, chain: str, end: str, target: str, context: Context
) -> Rule:
    """To the endpoint that the client was sent to not too long ago."""
    rule = choice_rule(names, chain, end, target, "", context)
    return replace(rule, recent=Recent(target, plan.affinity_seconds))


def choice_rule(
    names: PortChains, chain: str, end: str, target: str, chance: str, context: Context
) -> Rule:
    """To an endpoint, with a chance; "": in any case."""
    comment_ = "" if context.brief else f"{names.label} -> {end}"
    return Rule(Table.NAT, chain, Jump(target), comment=comment_, probability=chance)


def endpoint_rules(
    plan: PortPlan, names: PortChains, chain: str, source: str, destination: str, context: Context
) -> list[Rule]:
    """KUBE-SEP: an endpoint that reaches itself is masqueraded, else it would answer itself
    directly; then the client is put on the list of the affinity, and translated."""
    note = "" if context.brief else names.label
    record = Recent(chain) if plan.affinity_seconds is not None else None
    return [
        Rule(Table.NAT, chain, _MASQUERADE, comment=note, source=source),
        Rule(
            Table.NAT,
            chain,
            Dnat(destination),
            comment=note,
            protocol=names.protocol,
            recent=record,
        ),
    ]


def service_rules(plan: PortPlan, context: Context) -> list[Rule]:
    """Every rule of one service port, chain by chain."""
    names = PortChains(plan)
    sets = {names.cluster: plan.endpoints.cluster, names.local: plan.endpoints.local}
    rules = dispatch_rules(plan, names, context)
    for chain, head in chain_rules(plan, names, context):
        rules += head
        rules += choice_rules(plan, names, chain, sets.get(chain) or (), context)
    if names.cluster or names.local:
        ends = [str(endpoint) for endpoint in plan.endpoints.all]
        made = chains.endpoint_chains(plan.name, ends)
        for endpoint, end, chain in zip(plan.endpoints.all, ends, made, strict=True):
            source = host(endpoint.ip, context.family)
            rules += endpoint_rules(plan, names, chain, source, end, context)
    return rules
