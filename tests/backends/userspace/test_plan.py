"""What the relay is to serve for a service port, and which ports it needs."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from kproxy.backends.userspace.plan import NodePort, Service, service_of, uses_of
from kproxy.backends.userspace.render import Block
from kproxy.backends.userspace.rules import Context
from kproxy.core.objects import Protocol
from kproxy.core.policy import Use
from kproxy.core.snapshot import Endpoint, NodePortTargets, PortPlan
from tests.backends.iptables.plans import LOCAL, V4, V6, port, settings, weighed

C, L = Use.CLUSTER, Use.LOCAL


@pytest.mark.parametrize(
    ("plan", "uses"),
    [
        (port(), (C,)),
        (port(ways="cnel"), (C,)),
        (port(pods=0, local_pods=0), ()),
        (port(internal=LOCAL), (L,)),
        (port(internal=LOCAL, local_pods=0), ()),
        (port(ways="cn", external=LOCAL), (C, L)),
        (port(ways="cn", external=LOCAL, local_pods=0), (C,)),
        (port(ways="cn", internal=LOCAL), (C, L)),
        (port(ways="n", external=LOCAL), (C, L)),
        (port(ways="c", external=LOCAL), (C,)),
        (port(protocol=Protocol.UDP), (C,)),
        (port(protocol=Protocol.SCTP), ()),
    ],
)
def test_fronts_that_somebody_uses(plan: PortPlan, uses: tuple[Use, ...]) -> None:
    """One for each list that some client may use and that has somebody in it."""
    assert uses_of(plan) == uses


def served(plan: PortPlan, **targets: object) -> Service | None:
    its = NodePortTargets(**targets) if targets else NodePortTargets()  # type: ignore[arg-type]
    return service_of(plan, settings(node_port_targets=its))


def test_lists_are_indexes_into_the_endpoints() -> None:
    """Cluster and local ones among all."""
    service = served(port(ways="cn", external=LOCAL, pods=3))
    assert service is not None
    assert service.endpoints == (("10.180.0.1", 80), ("10.180.0.2", 80), ("10.180.0.3", 80))
    assert (service.cluster, service.local) == ((0, 1, 2), (0,))
    assert [front.use for front in service.fronts] == [C, L]


@pytest.mark.parametrize(
    ("weights", "told"),
    [((100, 100, 100), ()), ((30, 30, 30), ()), ((100, 5, 100), (100, 5, 100))],
)
def test_weights(weights: tuple[int, ...], told: tuple[int, ...]) -> None:
    """Only where some start slowly; rules have nothing to do with them."""
    plan = port(ways="cn", pods=3)
    service = served(weighed(plan, *weights))
    assert service is not None
    assert service.weights == told
    its = Context(V4, settings())
    assert Block(plan, its).same_rules(Block(weighed(plan, *weights), its))


def test_endpoints_that_drain_are_in_no_list() -> None:
    """They keep the UDP sessions that they have, and are chosen for nobody."""
    plan = port(protocol=Protocol.UDP)
    spared = (Endpoint("10.180.0.7", 80), plan.endpoints.all[0])
    service = served(replace(plan, endpoints=replace(plan.endpoints, spared=spared)))
    assert service is not None
    assert service.udp
    assert service.endpoints == (("10.180.0.1", 80), ("10.180.0.2", 80), ("10.180.0.7", 80))
    assert service.cluster == (0, 1)


@pytest.mark.parametrize(
    ("plan", "nothing"),
    [(port(pods=0), True), (port(pods=0, ways="n"), False), (port(protocol=Protocol.SCTP), True)],
)
def test_a_node_port_is_held_without_endpoints(plan: PortPlan, nothing: bool) -> None:
    """Nobody else may take it meanwhile; without one there is nothing to do."""
    service = served(plan)
    assert (service is None) == nothing
    if service is not None:
        assert (service.uses, service.node_port) == ((), NodePort(30080, False))


@pytest.mark.parametrize(
    ("targets", "held"),
    [
        ({}, NodePort(30080, False)),
        ({"all": False, "addresses": ("192.168.0.2",), "localhost": False},
         NodePort(30080, False, ("192.168.0.2",))),
        ({"all": False, "addresses": ("192.168.0.2",)},
         NodePort(30080, False, ("192.168.0.2", "127.0.0.1"))),
        ({"all": False, "localhost": False}, None),
    ],
)  # fmt: skip
def test_where_a_node_port_is_held(targets: dict[str, object], held: NodePort | None) -> None:
    """On the addresses that it answers on, and nowhere when there are none."""
    service = served(port(ways="n"), **targets)
    assert service is not None
    assert service.node_port == held


@pytest.mark.parametrize(
    ("annotations", "told"),
    [((), False), ((("kproxy/proxy-protocol", "v2"),), True),
     ((("kproxy/proxy-protocol", "v1"),), False)],
)  # fmt: skip
def test_manners_of_a_service(annotations: tuple[tuple[str, str], ...], told: bool) -> None:
    """Affinity and the PROXY header."""
    plan = replace(port(family=V6, affinity=10800), annotations=annotations)
    service = served(plan)
    assert service is not None
    assert (service.affinity_seconds, service.proxy_protocol) == (10800, told)
