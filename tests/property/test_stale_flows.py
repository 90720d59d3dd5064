"""Stale flows against an independent model that looks at Snapshots as text, flow by flow."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from kproxy.core.events import Delta, ref_of
from kproxy.core.objects import (
    EndpointSlice,
    Family,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
    SlicePort,
    TrafficPolicy,
)
from kproxy.core.planner import Planner
from kproxy.core.snapshot import LocalDetector, NodePortTargets, NodeSettings, Snapshot
from kproxy.core.stale_flows import Flow, StaleFlows
from kproxy.core.tracker import Tracker
from kproxy.core.ways import packed, packed_port
from tests.property.strategies import PODS, PODS6, policies, some

LOCAL = TrafficPolicy.LOCAL
V4, V6 = Family.IPV4, Family.IPV6
HOST = {V4: ("192.168.0.2", "10.180.0.254", "127.0.0.1"), V6: ("2001:db8::2", "::1")}
PORTS, NODE_PORTS = (80, 81), (30080, 30081)
VIP = {V4: ("172.30.0.1", "172.30.0.2"), V6: ("fd00:30::1", "fd00:30::2")}
OUTSIDE = {V4: ("198.51.100.1", "172.30.0.2"), V6: ("2001:db8:1::1", "fd00:30::2")}
RANGES = {V4: ("192.0.2.0/24", "192.168.0.0/24"), V6: ("2001:db8:9::/64", "2001:db8::/64")}
CLIENTS = {
    V4: ("192.0.2.9", "203.0.113.9", "198.51.100.1", "192.168.0.2", *PODS),
    V6: ("2001:db8:9::9", "2001:db8:8::8", "2001:db8:1::1", "2001:db8::2", *PODS6),
}
DESTINATIONS = {
    V4: (*VIP[V4], "198.51.100.1", "192.0.2.77", *HOST[V4]),
    V6: (*VIP[V6], "2001:db8:1::1", "2001:db8:1::77", *HOST[V6]),
}
DETECTORS = {
    Family.IPV4: (None, LocalDetector(cidr="10.180.0.0/31"), LocalDetector(bridge="cni0")),
    Family.IPV6: (None, LocalDetector(cidr="fd00:10::/64"), LocalDetector(prefix="veth")),
}
PLACES = {Family.IPV4: PODS, Family.IPV6: PODS6}


class Spoken(NamedTuple):
    """A flow as text; ``place`` None: left alone."""

    source: str
    destination: str
    port: int
    place: tuple[str, int] | None
    masked: bool

    def packed(self, family: Family) -> Flow:
        place, place_port = self.place or (self.destination, self.port)
        return (
            packed(self.source),
            packed(self.destination),
            packed_port(self.port),
            packed(place),
            packed(HOST[family][0] if self.masked else self.source),
            packed_port(place_port),
        )


def services(family):
    """Services of one port that collide in everything, nearly all of UDP."""
    outside = OUTSIDE[family]
    return st.builds(
        lambda ip, port, **fields: Service("ns", cluster_ips=(ip,), ports=(port,), **fields),
        st.sampled_from(VIP[family]),
        st.builds(
            ServicePort,
            name=st.just("dns"),
            protocol=st.sampled_from((*[Protocol.UDP] * 5, Protocol.TCP)),
            port=st.sampled_from(PORTS),
            node_port=st.sampled_from((0, *NODE_PORTS)),
        ),
        name=st.sampled_from(("a", "b")),
        type=st.sampled_from((ServiceType.LOAD_BALANCER, *ServiceType)),
        external_ips=some(outside, 1),
        load_balancer_ips=some(outside, 1),
        source_ranges=some(RANGES[family], 1),
        source_ranges_set=st.booleans(),
        internal_policy=policies,
        external_policy=policies,
        created=st.sampled_from((0.0, 1.0)),
    )


def slices(family):
    entry = st.builds(
        SliceEndpoint,
        address=st.sampled_from(PLACES[family]),
        ready=st.booleans(),
        serving=st.booleans(),
        terminating=st.booleans(),
        node=st.sampled_from(("node1", "node2")),
        node_hints=some(("node1", "node2"), 1),
    )
    return st.builds(
        lambda name, service, port, entries: EndpointSlice(
            "ns", name, service, family, (SlicePort("dns", Protocol.UDP, port),), tuple(entries)
        ),
        st.sampled_from(("s1", "s2", "s3")),
        st.sampled_from(("a", "b")),
        st.sampled_from((8080, 8081)),
        st.lists(entry, max_size=3),
    )


def flows(history):
    """Flows of which most enter some plan, and most of these have an endpoint of some plan."""
    family = history[0].family
    udp = [
        plan
        for snapshot in history
        for plan in snapshot.ports.values()
        if plan.protocol is Protocol.UDP
    ]
    ways = [(ip, port) for ip in DESTINATIONS[family] for port in PORTS + NODE_PORTS]
    places: list[tuple[str, int] | None] = [None, (PLACES[family][0], 8080)]
    for plan in udp:
        addresses = (plan.cluster_ip, *plan.external_ips, *plan.load_balancer_ips)
        ways += [(ip, plan.port) for ip in addresses if ip] * 8
        ways += [(ip, plan.node_port) for ip in HOST[family] if plan.node_port] * 4
        places += [(one.ip, one.port) for one in (*plan.endpoints.all, *plan.endpoints.spared)]
    return st.builds(
        lambda source, way, place, masked: Spoken(source, *way, place, masked),
        st.sampled_from(CLIENTS[family]),
        st.sampled_from(ways),
        st.sampled_from(places),
        st.booleans(),
    )


@st.composite
def node_settings(draw, family):
    targets = (NodePortTargets(), NodePortTargets(False, HOST[family][:1], False))
    return NodeSettings(
        "node1",
        addresses=HOST[family][:1],
        detector=draw(st.sampled_from(DETECTORS[family])),
        node_port_targets=draw(st.sampled_from(targets)),
    )


def entered(snapshot: Snapshot, flow: Spoken):
    """(the plan of the UDP service port that a flow enters, the kind of entrance), or None."""
    family, targets = snapshot.family, snapshot.settings.node_port_targets
    udp = [plan for plan in snapshot.ports.values() if plan.protocol is Protocol.UDP]
    for plan in udp:
        if flow.port == plan.port:
            if flow.destination == plan.cluster_ip:
                return plan, "cluster"
            if flow.destination in plan.external_ips:
                return plan, "external"
            if flow.destination in plan.load_balancer_ips:
                return plan, "balancer"
    local = targets.addresses if not targets.all else HOST[family]
    if flow.destination == "::1":
        return None
    if flow.destination == "127.0.0.1":
        local = ("127.0.0.1",) if targets.localhost else ()
    if flow.destination in local:
        for plan in udp:
            if flow.port == plan.node_port:
                return plan, "node port"
    return None


def allowed(snapshot: Snapshot, plan, kind: str, source: str) -> set[tuple[str, int]]:
    """Where a flow of this client may go."""
    serving = (*plan.endpoints.all, *plan.endpoints.spared)
    every = {(one.ip, one.port) for one in serving}
    here = {(one.ip, one.port) for one in serving if one.local}
    if kind == "cluster":
        return here if plan.internal_policy is LOCAL else every
    address = ipaddress.ip_address(source)
    if kind == "balancer" and plan.restricted:
        ranges = [ipaddress.ip_network(text) for text in plan.source_ranges]
        own = ipaddress.ip_address(HOST[snapshot.family][0])
        if any(own in one for one in ranges):
            ranges += [ipaddress.ip_network(text) for text in plan.load_balancer_ips]
        if not any(address in one for one in ranges):
            return set()
    if plan.external_policy is not LOCAL or source in HOST[snapshot.family]:
        return every
    detector = snapshot.settings.detector
    if detector is not None and not detector.cidr:
        return every  # it may have been a pod
    if detector is not None and address in ipaddress.ip_network(detector.cidr):
        return every
    return here


def usable(snapshot: Snapshot, plan, kind: str) -> set[tuple[str, int]]:
    """Where a flow of some client may go, were it let in."""
    kind = "cluster" if kind == "cluster" else "node port"
    return allowed(snapshot, plan, kind, HOST[snapshot.family][0])


def stale(history: list[Snapshot], flow: Spoken) -> bool:
    """By the last plan of ``history``; the ones before are those since flows were clean."""
    now, place = history[-1], flow.place or (flow.destination, flow.port)
    found = entered(now, flow)
    if found is None:
        # Some client may have had it there; the node may have what any client may.
        return any(
            place in usable(snapshot, *old)
            for snapshot in history[:-1]
            if (old := entered(snapshot, flow)) is not None
        )
    plan, kind = found
    if place not in allowed(now, plan, kind, flow.source):
        return True
    policies = [
        one[0].external_policy
        for one in (entered(snapshot, flow) for snapshot in history)
        if one is not None and one[1] != "cluster"
    ]
    # A change of the policy in between means that the source has to be treated as it is now.
    if kind == "cluster" or len(set(policies)) < 2:
        return False
    if flow.source == place[0] or flow.source in HOST[now.family]:
        return False
    return flow.masked == (plan.external_policy is LOCAL)


@budget(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from(Family))
def test_judgement_equals_the_model(data, family):
    """Any history of plans, any flow: the packed judgement is the obvious one."""
    tracker, planner, judge = Tracker(), Planner(family), StaleFlows(family)
    settings = data.draw(node_settings(family))
    history = []
    for step in range(data.draw(st.integers(1, 3))):
        objects = st.one_of(services(family), slices(family))
        known = [*tracker.services(), *tracker.slices()]
        fresh = data.draw(st.lists(objects, min_size=3, max_size=6, unique_by=ref_of))
        gone = data.draw(st.lists(st.sampled_from(known), unique_by=ref_of)) if known else []
        refs = {ref_of(obj) for obj in fresh}
        deleted = tuple(ref_of(obj) for obj in gone if ref_of(obj) not in refs)
        tracker.apply(Delta(tuple(fresh), deleted))
        history.append(planner.plan(tracker, settings, tracker.take()))
        judge.plan(history[-1], HOST[Family.IPV4] + HOST[Family.IPV6])
        if step == 0:
            judge.cleaned()
    spoken = data.draw(st.lists(flows(history), min_size=20, max_size=40))
    packed_flows = [flow.packed(family) for flow in spoken]
    expected = {at for at, flow in enumerate(spoken) if stale(history, flow)}
    found = judge.judge(packed_flows)
    assert set(found) == expected
    # Whatever is stale is in a part of the table that would be looked at, unless it was stale
    # before anything changed: that was cleaned then.
    parts = judge.parts()
    for at in found:
        _, destination, port, *_ = packed_flows[at]
        looked_at = any(
            part.address in (b"", destination) and part.port in (b"", port) for part in parts
        )
        assert looked_at or stale(history[:1], spoken[at])
