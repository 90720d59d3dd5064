"""From Snapshots to service tables: policies by the core's tables, work that follows change."""

from __future__ import annotations

import msgspec
import pytest

from kproxy.backends.fastpath.plan import (
    SCHEDULER_ANNOTATION,
    WEIGHTS_ANNOTATION,
    differences,
    node_table,
    plan_tables,
    service_table,
)
from kproxy.core.events import Delta, ref_of
from kproxy.core.objects import Family, Protocol, ServiceType, SlicePort, TrafficPolicy
from kproxy.core.planner import Planner
from kproxy.core.policy import Client, Entry, Use, treatment
from kproxy.core.snapshot import LocalDetector, NodePortTargets, PortPlan, Snapshot
from kproxy.core.tracker import Tracker
from kproxy.core.twin.values import Algorithm, Fate, Range, ServiceTable, Way, WayKind
from tests.backends.iptables.plans import port, weighed
from tests.factories import make_endpoint, make_port, make_service, make_settings, make_slice
from tests.fastpath.packets import raw

POLICIES = list(TrafficPolicy)
SETTINGS = make_settings(addresses=("192.168.0.2",), detector=LocalDetector(cidr="10.180.0.0/16"))


def planned(*objects: object) -> Snapshot:
    tracker = Tracker()
    tracker.apply(Delta(tuple(objects)))  # type: ignore[arg-type]
    return Planner(Family.IPV4).plan(tracker, SETTINGS)


def only(snapshot: Snapshot) -> tuple[PortPlan, ServiceTable]:
    (name,) = snapshot.ports
    return snapshot.ports[name], plan_tables(snapshot, None).services[name]


@pytest.mark.parametrize("internal", POLICIES)
@pytest.mark.parametrize("external", POLICIES)
def test_rows_are_the_cores(internal: TrafficPolicy, external: TrafficPolicy):
    """For each way in and client what core/policy.py says, with and without masqueradeAll."""
    service = make_service(
        type=ServiceType.NODE_PORT,
        ports=(make_port(node_port=30080),),
        internal_policy=internal,
        external_policy=external,
    )
    plan = next(iter(planned(service, make_slice("10.180.0.1")).ports.values()))
    for everybody in (False, True):
        settings = msgspec.structs.replace(SETTINGS, masquerade_all=everybody)
        table, _ = service_table(plan, Family.IPV4, settings)
        for rows, entry in zip(table.rows, Entry):
            for row, client in zip(rows, Client):
                wanted = treatment(settings, entry, client, internal=internal, external=external)
                assert row == (wanted.use is Use.LOCAL, wanted.masquerade)


def test_ways():
    """Each address in its kind, node ports without one, in network order."""
    service = make_service(
        type=ServiceType.LOAD_BALANCER,
        ports=(make_port(node_port=30080),),
        external_ips=("198.51.100.7",),
        load_balancer_ips=("203.0.113.1",),
        source_ranges=("192.0.2.0/24",),
        source_ranges_set=True,
        affinity_seconds=60,
    )
    _, table = only(planned(service, make_slice("10.180.0.1")))
    assert table.ways == (
        Way(WayKind.CLUSTER_IP, raw("172.30.0.41"), 80),
        Way(WayKind.EXTERNAL_IP, raw("198.51.100.7"), 80),
        Way(WayKind.LOAD_BALANCER, raw("203.0.113.1"), 80),
        Way(WayKind.NODE_PORT, b"", 30080),
    )
    assert table.ranges == (Range(raw("192.0.2.0"), 24),)
    assert table.affinity_seconds == 60


def test_members_and_fates():
    """Who is in which set, in the order of places; an empty set drops, nobody anywhere refuses."""
    local = TrafficPolicy.LOCAL
    near = make_endpoint("10.180.0.9", "node1")
    far = make_endpoint("10.180.0.10", "node2")
    service = make_service(internal_policy=local)
    _, table = only(planned(service, make_slice(near, far)))
    assert [(m.address, m.cluster, m.local, m.near) for m in table.members] == [
        (raw("10.180.0.9"), False, True, True),
    ]
    assert table.fates[1] is Fate.FORWARD
    _, table = only(planned(service, make_slice(far)))
    assert table.fates[1] is Fate.DROP
    _, table = only(planned(service))
    assert table.fates == (Fate.REFUSE, Fate.REFUSE)


def test_udp_keeps_those_that_drain():
    """An endpoint that drains is in no set of a UDP port, and still has its flows."""
    draining = make_endpoint("10.180.0.9", ready=False, serving=True, terminating=True)
    service = make_service(ports=(make_port("dns", 53, protocol=Protocol.UDP),))
    ports = (SlicePort("dns", Protocol.UDP, 53),)
    _, table = only(
        planned(service, make_slice(draining, make_endpoint("10.180.0.1"), ports=ports))
    )
    assert [(m.address, m.cluster or m.local) for m in table.members] == [
        (raw("10.180.0.1"), True),
        (raw("10.180.0.9"), False),
    ]


@pytest.mark.parametrize(
    ("annotations", "algorithm", "weights", "notice"),
    [
        ({}, Algorithm.MAGLEV, [1, 1], ""),
        ({SCHEDULER_ANNOTATION: "random"}, Algorithm.RANDOM, [1, 1], ""),
        ({SCHEDULER_ANNOTATION: "least-connections"}, Algorithm.LEAST, [1, 1], ""),
        ({SCHEDULER_ANNOTATION: "best"}, Algorithm.MAGLEV, [1, 1], "'best' is none of"),
        ({WEIGHTS_ANNOTATION: "10.180.0.2=5, 10.9.9.9=2"}, Algorithm.MAGLEV, [1, 5], ""),
        ({WEIGHTS_ANNOTATION: "10.180.0.2=0"}, Algorithm.MAGLEV, [1, 1], "'10.180.0.2=0'"),
        ({WEIGHTS_ANNOTATION: "10.180.0.2=70000"}, Algorithm.MAGLEV, [1, 1], "from 1 to 65535"),
        ({WEIGHTS_ANNOTATION: "five"}, Algorithm.MAGLEV, [1, 1], "ADDRESS=WEIGHT"),
    ],
)
def test_annotations(
    annotations: dict[str, str], algorithm: Algorithm, weights: list[int], notice: str
):
    """A service's own wishes; one that makes no sense is told and not followed."""
    service = make_service(annotations=tuple(sorted(annotations.items())))
    plan, _ = only(planned(service, make_slice("10.180.0.1", "10.180.0.2")))
    table, told = service_table(plan, Family.IPV4, SETTINGS)
    assert table.algorithm is algorithm
    assert [member.weight for member in table.members] == weights
    assert notice in told
    assert bool(notice) == bool(told)


#: (the Service's own weights, what slow start leaves of them) -> weights of members
WEIGHTS = [
    ("", (100, 100, 100), (1, 1, 1)),
    ("", (5, 5, 5), (1, 1, 1)),
    ("", (100, 5, 100), (20, 1, 20)),
    ("", (100, 7, 100), (100, 7, 100)),
    ("10.180.0.1=3", (100, 100, 100), (3, 1, 1)),
    ("10.180.0.1=3", (50, 100, 100), (3, 2, 2)),
    ("10.180.0.1=3", (100, 10, 100), (30, 1, 10)),
    ("10.180.0.1=65535, 10.180.0.2=65535", (100, 5, 100), (65535, 3276, 1)),
]


@pytest.mark.parametrize(("own", "slow", "wanted"), WEIGHTS)
def test_weights(own: str, slow: tuple[int, ...], wanted: tuple[int, ...]):
    """Both multiplied, from 1 to 65,535; the Service's own where nobody starts slowly."""
    plan = weighed(port(pods=3), *slow)
    if own:
        plan = msgspec.structs.replace(plan, annotations=((WEIGHTS_ANNOTATION, own),))
    table, notice = service_table(plan, Family.IPV4, SETTINGS)
    assert not notice
    assert tuple(member.weight for member in table.members) == wanted


def test_work_follows_change():
    """A service that did not change keeps its very table; the difference names the others."""
    tracker, planner = Tracker(), Planner(Family.IPV4)
    services = [make_service(f"s{n}", ip=f"172.30.0.{n}") for n in range(1, 4)]
    slices = [make_slice("10.180.0.1", service=f"s{n}") for n in range(1, 4)]
    tracker.apply(Delta((*services, *slices)))
    first = plan_tables(planner.plan(tracker, SETTINGS, tracker.take()), None)
    tracker.apply(Delta((make_slice("10.180.0.2", service="s2"),), (ref_of(services[2]),)))
    second = plan_tables(planner.plan(tracker, SETTINGS, tracker.take()), first)
    changed, gone = differences(first.services, second)
    assert [name.name for name in changed] == ["s2"]
    assert [name.name for name in gone] == ["s3"]
    kept = next(name for name in second.services if name.name == "s1")
    assert second.services[kept] is first.services[kept]
    assert differences(second.services, second) == ({}, set())


@pytest.mark.parametrize(
    ("targets", "answering", "localhost"),
    [
        (NodePortTargets(), {"192.168.0.2", "10.180.0.254"}, True),
        (NodePortTargets(all=False, addresses=("192.168.0.2",), localhost=False),
         {"192.168.0.2"}, False),
    ],
)  # fmt: skip
def test_node(targets: NodePortTargets, answering: set[str], localhost: bool):
    """Its addresses, where node ports answer, its pods and what clients are hidden behind."""
    settings = msgspec.structs.replace(SETTINGS, node_port_targets=targets)
    own = ("127.0.0.1", "192.168.0.2", "10.180.0.254", "::1", "2001:db8::2")
    node = node_table(settings, Family.IPV4, own, (50000, 50100))
    assert node.local == {raw(ip) for ip in own[:3]}
    assert node.node_ports == {raw(ip) for ip in answering}
    assert node.localhost is localhost
    assert node.pods == (Range(raw("10.180.0.0"), 16),)
    assert node.masquerade == raw("192.168.0.2")
    assert node.ports == (50000, 50100)
    six = node_table(make_settings(), Family.IPV6, own, (1, 2), pods=("fd00:10::/64",))
    assert six.node_ports == {raw("2001:db8::2")}
    assert not six.localhost
    assert six.pods == (Range(raw("fd00:10::"), 64),)
    assert six.masquerade == b""
