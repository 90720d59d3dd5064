"""Endpoint choice against an independent model, written from the rules in words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from kproxy.core.events import Delta
from kproxy.core.objects import (
    EndpointSlice,
    Family,
    Protocol,
    Service,
    ServicePort,
    SliceEndpoint,
    SlicePort,
    TrafficPolicy,
)
from kproxy.core.planner import Planner
from kproxy.core.snapshot import NodeSettings
from kproxy.core.tracker import Tracker
from tests.property.strategies import NODES, PODS, ZONES, policies, some

LOCAL = TrafficPolicy.LOCAL
conditions = st.tuples(st.booleans(), st.booleans(), st.booleans())


@st.composite
def pods(draw):
    """address -> (node, zone hints, node hints): facts that all entries of a pod agree on."""
    facts = st.tuples(st.sampled_from(NODES), some(("a", "b")), some(("node1", "node2")))
    return {address: draw(facts) for address in PODS}


@st.composite
def slices(draw, facts):
    found = []
    for number in range(draw(st.integers(0, 3))):
        entries = draw(st.lists(st.tuples(st.sampled_from(PODS), conditions), max_size=4))
        found.append((f"s{number}", draw(st.sampled_from((8080, 8081))), entries))
    return [
        EndpointSlice(
            "ns",
            name,
            "svc",
            Family.IPV4,
            (SlicePort("http", Protocol.TCP, port),),
            tuple(
                SliceEndpoint(address, *condition, facts[address][0], "", *facts[address][1:])
                for address, condition in entries
            ),
        )
        for name, port, entries in found
    ]


def model(facts, pieces, *, internal, external, entry, node, zone):
    """(cluster, local, all, has_any) as sets of places, None for a set that is not used."""
    ready, draining = set(), set()
    for piece in pieces:
        for it in piece.endpoints:
            place = (it.address, piece.ports[0].port)
            if it.ready:
                ready.add(place)
            elif it.serving and it.terminating:
                draining.add(place)
    draining -= ready
    cluster = local = None
    if internal is not LOCAL or entry:
        cluster = ready
        by_zone = {place for place in ready if zone and zone in facts[place[0]][1]}
        if by_zone and all(facts[address][1] for address, _ in ready):
            cluster = by_zone
        by_node = {place for place in ready if node in facts[place[0]][2]}
        if by_node and all(facts[address][2] for address, _ in ready):
            cluster = by_node
        if not cluster:
            cluster = draining
    if internal is LOCAL or (external is LOCAL and entry):
        local = {place for place in ready if facts[place[0]][0] == node}
        if not local:
            local = {place for place in draining if facts[place[0]][0] == node}
    return cluster, local, (cluster or set()) | (local or set()), bool(ready | draining)


@budget(max_examples=400, deadline=None)
@given(
    data=st.data(),
    facts=pods(),
    internal=policies,
    external=policies,
    entry=st.booleans(),
    node=st.sampled_from(("node1", "node2")),
    zone=st.sampled_from(ZONES),
)
def test_choice_equals_the_model(data, facts, internal, external, entry, node, zone):
    """Sets, their being used at all, and "usable anywhere" are those of the rules in words."""
    pieces = data.draw(slices(facts))
    service = Service(
        "ns",
        "svc",
        cluster_ips=("172.30.0.1",),
        ports=(ServicePort("http", Protocol.TCP, 80),),
        external_ips=("198.51.100.1",) if entry else (),
        internal_policy=internal,
        external_policy=external,
    )
    tracker = Tracker()
    tracker.apply(Delta((service, *data.draw(st.permutations(pieces)))))
    settings = NodeSettings(name=node, zone=zone)
    (plan,) = Planner(Family.IPV4).plan(tracker, settings).ports.values()
    sets = plan.endpoints
    got = [sets.cluster, sets.local, sets.all]
    for endpoints in got:
        if endpoints is not None:
            places = [(it.ip, it.port) for it in endpoints]
            assert places == sorted(set(places))
    expected = model(
        facts, pieces, internal=internal, external=external, entry=entry, node=node, zone=zone
    )
    found = [None if it is None else {(e.ip, e.port) for e in it} for it in got]
    assert (*found, sets.has_any) == expected
    if sets.local is not None:
        assert all(it.local for it in sets.local)
