"""Which health check node ports a family's Snapshots ask for."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.core.events import Delta, ref_of
from kproxy.core.objects import (
    ClusterObject,
    Family,
    ObjectKey,
    Protocol,
    Service,
    ServiceType,
    SlicePort,
    TrafficPolicy,
)
from kproxy.core.planner import Planner
from kproxy.core.snapshot import NodePortTargets, NodeSettings
from kproxy.core.tracker import Tracker
from kproxy.health.roll import Asked, Roll
from tests.factories import NODE, make_endpoint, make_port, make_service, make_settings, make_slice

V4, V6 = Family.IPV4, Family.IPV6
ONE = ObjectKey("ns1", "svc1")


def balanced(name: str = "svc1", number: int = 32000, **fields: Any) -> Service:
    asked = {
        "type": ServiceType.LOAD_BALANCER,
        "external_policy": TrafficPolicy.LOCAL,
        "health_check_node_port": number,
    }
    return make_service(name, **asked | fields)


def here(address: str, **fields: Any) -> Any:
    return make_endpoint(address, NODE, **fields)


class World:
    """A tracker with its planner, and the roll that follows."""

    def __init__(self, family: Family = V4) -> None:
        self.settings: NodeSettings = make_settings()
        self.tracker = Tracker()
        self.planner = Planner(family)
        self.roll = Roll(family)

    def put(self, *objects: ClusterObject) -> set[int]:
        self.tracker.apply(Delta(tuple(objects)))
        return self.follow()

    def remove(self, *objects: ClusterObject) -> set[int]:
        self.tracker.apply(Delta((), tuple(map(ref_of, objects))))
        return self.follow()

    def follow(self) -> set[int]:
        snapshot = self.planner.plan(self.tracker, self.settings, self.tracker.take())
        return self.roll.take(snapshot)

    @property
    def counts(self) -> dict[int, int]:
        return {number: asked.endpoints for number, asked in self.roll.asked.items()}


@pytest.mark.parametrize(
    ("endpoints", "count"),
    [
        ((), 0),
        ((here("10.180.0.1"),), 1),
        ((here("10.180.0.1"), here("10.180.0.2")), 2),
        ((make_endpoint("10.180.0.1", "node2"),), 0),
        ((here("10.180.0.1", ready=False),), 0),
        ((here("10.180.0.1", ready=False, serving=True, terminating=True),), 0),
        ((here("10.180.0.1", ready=False, serving=True, terminating=True), here("10.180.0.2")), 1),
    ],
    ids=["none", "one", "two", "elsewhere", "not ready", "draining", "draining beside a ready one"],
)  # fmt: skip
def test_ready_endpoints_of_this_node_count(endpoints: tuple[Any, ...], count: int) -> None:
    """Not those of other nodes, and not those that go, even while they serve."""
    world = World()
    world.put(balanced(), make_slice(*endpoints))
    assert world.roll.asked == {32000: Asked(ONE, count)}


def test_an_address_counts_once_over_all_ports() -> None:
    """A pod is one endpoint, however many ports of the Service it has; UDP ports count as well."""
    ports = (make_port(), make_port("dns", 53, protocol=Protocol.UDP))
    world = World()
    world.put(
        balanced(ports=ports),
        make_slice(
            here("10.180.0.1"),
            here("10.180.0.2"),
            ports=(SlicePort("http", Protocol.TCP, 8080), SlicePort("dns", Protocol.UDP, 53)),
        ),
        make_slice(here("10.180.0.3"), name="more", ports=(SlicePort("dns", Protocol.UDP, 53),)),
    )
    assert world.counts == {32000: 3}


def test_each_family_counts_its_own() -> None:
    """A pod with an address of both families counts once in each."""
    both = (
        balanced(ip=("172.30.0.41", "fd00:30::41")),
        make_slice(here("10.180.0.1")),
        make_slice(here("fd00:10::1"), here("fd00:10::2"), name="six"),
    )
    for family, count in ((V4, 1), (V6, 2)):
        world = World(family)
        world.put(*both)
        assert world.counts == {32000: count}


def test_hints_hide_no_endpoint() -> None:
    """Where an endpoint of this node is hinted for another, balancers' clients still get it, so it
    counts: also while the Service has no way in but its cluster IP."""
    world = World()
    elsewhere = make_endpoint("10.180.1.1", "node2", node_hints=(NODE,))
    world.put(balanced(), make_slice(here("10.180.0.1", node_hints=("node2",)), elsewhere))
    assert world.counts == {32000: 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"external_policy": TrafficPolicy.CLUSTER},
        {"type": ServiceType.NODE_PORT},
        {"health_check_node_port": 0},
        {"ip": "fd00:30::41"},
    ],
    ids=["policy", "type", "no number", "other family"],
)
def test_who_has_no_such_port(fields: dict[str, Any]) -> None:
    """Local policy, a balancer and a number of one's own family; taking one away ends it."""
    world = World()
    assert world.put(balanced()) == {32000}
    assert world.put(balanced(**fields)) == {32000}
    assert world.roll.asked == {}
    assert world.put(balanced()) == {32000}
    assert world.roll.asked == {32000: Asked(ONE, 0)}


def test_only_what_changes_is_touched() -> None:
    """A change of another service, or the same Snapshot again, touches nothing."""
    world = World()
    other = make_service("other", ip="172.30.0.42")
    assert world.put(balanced(), other) == {32000}
    assert world.follow() == set()
    assert world.put(make_slice(here("10.180.0.9"), service="other")) == set()
    assert world.put(balanced("svc3", 32001, ip="172.30.0.43")) == {32001}
    assert world.put(make_slice(here("10.180.0.1"))) == {32000}
    assert world.counts == {32000: 1, 32001: 0}
    assert world.put(balanced(number=32002)) == {32000, 32002}
    assert world.remove(balanced()) == {32002}
    assert world.counts == {32001: 0}


def test_a_number_goes_from_one_service_to_another() -> None:
    """The stronger of two claims has it; when its Service goes, it is the other one's at once."""
    first = balanced("first", created=1.0)
    second = balanced("second", created=2.0, ip="172.30.0.42")
    world = World()
    world.put(first, second, make_slice(here("10.180.0.1"), service="second"))
    assert world.roll.asked == {32000: Asked(ObjectKey("ns1", "first"), 0)}
    assert world.remove(first) == {32000}
    assert world.roll.asked == {32000: Asked(ObjectKey("ns1", "second"), 1)}
    assert world.put(first) == {32000}
    assert world.roll.asked == {32000: Asked(ObjectKey("ns1", "first"), 0)}


def test_two_services_exchange_their_numbers() -> None:
    """In one Snapshot: each has the other's number afterwards."""
    world = World()
    a, b = ObjectKey("ns1", "a"), ObjectKey("ns1", "b")
    world.put(balanced("a", 32000), balanced("b", 32001, ip="172.30.0.42"))
    assert world.put(balanced("a", 32001), balanced("b", 32000, ip="172.30.0.42")) == {32000, 32001}
    assert world.roll.asked == {32001: Asked(a, 0), 32000: Asked(b, 0)}


def test_a_snapshot_that_was_missed_is_made_up_for() -> None:
    """A plan that never came into force is not followed; the next one says everything anew."""
    world = World()
    world.put(balanced(), balanced("gone", 32001, ip="172.30.0.42"))
    world.tracker.apply(Delta((), (ref_of(balanced("gone", 32001)),)))
    world.planner.plan(world.tracker, world.settings, world.tracker.take())
    assert world.put(balanced("new", 32002, ip="172.30.0.43")) == {32000, 32001, 32002}
    assert world.counts == {32000: 0, 32002: 0}


@pytest.mark.parametrize(
    ("family", "targets", "addresses"),
    [
        (V4, NodePortTargets(), ("0.0.0.0",)),
        (V6, NodePortTargets(), ("::",)),
        (V4, NodePortTargets(all=False, addresses=("192.0.2.1", "192.0.2.2")),
         ("192.0.2.1", "192.0.2.2")),
        (V6, NodePortTargets(all=False, addresses=("2001:db8::1", "fe80::1")), ("2001:db8::1",)),
        (V4, NodePortTargets(all=False), ()),
    ],
)  # fmt: skip
def test_it_listens_where_node_ports_answer(
    family: Family, targets: NodePortTargets, addresses: tuple[str, ...]
) -> None:
    """On all addresses of the family, or on those that nodePortAddresses chooses; when they
    change, every port is touched."""
    world = World(family)
    ip = "172.30.0.41" if family is V4 else "fd00:30::41"
    world.put(balanced(ip=ip))
    world.settings = make_settings(node_port_targets=targets, masquerade_all=True)
    assert world.follow() == {32000}
    assert world.roll.addresses == addresses
