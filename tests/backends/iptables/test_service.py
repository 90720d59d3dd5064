"""Rules of service ports do what core/policy.py says, for every shape of service port."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kproxy.backends.iptables import chains
from kproxy.backends.iptables.render import render_rules
from kproxy.backends.iptables.service import Context, service_rules
from kproxy.backends.iptables.walk import Fate, Packet, Walker
from kproxy.backends.xtables.rules import Drop, Goto, Jump, Recent, Reject, Rule, Table
from kproxy.core.objects import Family, Protocol
from kproxy.core.policy import Client, Entry, Use, Verdict, treatment, verdict
from kproxy.core.snapshot import PortPlan
from tests.backends.iptables.plans import (
    ADDRESSES,
    DETECTORS,
    LOCAL,
    MATRIX,
    V4,
    V6,
    context,
    port,
    settings,
    snapshot,
)

OUTSIDE = {V4: "203.0.113.9", V6: "2001:db8:3::9"}
#: A pod of this node that is no endpoint.
POD = {V4: "10.180.0.99", V6: "fd00:10::99"}


#: Endpoint -> masqueraded, for every one that chance may choose, and what becomes of the packet.
Outcome = tuple[dict[str, bool], set[Fate]]


def walker(plan: PortPlan, its: Context) -> Callable[[Packet], Outcome]:
    """Sends first packets through the rules of one service port."""
    whole = snapshot(plan, family=its.family, settings_=its.settings)
    walk = Walker(render_rules(whole, its), its.settings.addresses).walk

    def outcome(packet: Packet) -> Outcome:
        ways = walk(packet).outcomes
        ends = {way.endpoint: way.masquerade for way in ways if way.fate is Fate.TRANSLATED}
        return ends, {way.fate for way in ways}

    return outcome


def coming(source: str, destination: str, port: int, device: str = "eth0") -> Packet:
    return Packet(source, destination, Protocol.TCP, port, device)


def packets(plan: PortPlan, family: Family) -> list[tuple[Entry, Client, Packet]]:
    """Every client kind to every way in."""
    node = ADDRESSES[family][3]
    ways = [(Entry.INTERNAL, plan.cluster_ip, plan.port)] if plan.cluster_ip else []
    ways += [(Entry.EXTERNAL, ip, plan.port) for ip in plan.external_ips]
    ways += [(Entry.EXTERNAL, ip, plan.port) for ip in plan.load_balancer_ips]
    if plan.node_port:
        ways.append((Entry.EXTERNAL, node, plan.node_port))
    clients = [
        (Client.POD, POD[family], "cbr0"),
        (Client.NODE, node, ""),
        (Client.OTHER, OUTSIDE[family], "eth0"),
    ]
    return [
        (entry, client, Packet(source, address, plan.protocol, number, device))
        for entry, address, number in ways
        for client, source, device in clients
    ]


#: kube-proxy has no jump from OUTPUT to KUBE-EXTERNAL-SERVICES: the node itself is not refused at
#: external addresses without endpoints, its packets go where they would go without a proxy.
UNGUARDED = {address for its in ADDRESSES.values() for address in its[1:3]}

UNRESTRICTED = [(family, plan) for family, plan in MATRIX if not plan.restricted]


@pytest.mark.parametrize("detector", ["none", "cidr", "bridge"])
@pytest.mark.parametrize("masquerade_all", [False, True])
def test_rules_follow_the_policy_table(detector: str, masquerade_all: bool) -> None:
    """Which endpoints, masqueraded or not, refused or dropped: as core.policy decides, for every
    shape of service port, every client kind and every way in."""
    seen = set()
    for family, plan in UNRESTRICTED:
        its = context(family, detector, masquerade_all=masquerade_all)
        walk = walker(plan, its)
        for entry, client, packet in packets(plan, family):
            # Without a detector nobody is known to be a pod of this node.
            told = client
            if client is Client.POD and detector == "none":
                told = Client.OTHER
            wanted = treatment(
                its.settings,
                entry,
                told,
                internal=plan.internal_policy,
                external=plan.external_policy,
            )
            what = verdict(plan.endpoints, wanted.use)
            chosen = plan.endpoints.cluster if wanted.use is Use.CLUSTER else plan.endpoints.local
            got = walk(packet)
            if (
                what is not Verdict.FORWARD
                and packet.destination in UNGUARDED
                and client is Client.NODE
            ):
                assert got == ({}, {Fate.UNTOUCHED})
            elif what is Verdict.FORWARD:
                ends = {str(end): wanted.masquerade for end in chosen or ()}
                assert got == (ends, {Fate.TRANSLATED})
            else:
                expected = {Verdict.REFUSE: Fate.REJECTED, Verdict.DROP: Fate.DROPPED}[what]
                assert got == ({}, {expected}), (plan, packet)
            seen.add((entry, told, what, wanted.use))
    assert {what for _, _, what, _ in seen} == set(Verdict)


@pytest.mark.parametrize("family", [V4, V6])
def test_endpoint_that_reaches_itself_is_masqueraded(family: Family) -> None:
    """Hairpin: only the endpoint that is its own client sees the node's address."""
    plan = port(family=family, pods=3)
    own = plan.endpoints.all[0]
    ends, _ = walker(plan, context(family))(coming(own.ip, plan.cluster_ip, 80, "cbr0"))
    assert ends == {str(end): end is own for end in plan.endpoints.all}


@pytest.mark.parametrize(
    ("source", "way", "fate"),
    [
        ("203.0.113.9", "l", Fate.TRANSLATED),
        ("203.0.113.200", "l", Fate.DROPPED),
        ("203.0.113.200", "e", Fate.TRANSLATED),
        ("203.0.113.200", "n", Fate.TRANSLATED),
        ("203.0.113.200", "c", Fate.TRANSLATED),
        ("203.0.113.7", "l", Fate.TRANSLATED),
    ],
)
def test_source_ranges_guard_balancer_addresses_only(source: str, way: str, fate: Fate) -> None:
    """Ranges hold for the load balancer's address; its own address as source is the node's packet
    and permitted, since the node is inside a range."""
    plan = port(ways="cnel", restricted=True)
    cluster_ip, external_ip, balancer, node, _, _ = ADDRESSES[V4]
    address, number = {
        "c": (cluster_ip, 80),
        "e": (external_ip, 80),
        "l": (balancer, 80),
        "n": (node, plan.node_port),
    }[way]
    assert walker(plan, context())(coming(source, address, number))[1] == {fate}


def test_balancer_as_source_is_refused_when_the_node_is_outside_the_ranges() -> None:
    """The exception for the node's own packets needs the node to be permitted."""
    plan = port(ways="cl", restricted=True)
    balancer = ADDRESSES[V4][2]
    its = context(addresses=("198.51.100.99",))
    rules = [r for r in service_rules(plan, its) if r.source == f"{balancer}/32"]
    assert rules == []


def test_restricted_without_ranges_of_the_family_lets_nobody_in() -> None:
    """All ranges were broken: closed, not open."""
    plan = port(ways="cl", restricted=True)
    values = {name: getattr(plan, name) for name in plan.__struct_fields__}
    closed = PortPlan(**{**values, "source_ranges": ()})
    got = walker(closed, context())(coming("203.0.113.9", ADDRESSES[V4][2], 80))
    assert got == ({}, {Fate.DROPPED})


@pytest.mark.parametrize("detector", sorted(DETECTORS))
def test_every_jump_has_a_chain(detector: str) -> None:
    """No rule goes to a chain that is not there, and EXT and FW chains have a way in."""
    for family, plan in MATRIX:
        its = context(family, detector)
        rules = render_rules(snapshot(plan, family=family, settings_=its.settings), its)
        there = {(rule.table, rule.chain) for rule in rules} | set(chains.FIXED + chains.DISPATCH)
        there.add((Table.FILTER, chains.KUBELET_FIREWALL))
        goes = {
            (rule.table, rule.target.chain)
            for rule in rules
            if isinstance(rule.target, Jump | Goto)
        }
        assert goes <= there
        unreached = {chain for _, chain in there - goes if chains.is_service_chain(chain)}
        # As kube-proxy does, a set gets its chain even where no address of the family needs it.
        assert not [
            chain for chain in unreached if chain.startswith((chains.EXTERNAL, chains.FIREWALL))
        ]


def test_a_detector_of_everything_masquerades_nobody() -> None:
    """Range /0: all traffic is pods', and the rule that nobody meets is left out."""
    its = context(detector="all")
    marks = [
        rule
        for rule in service_rules(port(), its)
        if rule.target == Jump(chains.MARK_MASQ) and rule.chain.startswith(chains.CLUSTER)
    ]
    assert marks == []


def test_affinity_checks_each_endpoint_before_balancing() -> None:
    """One look-up for each endpoint, then the choice; the record is made where it is translated."""
    plan = port(pods=3, affinity=100)
    rules = service_rules(plan, context())
    choice = [rule for rule in rules if rule.chain.startswith(chains.CLUSTER)]
    kinds = [rule.recent is not None for rule in choice if rule.target != Jump(chains.MARK_MASQ)]
    assert kinds == [True, True, True, False, False, False]
    records = {
        rule.chain: rule.recent
        for rule in rules
        if rule.chain.startswith(chains.ENDPOINT) and rule.recent
    }
    assert records == {chain: Recent(chain) for chain in records}
    assert len(records) == 3


def test_health_check_port_is_open_with_and_without_endpoints() -> None:
    """The answer of the health check says whether there are endpoints, so it must get through."""
    for pods in (0, 2):
        plan = port(ways="cl", external=LOCAL, pods=pods, health=32000)
        walk = walker(plan, context())
        assert walk(coming("203.0.113.9", ADDRESSES[V4][3], 32000)) == ({}, {Fate.UNTOUCHED})
        opened = [rule for rule in service_rules(plan, context()) if rule.dport == 32000]
        assert [(rule.table, rule.chain, rule.protocol) for rule in opened] == [
            (Table.FILTER, chains.NODE_PORTS, "tcp")
        ]


def test_only_own_verdicts_in_filter() -> None:
    """What is not refused or dropped goes on to other people's rules: nothing of a service is
    accepted here but its health check."""
    for family, plan in MATRIX:
        rules: list[Rule] = service_rules(plan, context(family))
        for rule in rules:
            if rule.table is Table.FILTER and rule.dport != plan.health_check_node_port:
                assert isinstance(rule.target, Reject | Drop)


def test_settings_of_tests_have_the_nodes_address() -> None:
    """The walker's idea of local addresses is the settings'."""
    assert settings().addresses == (ADDRESSES[V4][3],)
