"""From tracked objects to Snapshots: content, and sharing with the predecessor."""

from __future__ import annotations

import pytest

from kproxy.core.events import Delta, ref_of
from kproxy.core.objects import (
    Family,
    PortName,
    Protocol,
    ServiceType,
    SlicePort,
    TrafficPolicy,
)
from kproxy.core.planner import Planner
from kproxy.core.snapshot import PortPlan
from kproxy.core.tracker import Tracker
from tests.factories import (
    make_cluster,
    make_endpoint,
    make_node,
    make_port,
    make_service,
    make_settings,
    make_slice,
)

V4, V6 = Family.IPV4, Family.IPV6
TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP
LOCAL = TrafficPolicy.LOCAL


class Stage:
    """A tracker and a planner that are told things one after the other."""

    def __init__(self, *objects, family=V4, settings=None):
        self.tracker = Tracker()
        self.planner = Planner(family)
        self.settings = settings or make_settings()
        self.snapshot = self.up(*objects)

    def up(self, *objects):
        return self._apply(Delta(upserted=objects))

    def down(self, *objects):
        return self._apply(Delta(deleted=tuple(ref_of(obj) for obj in objects)))

    def _apply(self, delta):
        self.tracker.apply(delta)
        self.snapshot = self.planner.plan(self.tracker, self.settings, self.tracker.take())
        return self.snapshot


def name_of(service="svc1", port="http", protocol=TCP):
    return PortName("ns1", service, port, protocol)


def texts(endpoints):
    return None if endpoints is None else [str(endpoint) for endpoint in endpoints]


def test_plan_of_everything():
    """Every field of a Service that matters reaches its plan."""
    service = make_service(
        type=ServiceType.LOAD_BALANCER,
        ip=("172.30.0.41", "fd00:30::41"),
        ports=(make_port("http", 80, node_port=30080),),
        external_ips=("198.51.100.1", "2001:db8::9"),
        load_balancer_ips=("2001:db8::1", "203.0.113.1"),
        source_ranges=("192.0.2.0/24", "2001:db8:7::/48"),
        source_ranges_set=True,
        affinity_seconds=10800,
        internal_policy=LOCAL,
        external_policy=LOCAL,
        health_check_node_port=32000,
        annotations=(("kproxy/x", "1"), ("other/x", "2")),
    )
    here = make_endpoint("10.180.0.1", "node1")
    snapshot = Stage(service, make_slice(here, "10.180.2.1")).snapshot
    plan = snapshot.ports[name_of()]
    assert plan == PortPlan(
        name=name_of(),
        port=80,
        endpoints=plan.endpoints,
        cluster_ip="172.30.0.41",
        node_port=30080,
        external_ips=("198.51.100.1",),
        load_balancer_ips=("203.0.113.1",),
        source_ranges=("192.0.2.0/24",),
        restricted=True,
        affinity_seconds=10800,
        internal_policy=LOCAL,
        external_policy=LOCAL,
        health_check_node_port=32000,
        local_ready=("10.180.0.1",),
        annotations=(("kproxy/x", "1"),),
    )
    assert texts(plan.endpoints.cluster) == ["10.180.0.1:8080", "10.180.2.1:8080"]
    assert texts(plan.endpoints.local) == ["10.180.0.1:8080"]
    assert (snapshot.family, snapshot.generation, snapshot.base) == (V4, 1, None)
    assert (snapshot.changed, snapshot.removed) == ({name_of()}, frozenset())
    assert snapshot.endpoint_count == 2


def test_ports_of_one_service_are_independent():
    """Equal numbers in three protocols, a second name, a named target port: each its own."""
    service = make_service(
        ports=(
            make_port("dns", 53, protocol=UDP),
            make_port("dns-tcp", 53),
            make_port("dns-sctp", 53, protocol=SCTP),
            make_port("web", 80),
            make_port("nobody", 81),
        )
    )
    piece = make_slice(
        "10.180.0.1",
        ports=(
            SlicePort("dns", UDP, 53),
            SlicePort("dns-tcp", TCP, 5353),
            SlicePort("dns-sctp", SCTP, 54),
            SlicePort("web", TCP, 8080),
        ),
    )
    other = make_slice("10.180.0.2", name="svc1-2", ports=(SlicePort("web", TCP, 8888),))
    ports = Stage(service, piece, other).snapshot.ports
    assert {name.port: texts(plan.endpoints.all) for name, plan in ports.items()} == {
        "dns": ["10.180.0.1:53"],
        "dns-tcp": ["10.180.0.1:5353"],
        "dns-sctp": ["10.180.0.1:54"],
        "web": ["10.180.0.1:8080", "10.180.0.2:8888"],
        "nobody": [],
    }


def test_families_are_planned_apart():
    """Each family takes its own addresses and slices, and leaves Services without it out."""
    objects = (
        make_service("dual", ip=("172.30.0.1", "fd00:30::1")),
        make_slice("10.180.0.1", service="dual", name="four"),
        make_slice("fd00:10::1", service="dual", name="six"),
        make_service("four", ip="172.30.0.2"),
        make_service("six", ip="fd00:30::2"),
    )
    for family, ip, endpoint, alone in (
        (V4, "172.30.0.1", "10.180.0.1:8080", "four"),
        (V6, "fd00:30::1", "[fd00:10::1]:8080", "six"),
    ):
        ports = Stage(*objects, family=family).snapshot.ports
        assert {name.name for name in ports} == {"dual", alone}
        plan = ports[name_of("dual")]
        assert (plan.cluster_ip, texts(plan.endpoints.all)) == (ip, [endpoint])


@pytest.mark.parametrize(
    ("fields", "local"),
    [
        ({"external_policy": LOCAL}, None),
        ({"external_policy": LOCAL, "external_ips": ("198.51.100.1",)}, []),
        ({"external_policy": LOCAL, "external_ips": ("2001:db8::9",)}, None),
        ({"internal_policy": LOCAL}, []),
    ],
)
def test_local_set_is_for_ways_in_that_exist(fields, local):
    """External policy counts only with an external entry of this family."""
    snapshot = Stage(make_service(**fields), make_slice("10.180.0.1")).snapshot
    assert texts(snapshot.ports[name_of()].endpoints.local) == local


def test_slices_before_the_service():
    """Slices that came first are there when the Service comes, and stay when it goes."""
    stage = Stage(make_slice("10.180.0.1"))
    assert stage.snapshot.ports == {}
    for _ in range(2):
        stage.up(make_service())
        assert texts(stage.snapshot.ports[name_of()].endpoints.all) == ["10.180.0.1:8080"]
        stage.down(make_service())
        assert stage.snapshot.ports == {}
        assert stage.snapshot.removed == {name_of()}


def test_restricted_needs_an_address_to_restrict():
    """A load-balancer address lost to another service takes its ranges along."""
    fields = {
        "type": ServiceType.LOAD_BALANCER,
        "load_balancer_ips": ("203.0.113.1",),
        "source_ranges": ("192.0.2.0/24",),
        "source_ranges_set": True,
    }
    ports = Stage(
        make_service("a", ip="172.30.0.1", created=1, **fields),
        make_service("b", ip="172.30.0.2", created=2, **fields),
    ).snapshot.ports
    assert ports[name_of("a")].restricted
    assert not ports[name_of("b")].restricted
    assert ports[name_of("b")].source_ranges == ()


def test_one_change_shares_everything_else():
    """Only the plan of the changed service is new; all others are the very same objects."""
    stage = Stage(*make_cluster(20, 3))
    before = stage.snapshot
    after = stage.up(make_slice("10.9.9.9", service="svc7"))
    assert (after.generation, after.base) == (2, 1)
    assert (after.changed, after.removed) == ({name_of("svc7")}, frozenset())
    assert after.endpoint_count == before.endpoint_count - 2
    for name, plan in after.ports.items():
        assert (plan is before.ports[name]) == (name.name != "svc7")
    assert len(before.ports[name_of("svc7")].endpoints.all) == 3


@pytest.mark.parametrize(
    "change",
    [
        pytest.param((), id="nothing"),
        pytest.param((make_node("node9"),), id="a node"),
        pytest.param((make_slice("fd00:10::1", name="six"),), id="a slice of the other family"),
        pytest.param((make_slice("10.180.0.1", name="twin"),), id="the same endpoint again"),
        pytest.param((make_slice("10.180.0.1", service="none"),), id="a slice of no service"),
        pytest.param(
            (make_service(source_ranges=("192.0.2.0/24",), source_ranges_set=True),),
            id="a field without effect",
        ),
        pytest.param((make_service("six", ip="fd00:30::1"),), id="a service of the other family"),
        pytest.param(
            (make_slice("10.180.0.1", make_endpoint("10.180.0.2", ready=False, serving=False)),),
            id="an endpoint that nobody may use",
        ),
    ],
)
def test_no_difference_is_the_same_snapshot(change):
    """What changes nothing for this family makes no new Snapshot."""
    stage = Stage(make_service(), make_slice("10.180.0.1"))
    before = stage.snapshot
    assert stage.up(*change) is before


def test_removed_names_every_port_of_a_service():
    """A deleted service takes all of its ports along, a removed port only itself."""
    stage = Stage(make_service(ports=(make_port("a", 1), make_port("b", 2), make_port("c", 3))))
    stage.up(make_service(ports=(make_port("a", 1), make_port("b", 9))))
    assert stage.snapshot.changed == {name_of(port="b")}
    assert stage.snapshot.removed == {name_of(port="c")}
    stage.down(make_service())
    assert stage.snapshot.removed == {name_of(port="a"), name_of(port="b")}
    assert (stage.snapshot.ports, stage.snapshot.endpoint_count) == ({}, 0)


@pytest.mark.parametrize(
    ("settings", "shared"),
    [
        (make_settings(masquerade_all=True), True),
        (make_settings(zone="a"), False),
        (make_settings(name="node2"), False),
    ],
)
def test_new_settings_plan_everything(settings, shared):
    """New settings give a Snapshot without base; plans that come out equal are still shared."""
    entries = (
        make_endpoint("10.180.0.1", "node1", zone_hints=("a",)),
        make_endpoint("10.180.0.2", "node2", zone_hints=("b",)),
    )
    stage = Stage(make_service(), make_slice(*entries))
    before = stage.snapshot
    stage.settings = settings
    after = stage.up()
    assert (after.base, after.generation, after.settings) == (None, 2, settings)
    assert after.changed == set(after.ports) == {name_of()}
    assert (after.ports[name_of()] is before.ports[name_of()]) is shared


def test_without_changes_everything_is_planned():
    """No Changes means "I do not know": base None, removed ports named, equal plans shared."""
    stage = Stage(make_service("a", ip="172.30.0.1"), make_service("b", ip="172.30.0.2"))
    before = stage.snapshot
    stage.tracker.apply(Delta(deleted=(ref_of(make_service("a")),)))
    after = stage.planner.plan(stage.tracker, stage.settings)
    assert (after.base, after.removed) == (None, {name_of("a")})
    assert after.ports[name_of("b")] is before.ports[name_of("b")]


def test_type_change_and_back():
    """A Service that is not ours any more is withdrawn, and comes back as it was."""
    stage = Stage(make_service(), make_slice("10.180.0.1"))
    first = stage.snapshot
    stage.up(make_service(ignored="label service.kubernetes.io/service-proxy-name"))
    assert stage.snapshot.removed == {name_of()}
    stage.up(make_service())
    assert stage.snapshot.changed == {name_of()}
    assert stage.snapshot.ports == first.ports


def test_port_name_twice():
    """The first of two ports of one name and protocol is the port."""
    stage = Stage(make_service(ports=(make_port("a", 1), make_port("a", 2))))
    assert [plan.port for plan in stage.snapshot.ports.values()] == [1]
