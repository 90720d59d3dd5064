"""What the objects say of a flow, so that exceptions of a mode need no tags in scenarios."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from kproxy.core.objects import Protocol, TrafficPolicy
from kproxy.core.snapshot import Endpoint, EndpointSets, PortPlan
from kproxy.lab.scenario.facts import Fact, World, known, like_of
from kproxy.lab.scenario.schema import Expect, Flow, SenderKind
from tests.backends.iptables.plans import ADDRESSES, V4, port

CLUSTER_IP, EXTERNAL, BALANCER, NODE, PODS, _ = ADDRESSES[V4]

#: Two endpoints, the first of them here.
WEB = port(ways="cnel", external=TrafficPolicy.LOCAL)
DNS = replace(port("dns", protocol=Protocol.UDP), cluster_ip="172.30.0.53", port=53)

OUTSIDE, POD, ITSELF = SenderKind.EXTERNAL, SenderKind.POD, SenderKind.NODE


def flow(to: str, number: int, kind: SenderKind = OUTSIDE, **more: object) -> Flow:
    given = {"source": "203.0.113.2", "expect": Expect(endpoints=(f"{PODS[0]}:80",)), **more}
    return Flow(from_kind=kind, to=to, port=number, **given)  # type: ignore[arg-type]


def facts(one: Flow, *plans: PortPlan, held: Flow | None = None) -> frozenset[Fact]:
    world = World(plans or (WEB, DNS), frozenset({NODE, "127.0.0.1", "::1"}))
    return known(world, one, held).facts


#: Another port of a cluster IP.
INSIDE = {Fact.OTHER_PORT, Fact.OTHER_PORT_INSIDE}

#: (about, flow, what is said of it)
TABLE: list[tuple[str, Flow, set[Fact]]] = [
    ("outside client of a VIP", flow(EXTERNAL, 80), set()),
    ("another port", flow(EXTERNAL, 81), {Fact.OTHER_PORT}),
    ("another protocol", flow(CLUSTER_IP, 80, proto=Protocol.UDP), INSIDE),
    ("the same port of another service", flow("172.30.0.53", 80), INSIDE),
    ("another port of the node", flow(NODE, 81), set()),
    ("an address of nobody", flow("192.0.2.1", 80), set()),
    ("pod to cluster IP", flow(CLUSTER_IP, 80, POD), set()),
    ("pod to external IP", flow(EXTERNAL, 80, POD), {Fact.INSIDE_LOCAL}),
    ("pod to balancer address", flow(BALANCER, 80, POD), {Fact.INSIDE_LOCAL}),
    ("node to node port", flow(NODE, 30080, ITSELF), {Fact.INSIDE_LOCAL}),
    ("outside client of a node port", flow(NODE, 30080), set()),
    ("node port on loopback", flow("127.0.0.1", 30080), {Fact.HELD_ON_LOOPBACK, Fact.ON_LOOPBACK}),
    ("another port on loopback", flow("127.0.0.2", 30081), set()),
    (
        "a forged source",
        flow(BALANCER, 80, source=EXTERNAL),
        {Fact.FROM_A_SERVICE_ADDRESS, Fact.LONE_PACKET},
    ),
    (
        "a forged source, UDP",
        flow(CLUSTER_IP, 80, source=EXTERNAL, proto=Protocol.UDP),
        {Fact.FROM_A_SERVICE_ADDRESS, *INSIDE},
    ),
    (
        "a source that is the destination",
        flow("192.0.2.1", 80, source="192.0.2.1"),
        {Fact.LONE_PACKET},
    ),
    ("a stray packet", flow("192.0.2.1", 80, source=PODS[0], flags="SA"), {Fact.STRAY_PACKET}),
    ("of nobody's endpoint", flow("192.0.2.1", 80, source="10.9.9.9", flags="SA"), set()),
    ("the node's own source", flow(CLUSTER_IP, 80, ITSELF, source=EXTERNAL), set()),
    (
        "the node's own endpoint",
        flow(CLUSTER_IP, 80, ITSELF, expect=Expect(endpoints=(f"{NODE}:80",))),
        {Fact.NODE_TO_ITSELF},
    ),
]


@pytest.mark.parametrize(("about", "one", "said"), TABLE, ids=[row[0] for row in TABLE])
def test_what_is_said_of_a_flow(about: str, one: Flow, said: set[Fact]) -> None:
    """By where it is sent and who sends it, as written in the table."""
    assert facts(one) == said


def test_local_policy_without_an_endpoint_here() -> None:
    """Nobody is here to be served by: that is no exception, inside clients get the others."""
    assert facts(flow(EXTERNAL, 80, POD), replace(WEB, endpoints=_nobody_here())) == frozenset()


def _nobody_here() -> EndpointSets:
    return replace(WEB.endpoints, local=())


def test_where_the_service_has_endpoints_here() -> None:
    """What stands for ``endpoints: local``."""
    assert known(World((WEB,), {NODE}), flow(EXTERNAL, 80, POD)).local == (f"{PODS[0]}:80",)


def test_a_held_flow_whose_service_port_went() -> None:
    """A check is judged by where the held flow was sent."""
    check = Flow(check="h", expect=Expect(alive=True))
    held = flow(EXTERNAL, 80)
    assert facts(check, held=held) == frozenset()
    assert facts(check, DNS, held=held) == {Fact.SERVICE_PORT_GONE}


@pytest.mark.parametrize(
    ("chosen", "spared", "said"),
    [
        (0, None, set()),
        (1, 0, {Fact.UDP_ENDPOINT_DRAINS}),
        (1, None, set()),
    ],
)
def test_a_held_udp_flow_whose_endpoint_drains(
    chosen: int, spared: int | None, said: set[Fact]
) -> None:
    """Chosen for nobody new, and still serving."""
    one = (Endpoint(PODS[chosen], 80),)
    kept = () if spared is None else (Endpoint(PODS[spared], 80),)
    sets = EndpointSets(cluster=one, local=None, all=one, has_any=True, spared=kept)
    held = flow("172.30.0.53", 53, proto=Protocol.UDP)
    check = Flow(check="h", expect=Expect(alive=True))
    assert facts(check, replace(DNS, endpoints=sets), held=held) == said


@pytest.mark.parametrize(
    ("to", "number", "affinity", "said"),
    [
        (CLUSTER_IP, 80, 600, False),
        (NODE, 30080, 600, True),
        (EXTERNAL, 80, 600, True),
        (NODE, 30080, None, False),
        (NODE, 30081, 600, False),
    ],
)
def test_a_client_that_comes_by_another_way_in(
    to: str, number: int, affinity: int | None, said: bool
) -> None:
    """Of a service with affinity, where it is to get the endpoint that it got elsewhere."""
    world = World((replace(WEB, affinity_seconds=affinity),), frozenset({NODE}))
    first = flow(CLUSTER_IP, 80, name="first")
    later = flow(to, number, expect=Expect(endpoints=(f"{PODS[0]}:80",), same_as="first"))
    like = like_of(later, (flow(EXTERNAL, 80), first))
    assert like is first
    assert (Fact.KNOWN_ELSEWHERE in known(world, later, like=like).facts) == said
    assert like_of(first, (flow(EXTERNAL, 80), later)) is None


def test_node_ports_of_some_addresses_are_not_held_on_loopback() -> None:
    """Another program may have the port there."""
    world = World((WEB,), frozenset({NODE, "127.0.0.1"}), everywhere=False)
    assert known(world, flow("127.0.0.1", 30080)).facts == {Fact.ON_LOOPBACK}


def test_a_flow_while_no_proxy_runs() -> None:
    """Whatever it is sent to."""
    world = World((WEB,), frozenset({NODE}), life=0)
    assert known(world, flow(EXTERNAL, 80)).facts == {Fact.PROXY_AWAY}


@pytest.mark.parametrize(
    ("proto", "life", "ended", "said"),
    [
        (Protocol.TCP, 1, (), False),
        (Protocol.TCP, 2, (1,), True),
        (Protocol.TCP, 3, (2,), False),  # it was taken over from, and goes on for those that it has
        (Protocol.TCP, 0, (), True),
        (Protocol.UDP, 2, (1,), False),
        (Protocol.UDP, 0, (1,), True),
    ],
)
def test_a_held_flow_whose_proxy_ended(
    proto: Protocol, life: int, ended: tuple[int, ...], said: bool
) -> None:
    """Begun while the first one ran: connections end with it, datagrams while there is none."""
    plan = WEB if proto is Protocol.TCP else replace(WEB, name=DNS.name)
    world = World((plan,), frozenset({NODE}), life=life, ended=ended)
    held, check = flow(EXTERNAL, 80, proto=proto), Flow(check="h", expect=Expect(alive=True))
    assert (Fact.PROXY_ENDED in known(world, check, held, life=1).facts) == said
