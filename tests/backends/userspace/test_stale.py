"""UDP flows against relay ports: which of them a plan contradicts, and where to look at all."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from kproxy.backends.userspace.plan import uses_of
from kproxy.backends.userspace.stale import RelayFlows
from kproxy.core.objects import Family, PortName, Protocol
from kproxy.core.policy import Use
from kproxy.core.snapshot import PortPlan, Snapshot
from kproxy.core.stale_flows import WHOLE, Flow, Former, Part
from kproxy.core.ways import packed, packed_port
from tests.backends.iptables.plans import ADDRESSES, LOCAL, V4, V6, port, settings, snapshot
from tests.backends.iptables.plans import successor as after

CLUSTER_IP, EXTERNAL, BALANCER, NODE, _, _ = ADDRESSES[V4]
OUTSIDE, POD = "192.0.2.9", "10.180.0.9"
#: Relay ports by list.
PORTS = {Use.CLUSTER: 40001, Use.LOCAL: 40002}


def dns(**shape: object) -> PortPlan:
    return port("dns", protocol=Protocol.UDP, number=53, **shape)  # type: ignore[arg-type]


class World:
    """A judge, and a relay that serves what the plan asks for."""

    def __init__(self, now: Snapshot, family: Family = V4) -> None:
        self.now = now
        self.open: dict[PortName, tuple[tuple[Use, int], ...]] = {}
        self.judge = RelayFlows(family, lambda: self.open)
        self.judge.plan(now, (NODE, "127.0.0.1", "2001:db8::1", "::1"))
        self.apply(now)
        self.judge.cleaned()

    def apply(self, now: Snapshot, **ports: int) -> None:
        self.open = {
            name: tuple((use, ports.get(use.value, PORTS[use])) for use in uses_of(plan))
            for name, plan in now.ports.items()
            if uses_of(plan)
        }

    def move(self, now: Snapshot, **ports: int) -> None:
        self.judge.plan(now, (NODE, "127.0.0.1", "2001:db8::1", "::1"))
        self.apply(now, **ports)

    def stale(self, *flows: Flow) -> list[int]:
        return self.judge.judge(flows)


def flow(to: str, number: int, relay: int, *, source: str = POD, at: str = NODE) -> Flow:
    """As conntrack has it: the reply's source is where it was sent."""
    return (
        packed(source), packed(to), packed_port(number), packed(at), packed(source),
        packed_port(relay),
    )  # fmt: skip


EVERY = dns(ways="cnel", external=LOCAL, restricted=True)


@pytest.mark.parametrize(
    ("about", "one", "stale"),
    [
        ("cluster IP", flow(CLUSTER_IP, 53, 40001), False),
        ("by a loopback address of the node", flow(CLUSTER_IP, 53, 40001, at="127.0.0.1"), False),
        ("another relay port", flow(CLUSTER_IP, 53, 40009), True),
        ("made before the service stood", flow(CLUSTER_IP, 53, 53, at=CLUSTER_IP), True),
        ("sent to an endpoint by another mode", flow(CLUSTER_IP, 53, 40001, at="10.180.0.1"), True),
        ("external IP, from outside", flow(EXTERNAL, 53, 40002, source=OUTSIDE), False),
        ("the list of others", flow(EXTERNAL, 53, 40001, source=OUTSIDE), True),
        ("external IP, from a pod", flow(EXTERNAL, 53, 40001), False),
        ("a pod by the local list", flow(EXTERNAL, 53, 40002), True),
        ("node port, from the node", flow(NODE, 30080, 40001, source=NODE), False),
        ("node port on loopback", flow("127.0.0.1", 30080, 40001, source="127.0.0.1"), False),
        ("balancer, permitted", flow(BALANCER, 53, 40002, source="203.0.113.9"), False),
        ("balancer, not permitted", flow(BALANCER, 53, 40002, source=OUTSIDE), True),
        ("another port", flow(CLUSTER_IP, 54, 40001), False),
        ("the relay port itself", flow(NODE, 40001, 40001), False),
        ("somebody else's translation", flow("198.18.0.1", 53, 40001), False),
    ],
)
def test_what_is_stale(about: str, one: Flow, stale: bool) -> None:
    """By who is served where; what is not a way in of ours is nobody's to cut."""
    assert World(snapshot(EVERY)).stale(one) == ([0] if stale else [])


def test_a_client_that_cannot_be_told() -> None:
    """Pods known by their device: either list may be right, no other port is."""
    world = World(snapshot(EVERY, settings_=settings(V4, "bridge")))
    flows = [flow(EXTERNAL, 53, relay, source=OUTSIDE) for relay in (40001, 40002, 40003)]
    assert world.stale(*flows) == [2]


def test_ipv6() -> None:
    """The same with longer addresses."""
    cluster_ip, *_, node, _, _ = ADDRESSES[V6]
    plan = port("dns", V6, protocol=Protocol.UDP, number=53)
    world = World(snapshot(plan, family=V6), V6)
    source = "fd00:10::9"
    right = flow(cluster_ip, 53, 40001, source=source, at=node)
    wrong = flow(cluster_ip, 53, 53, source=source, at=cluster_ip)
    assert world.stale(right, wrong) == [1]


NOW = snapshot(dns(), port("web", ways="cn"))


@pytest.mark.parametrize(
    ("about", "plan", "looks"),
    [
        ("an endpoint comes", dns(pods=3), False),
        ("affinity", dns(affinity=60), False),
        ("a port of TCP", port("web", ways="c"), False),
        ("the last endpoint goes", dns(pods=0), True),
        ("another list serves", dns(internal=LOCAL), True),
        ("an external IP", dns(ways="ce"), True),
    ],
)
def test_where_it_looks(about: str, plan: PortPlan, looks: bool) -> None:
    """Nowhere when only endpoints differ: the relay knows of them."""
    world = World(NOW)
    world.move(after(NOW, plan))
    assert bool(world.judge.parts()) == looks


def test_only_what_changed_is_looked_at() -> None:
    """The flows to one address and port."""
    world = World(NOW)
    world.move(after(NOW, dns(ways="ce")))
    assert world.judge.parts() == [Part(packed(EXTERNAL), packed_port(53))]
    many = [replace(dns(), name=PortName("n", f"s{n}", "", Protocol.UDP), port=100 + n)
            for n in range(9)]  # fmt: skip
    world.move(after(world.now, *many))
    assert world.judge.parts() == WHOLE


def test_a_service_that_went() -> None:
    """Its flows to the port that it had go; later ones are the next owner's."""
    world = World(NOW)
    world.move(after(NOW, removed=(dns().name,)))
    flows = flow(CLUSTER_IP, 53, 40001), flow(CLUSTER_IP, 53, 40005)
    assert world.stale(*flows) == [0]
    world.judge.cleaned()
    assert world.stale(*flows) == []


def test_a_front_with_another_port() -> None:
    """It was closed and opened again: what led to the old port leads nowhere."""
    world = World(NOW)
    empty = after(NOW, dns(pods=0))
    world.move(empty)
    world.move(after(empty, dns()), cluster=40007)
    assert world.stale(flow(CLUSTER_IP, 53, 40001), flow(CLUSTER_IP, 53, 40007)) == [0]


def test_rules_of_an_earlier_life() -> None:
    """Ways in that nobody wants any more, and the relay ports that they led to."""
    world = World(NOW)
    world.judge.remember(Former(
        vips=frozenset({("172.30.0.77", 53)}), node_ports=frozenset({30099}),
        endpoints=frozenset({("", 40070)}),
    ))  # fmt: skip
    flows = (
        flow("172.30.0.77", 53, 40070), flow(NODE, 30099, 40070), flow("172.30.0.77", 53, 53),
        flow("172.30.0.78", 53, 40070),
    )  # fmt: skip
    assert world.judge.parts() == WHOLE
    assert world.stale(*flows) == [0, 1]


def test_a_full_look_is_asked_for() -> None:
    """When rules may have been out of force, unless there is nothing to find."""
    world = World(NOW)
    assert world.judge.parts() == []
    world.judge.suspect_all()
    assert world.judge.parts() == WHOLE
    tcp_only = World(snapshot(port("web")))
    tcp_only.judge.suspect_all()
    assert tcp_only.judge.parts() == ()
