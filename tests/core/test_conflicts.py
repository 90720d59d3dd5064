"""Two services that claim one address: who gets it, who is told, and what happens afterwards."""

from __future__ import annotations

from itertools import permutations

import pytest

from kproxy.core.conflicts import ClaimIndex, Spot, claims_of
from kproxy.core.events import Delta, ref_of
from kproxy.core.objects import Family, PortName, Protocol, ServiceType, TrafficPolicy
from kproxy.core.offers import offer_of
from kproxy.core.planner import Planner
from kproxy.core.tracker import Tracker
from tests.factories import make_port, make_service, make_settings

TCP, UDP = Protocol.TCP, Protocol.UDP
X = "203.0.113.7"


def plan(*services, family=Family.IPV4):
    tracker = Tracker()
    tracker.apply(Delta(tuple(services)))
    return Planner(family).plan(tracker, make_settings())


def port_of(snapshot, name, port="http", protocol=TCP):
    return snapshot.ports.get(PortName("ns1", name, port, protocol))


def cluster(name, created=0.0, ip="172.30.0.9", **fields):
    return make_service(name, ip=ip, created=created, **fields)


def balancer(name, created=0.0, number=1, **fields):
    return make_service(
        name,
        ip=f"172.30.1.{number}",
        type=ServiceType.LOAD_BALANCER,
        load_balancer_ips=(X,),
        created=created,
        **fields,
    )


def external(name, created=0.0, number=2, **fields):
    return make_service(name, ip=f"172.30.2.{number}", external_ips=(X,), created=created, **fields)


def node_port(name, created=0.0, number=3, protocol=TCP, port=30080):
    return make_service(
        name,
        ip=f"172.30.3.{number}",
        type=ServiceType.NODE_PORT,
        ports=(make_port(node_port=port, protocol=protocol),),
        created=created,
    )


def checked(name, created=0.0, number=4, port=30080):
    return make_service(
        name,
        ip=f"172.30.4.{number}",
        type=ServiceType.LOAD_BALANCER,
        external_policy=TrafficPolicy.LOCAL,
        health_check_node_port=port,
        created=created,
    )


def holders(snapshot):
    """(service, field) of the plans that hold the disputed address or port."""
    return {
        (name.name, field)
        for name, plan in snapshot.ports.items()
        for field, has in (
            ("cluster", plan.cluster_ip in ("172.30.0.9", X)),
            ("balancer", X in plan.load_balancer_ips),
            ("external", X in plan.external_ips),
            ("node port", plan.node_port == 30080),
            ("check", plan.health_check_node_port == 30080),
        )
        if has
    }


@pytest.mark.parametrize(
    ("winner", "loser", "field"),
    [
        pytest.param(
            cluster("a", 2, ip=X), balancer("b", 1), "status.loadBalancer.ingress", id="cIP > LB"
        ),
        pytest.param(cluster("a", 2, ip=X), external("b", 1), "spec.externalIPs", id="cIP > ext"),
        pytest.param(balancer("a", 2), external("b", 1), "spec.externalIPs", id="LB > ext"),
        pytest.param(cluster("b", 1), cluster("a", 2), "spec.clusterIPs", id="older cluster IP"),
        pytest.param(external("b", 1), external("a", 2, 5), "spec.externalIPs", id="older"),
        pytest.param(external("b", 9), external("a", 0, 5), "spec.externalIPs", id="dated first"),
        pytest.param(external("a", 1), external("b", 1, 5), "spec.externalIPs", id="name"),
        pytest.param(
            external("b", 1),
            external("a", 1, 5, namespace="ns2"),
            "spec.externalIPs",
            id="namespace before name",
        ),
        pytest.param(
            node_port("a", 1), node_port("b", 2, 5), "spec.ports[0].nodePort", id="node port"
        ),
        pytest.param(
            node_port("a", 1), checked("b", 2), "spec.healthCheckNodePort", id="older node port"
        ),
        pytest.param(
            checked("a", 1), node_port("b", 2), "spec.ports[0].nodePort", id="older check"
        ),
    ],
)
def test_precedence(winner, loser, field):
    """The stronger claim holds the spot, whoever comes first; the loser is named."""
    alone = holders(plan(winner))
    assert len(alone) == 1
    for order in permutations((winner, loser)):
        snapshot = plan(*order)
        assert holders(snapshot) == alone
        (refusal,) = snapshot.conflicts
        assert (refusal.kind, refusal.key, refusal.field) == ("Service", str(loser.key), field)
        assert refusal.whole is False
        assert str(winner.key) in refusal.message


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(node_port("a"), node_port("b", number=5, protocol=UDP), id="protocols"),
        pytest.param(checked("a"), node_port("b", protocol=UDP), id="a check is TCP"),
        pytest.param(
            external("a"), external("b", number=5, ports=(make_port(port=81),)), id="ports"
        ),
        pytest.param(
            node_port("a"), external("b", ports=(make_port(port=30080),)), id="node port and VIP"
        ),
        pytest.param(
            node_port("a"),
            make_service("b", ports=(make_port(node_port=30080),)),
            id="a type without node ports",
        ),
    ],
)
def test_no_conflict(one, other):
    """Different spots stand side by side."""
    assert plan(one, other).conflicts == ()


def test_loser_keeps_the_rest():
    """Only the disputed address goes; the plan and its endpoints stay."""
    snapshot = plan(
        external("a", 1),
        make_service("b", external_ips=("198.51.100.1", X, "198.51.100.2"), created=2),
    )
    port = port_of(snapshot, "b")
    assert (port.cluster_ip, port.external_ips) == (
        "172.30.0.41",
        ("198.51.100.1", "198.51.100.2"),
    )


def test_loser_of_everything_has_no_port():
    """A port with no way in left is not planned, but it is reported."""
    snapshot = plan(cluster("a", 1), cluster("b", 2))
    assert port_of(snapshot, "b") is None
    assert [refusal.key for refusal in snapshot.conflicts] == ["ns1/b"]


def test_only_the_port_in_dispute_loses():
    """A service loses an address for the port number that is taken, not for its others."""
    ports = (make_port("http", 80), make_port("alt", 81))
    snapshot = plan(external("a", 1), external("b", 2, 5, ports=ports))
    assert port_of(snapshot, "b").external_ips == ()
    assert port_of(snapshot, "b", "alt").external_ips == (X,)


def test_lost_check_is_lost_for_all_ports():
    """The health check port belongs to the service, not to one of its ports."""
    ports = (make_port("http", 80), make_port("alt", 81))
    service = make_service(
        "b",
        type=ServiceType.LOAD_BALANCER,
        external_policy=TrafficPolicy.LOCAL,
        health_check_node_port=30080,
        ports=ports,
    )
    snapshot = plan(node_port("a", 1), service)
    assert port_of(snapshot, "b").health_check_node_port == 0
    assert port_of(snapshot, "b", "alt").health_check_node_port == 0


@pytest.mark.parametrize(
    ("service", "kept"),
    [
        pytest.param(balancer("a", external_ips=(X,)), ((X,), ()), id="LB and external IP"),
        pytest.param(make_service("a", ip=X, external_ips=(X,)), ((), ()), id="own cluster IP"),
    ],
)
def test_twice_in_one_port(service, kept):
    """An address that one port has twice stands once, in its strongest field; nothing is lost."""
    snapshot = plan(service)
    port = port_of(snapshot, "a")
    assert (port.load_balancer_ips, port.external_ips) == kept
    assert snapshot.conflicts == ()


def test_two_ports_of_one_number():
    """Of two ports of one number and protocol the first stands; the second is reported."""
    ports = (make_port("x", 80), make_port("http", 80))
    snapshot = plan(external("a", ports=ports))
    assert [name.port for name in snapshot.ports] == ["x"]
    assert [refusal.field for refusal in snapshot.conflicts] == ["spec.ports[1].port"] * 2


def step(tracker, planner, *, up=(), down=()):
    tracker.apply(Delta(tuple(up), tuple(ref_of(obj) for obj in down)))
    return planner.plan(tracker, make_settings(), tracker.take())


def test_promotion():
    """The loser gets the address when the winner goes, and is named as changed."""
    tracker, planner = Tracker(), Planner(Family.IPV4)
    first, second, third = (external(n, i, i) for i, n in enumerate("abc", start=1))
    step(tracker, planner, up=(first, second, third))
    after = step(tracker, planner, down=(first,))
    assert port_of(after, "b").external_ips == (X,)
    assert after.changed == {PortName("ns1", "b", "http", TCP)}
    assert after.removed == {PortName("ns1", "a", "http", TCP)}
    assert [(it.key, "ns1/b" in it.message) for it in after.conflicts] == [("ns1/c", True)]
    again = step(tracker, planner, up=(first,))
    assert again.changed == {PortName("ns1", name, "http", TCP) for name in "ab"}
    assert port_of(again, "b").external_ips == ()


def test_whole_port_comes_back():
    """A port that had nothing left is planned when its address is free."""
    tracker, planner = Tracker(), Planner(Family.IPV4)
    first, second = cluster("a", 1), cluster("b", 2)
    step(tracker, planner, up=(first, second))
    after = step(tracker, planner, down=(first,))
    assert port_of(after, "b").cluster_ip == "172.30.0.9"
    assert after.conflicts == ()
    back = step(tracker, planner, up=(first,))
    assert back.removed == {PortName("ns1", "b", "http", TCP)}


def test_conflicts_alone_make_a_new_snapshot():
    """A claimant that gets nothing changes no port, and is reported all the same."""
    tracker, planner = Tracker(), Planner(Family.IPV4)
    before = step(tracker, planner, up=(cluster("a", 1),))
    after = step(tracker, planner, up=(cluster("b", 2),))
    assert after is not before
    assert after.ports is before.ports
    assert (after.changed, after.removed, len(after.conflicts)) == (frozenset(), frozenset(), 1)


def test_work_follows_the_change():
    """Replacing claims names only the services that share a spot with them."""
    index = ClaimIndex()
    services = [cluster(f"s{n}", ip=f"172.30.9.{n}") for n in range(1, 50)]
    for service in services:
        assert index.replace(service.key, claims_of(offer_of(service, Family.IPV4))) == set()
    rival = cluster("rival", 1, ip="172.30.9.7")
    assert index.replace(rival.key, claims_of(offer_of(rival, Family.IPV4))) == {services[6].key}
    assert index.replace(rival.key, ()) == {services[6].key}
    assert index.refusals == ()


def test_a_service_in_dispute_with_itself_touches_nobody():
    """Replacing claims names other services only."""
    index = ClaimIndex()
    service = external("a", ports=(make_port("x", 80), make_port("y", 80)))
    assert index.replace(service.key, claims_of(offer_of(service, Family.IPV4))) == set()
    assert index.lost(service.key)
    assert index.replace(service.key, ()) == set()
    assert not index.lost(service.key)


def test_no_way_in_from_outside_left():
    """External policy means nothing for a port that lost all of its external addresses."""
    snapshot = plan(external("a", 1), external("b", 2, 5, external_policy=TrafficPolicy.LOCAL))
    assert port_of(snapshot, "b").endpoints.local is None


@pytest.mark.parametrize(
    ("spot", "text"),
    [
        (Spot("192.0.2.1", TCP, 80), "192.0.2.1:80/TCP"),
        (Spot("2001:db8::1", UDP, 53), "[2001:db8::1]:53/UDP"),
        (Spot("", TCP, 30080), "30080/TCP"),
    ],
)
def test_spot_text(spot, text):
    """A spot reads as people write it."""
    assert str(spot) == text
