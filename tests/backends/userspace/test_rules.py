"""The rules of a service port: what becomes of every kind of packet, whatever their order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
from msgspec.structs import replace

from kproxy.backends.userspace import chains
from kproxy.backends.userspace.rules import Context, Draft, Found, drafts_of, finished
from kproxy.backends.xtables.rules import Dnat, Redirect, Reject
from kproxy.backends.xtables.text import line
from kproxy.core.objects import Family, Protocol, TrafficPolicy
from kproxy.core.policy import (
    EXTERNAL,
    INTERNAL,
    Client,
    Use,
    Verdict,
    verdict,
)
from kproxy.core.snapshot import NodePortTargets, NodeSettings, PortPlan, UserspaceSettings
from tests.backends.iptables.plans import (
    ADDRESSES,
    LOCAL,
    MATRIX,
    NO_LOCALHOST,
    SOME_ADDRESSES,
    V4,
    V6,
    port,
    settings,
)
from tests.backends.userspace.walk import (
    DROPPED,
    LEFT_ALONE,
    REFUSED,
    Outcome,
    Packet,
    outcome,
)

#: Who sends: (client, source, device) by family; permitted sources are in ranges of ADDRESSES.
OUTSIDE = {V4: ("203.0.113.9", "192.0.2.9"), V6: ("2001:db8:3::9", "2001:db8:9::9")}
POD = {V4: "10.180.0.9", V6: "fd00:10::9"}
LOOPBACK = {V4: "127.0.0.1", V6: "::1"}
WORDS = {Verdict.REFUSE: REFUSED, Verdict.DROP: DROPPED}


def senders(family: Family, detector: str) -> Iterator[tuple[Client, str, str, bool]]:
    """(client as the node can tell, source, device, sent here)."""
    node = ADDRESSES[family][3]
    known = detector != "none"
    everyone = detector == "all"
    yield Client.POD if known else Client.OTHER, POD[family], _pod_device(detector), False
    yield Client.NODE, node, "lo", True
    for source in OUTSIDE[family]:
        yield Client.POD if everyone else Client.OTHER, source, "eth0", False


def _pod_device(detector: str) -> str:
    return {"bridge": "cbr0", "prefix": "veth7"}.get(detector, "cali1")


def expected(plan: PortPlan, family: Family, client: Client, source: str, entry: str) -> Outcome:
    """By the core's tables alone. ``entry`` is the letter of :func:`plans.port`."""
    if plan.protocol is Protocol.SCTP:
        return REFUSED
    if entry == "c":
        use = INTERNAL[plan.internal_policy]
    else:
        use = EXTERNAL[plan.external_policy, client].use
        near = source.startswith(("203.0.113.", "2001:db8:3:")) or source == ADDRESSES[family][3]
        if entry == "l" and plan.restricted and plan.endpoints.has_any and not near:
            return DROPPED
    found = verdict(plan.endpoints, use)
    return use if found is Verdict.FORWARD else WORDS[found]


def entries(plan: PortPlan, family: Family) -> Iterator[tuple[str, str, int]]:
    """(letter, destination, port) of every way in."""
    cluster_ip, external, balancer, node, _, _ = ADDRESSES[family]
    for letter, address, there in (
        ("c", cluster_ip, plan.cluster_ip),
        ("e", external, plan.external_ips),
        ("l", balancer, plan.load_balancer_ips),
    ):
        if there:
            yield letter, address, plan.port
    if plan.node_port:
        yield "n", node, plan.node_port


@pytest.mark.parametrize("detector", ["none", "cidr", "all", "bridge", "prefix"])
def test_every_client_at_every_way_in(detector: str) -> None:
    """Policies, ranges and empty lists, for each kind of client: as the core's tables say; and no
    two rules of a chain disagree about any packet."""
    for family, plan in MATRIX:
        local = frozenset({ADDRESSES[family][3]})
        drafts = drafts_of(plan, Context(family, settings(family, detector)))
        protocol = plan.protocol.value.lower()
        for (letter, to, number), (client, source, device, here) in product(
            entries(plan, family), senders(family, detector)
        ):
            packet = Packet(source, to, number, protocol, here, device)
            seen = outcome(drafts, packet, local)
            assert seen == expected(plan, family, client, source, letter), (plan, packet)
            other = packet._replace(port=number + 1)
            assert outcome(drafts, other, local) == LEFT_ALONE


@pytest.mark.parametrize("missing", [{Use.CLUSTER}, {Use.LOCAL}, set(Use)], ids=sorted)
def test_clients_of_a_missing_front_are_refused(missing: set[Use]) -> None:
    """Nobody's packets leave with a service's address on them; those with another front have it.
    A client is dropped instead of refused only where others are by policy."""
    met = set()
    for family, plan in MATRIX:
        local = frozenset({ADDRESSES[family][3]})
        drafts = drafts_of(plan, Context(family, settings(family, "cidr")))
        protocol = plan.protocol.value.lower()
        outside = {EXTERNAL[plan.external_policy, client].use for client in Client}
        all_have_one = all(verdict(plan.endpoints, use) is Verdict.FORWARD for use in outside)
        for (letter, to, number), (client, source, device, here) in product(
            entries(plan, family), senders(family, "cidr")
        ):
            packet = Packet(source, to, number, protocol, here, device)
            wanted = expected(plan, family, client, source, letter)
            if wanted in missing or (wanted == DROPPED and letter != "c" and missing & outside):
                wanted = REFUSED if all_have_one or letter == "c" else DROPPED
            seen = outcome(drafts, packet, local, frozenset(missing))
            assert seen == wanted, (plan, packet)
            met.add(seen)
    assert {REFUSED, DROPPED} <= met


def near_sender(family: Family) -> Packet:
    node = ADDRESSES[family][3]
    return Packet(LOOPBACK[family], LOOPBACK[family], 30080, "tcp", here=True)._replace(
        source=node if family is V6 else LOOPBACK[V4]
    )


@pytest.mark.parametrize(
    ("family", "targets", "to", "seen"),
    [
        (V4, NodePortTargets(), "127.0.0.1", Use.CLUSTER),
        (V4, NodePortTargets(), "127.0.0.53", Use.CLUSTER),
        (V4, NO_LOCALHOST, "127.0.0.1", LEFT_ALONE),
        (V4, SOME_ADDRESSES, "127.0.0.1", Use.CLUSTER),
        (V4, SOME_ADDRESSES, "192.168.0.2", Use.CLUSTER),
        (V4, SOME_ADDRESSES, "192.168.0.3", LEFT_ALONE),
        (V6, NodePortTargets(), "::1", LEFT_ALONE),
        (V6, NodePortTargets(), "2001:db8::1", Use.CLUSTER),
    ],
)
def test_node_ports_answer_where_they_should(
    family: Family, targets: NodePortTargets, to: str, seen: Outcome
) -> None:
    """By the node's choice of addresses; never on ::1, and refused nowhere else."""
    local = frozenset({"192.168.0.2", "192.168.0.3", "2001:db8::1"})
    context = Context(family, settings(family, node_port_targets=targets))
    packet = near_sender(family)._replace(destination=to)
    assert outcome(drafts_of(port(family=family, ways="n"), context), packet, local) == seen
    empty = outcome(drafts_of(port(family=family, ways="n", pods=0), context), packet, local)
    assert empty == (REFUSED if seen is Use.CLUSTER else LEFT_ALONE)


def test_nobody_outside_reaches_loopback() -> None:
    """Whatever the sysctl says that would let neighbours' packets to 127.0.0.1 in."""
    drafts = drafts_of(port(ways="n"), Context(V4, settings()))
    packet = Packet("192.0.2.9", "127.0.0.1", 30080, "tcp")
    assert outcome(drafts, packet, frozenset({"192.168.0.2"})) == LEFT_ALONE


def test_an_address_stays_its_owners() -> None:
    """What one service does not serve at an address of the node is no node port of another."""
    owner = replace(
        port("owner", ways="e", local_pods=0, external=LOCAL, number=30080),
        external_ips=("192.168.0.2",),
    )
    other = port("other", ways="n")
    context, local = Context(V4, settings()), frozenset({"192.168.0.2"})
    drafts = [*drafts_of(other, context), *drafts_of(owner, context)]
    outside = Packet("192.0.2.9", "192.168.0.2", 30080, "tcp")
    assert outcome(drafts, outside, local) == DROPPED
    assert outcome(drafts, outside._replace(source=POD[V4]), local) == Use.CLUSTER
    assert outcome(drafts[: len(drafts_of(other, context))], outside, local) == Use.CLUSTER


def test_the_address_itself_is_inside_when_the_node_is() -> None:
    """A balancer address that stands on the node is the source of the node's own packets to it."""
    plan = port(ways="l", restricted=True)
    drafts = drafts_of(plan, Context(V4, settings()))
    balancer = ADDRESSES[V4][2]
    packet = Packet(balancer, balancer, 80, "tcp", here=True)
    assert outcome(drafts, packet, frozenset({balancer})) == Use.CLUSTER


CONTEXT = Context(V4, settings())


@pytest.mark.parametrize("use", list(Use))
def test_ports_of_the_relay_are_guarded(use: Use) -> None:
    """Every front has its guard; those that are entered from outside pass INPUT."""
    plan = port(ways="cn", external=TrafficPolicy.LOCAL)
    drafts = [draft for draft in drafts_of(plan, CONTEXT) if draft.front is use]
    found = Found(ports=((use, 40001),))
    rules = [rule for rule in (finished(draft, found) for draft in drafts) if rule is not None]
    by_chain = {rule.chain: rule for rule in rules if rule.dport == 40001}
    assert isinstance(by_chain[chains.RELAY_GUARD].target, Reject)
    assert chains.NODEPORT_NON_LOCAL in by_chain


def test_a_cluster_ip_alone_opens_nothing_in_input() -> None:
    """The node's own rules decide about its pods, as with forwarded packets in other modes."""
    made = {draft.rule.chain for draft in drafts_of(port(ways="c"), CONTEXT)}
    assert chains.NODEPORT_NON_LOCAL not in made


@pytest.mark.parametrize(
    ("fields", "target"),
    [
        ({}, Redirect(40001)),
        ({"local_addresses": ("192.168.0.2",)}, Dnat("192.168.0.2:40001")),
        ({"local_addresses": ("192.168.0.7",)}, Redirect(40001)),
        ({"userspace": UserspaceSettings(listen="192.168.0.9")}, Dnat("192.168.0.9:40001")),
    ],
)
def test_where_translated_packets_go(fields: dict[str, object], target: object) -> None:
    """To an address that is surely this node's; a device without one would drop what REDIRECT
    translates."""
    context = Context(V4, settings(V4, **fields))
    draft = next(one for one in drafts_of(port(), context) if one.rule.target is None)
    rule = finished(draft, Found(((Use.CLUSTER, 40001),), to=context.to))
    assert rule is not None
    assert rule.target == target


def test_ipv6_is_in_brackets() -> None:
    """In a target, an address of the other family."""
    where = NodeSettings("n", userspace=UserspaceSettings(listen="2001:db8::1"))
    context = Context(V6, where)
    draft = next(one for one in drafts_of(port(family=V6), context) if one.rule.target is None)
    rule = finished(draft, Found(((Use.CLUSTER, 40001),), to=context.to))
    assert rule is not None
    assert line(rule, V6).endswith("-j DNAT --to-destination [2001:db8::1]:40001")


def test_what_does_not_stand_has_no_rules() -> None:
    """Neither a front without a port, but for the refusals in its place, nor a node port that
    somebody else has."""
    plan = port(ways="cn")
    drafts = drafts_of(plan, CONTEXT)

    def there(found: Found) -> set[str]:
        made = (finished(draft, found) for draft in drafts)
        return {rule.chain for rule in made if rule is not None}

    both = Found(((Use.CLUSTER, 40001),))
    assert there(Found()) == {chains.PORTALS_FILTER, chains.NODEPORT_FILTER}
    assert there(Found(held=False)) == {chains.PORTALS_FILTER}
    assert there(both).isdisjoint({chains.PORTALS_FILTER, chains.NODEPORT_FILTER})
    assert chains.NODEPORT_HOST in there(both)
    assert chains.NODEPORT_HOST not in there(both._replace(held=False))
    assert chains.PORTALS_HOST in there(both._replace(held=False))


def test_a_held_udp_port_refuses_what_it_would_swallow() -> None:
    """Nobody reads it: who sends there past the node port hears so."""
    plan = port(ways="n", protocol=Protocol.UDP)
    guards = [one for one in drafts_of(plan, CONTEXT) if one.rule.chain == chains.RELAY_GUARD]
    assert [one.rule.dport for one in guards if one.held] == [30080]
    tcp = [one for one in drafts_of(port(ways="n"), CONTEXT) if one.held]
    assert chains.RELAY_GUARD not in {one.rule.chain for one in tcp}


def test_no_two_rules_are_alike() -> None:
    """A chain is a set of lines: one that stands twice could not be taken away once."""
    for family, plan in MATRIX:
        drafts: tuple[Draft, ...] = drafts_of(plan, Context(family, settings(family)))
        found = Found(((Use.CLUSTER, 40001), (Use.LOCAL, 40002)))
        rules = [rule for rule in (finished(draft, found) for draft in drafts) if rule is not None]
        rows = [line(rule, family) for rule in rules]
        assert len(rows) == len(set(rows))
