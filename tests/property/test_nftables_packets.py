"""The whole path of nftables mode, from objects to the end of a packet, against the model in words.

Clusters and packets are those of ``test_packets``: first packets of connections, by every way in,
from every kind of client. What this mode does otherwise than the model of all modes, as its kind in
kube-proxy does, stands in :data:`CELLS`, each with its reason. Other cases, without the count of
what must be met::

    KPROXY_RANDOM_CLUSTERS=2000 pytest tests/property/test_nftables_packets.py
"""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace as changed

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as budget
from hypothesis import strategies as st
from msgspec.structs import replace

from kproxy.backends.nftables.render import render
from kproxy.backends.nftables.walk import Fate, Packet, Walker
from kproxy.config_sections import Nftables
from kproxy.core.events import Delta
from kproxy.core.objects import Family, Node, TrafficPolicy, family_of
from kproxy.core.planner import Planner
from kproxy.core.settings import node_settings
from kproxy.core.tracker import Tracker
from tests.property import model
from tests.property.model import (
    BALANCER,
    CLUSTER_IP,
    DROPPED,
    EXTERNAL_IP,
    NODE,
    NODE_PORT,
    OTHER,
    POD,
    REJECTED,
    TRANSLATED,
    UNTOUCHED,
)
from tests.property.test_packets import config_of
from tests.property.worlds import packets, worlds

#: Packets of one cluster.
PACKETS = 40
CLUSTERS = 400
CASES = 10_000

_RANDOM = int(os.environ.get("KPROXY_RANDOM_CLUSTERS", "0"))

BUDGET = budget(
    max_examples=_RANDOM or CLUSTERS,
    derandomize=not _RANDOM,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

#: What nftables mode does otherwise, and why.
CELLS = {
    "own": "the node's own packets are refused as well, whatever address they are for",
    "elsewhere": "a node port without endpoints is refused where node ports answer, nowhere else",
    "stranger": "other ports of a cluster IP that somebody has are refused",
    "range": "addresses of the service range that nobody has are dropped",
    "far hairpin": "of endpoints that reach themselves only those on this node are masqueraded",
}

FATES = {
    Fate.SENT: TRANSLATED,
    Fate.REFUSED: REJECTED,
    Fate.DROPPED: DROPPED,
    Fate.UNTOUCHED: UNTOUCHED,
}
#: The service range, where the configuration names one.
SERVICE_CIDRS = {Family.IPV4: "172.30.0.0/16", Family.IPV6: "fd00:30::/64"}


def in_this_mode(world):
    """The same cluster as the model has to see it: node ports are on the primary address unless
    others are named, never on loopback, and what conntrack cannot place is let through."""
    return changed(
        world,
        node_port_addresses=world.node_port_addresses or ("primary",),
        localhost_node_ports=False,
        drop_invalid=False,
    )


def walker_of(world, family, cidrs, by_client):
    """The rules and elements of a world, by all that lies between objects and them."""
    labels = (("topology.kubernetes.io/zone", world.zone),) if world.zone else ()
    node = Node(world.node, labels, world.addresses)
    config = replace(
        config_of(world),
        mode="nftables",
        nftables=Nftables(masquerade_all=world.masquerade_all),
        service_cidrs=tuple(SERVICE_CIDRS.values()) if cidrs else (),
    )
    settings = node_settings(config, node, world.node, family, world.local)
    tracker = Tracker()
    tracker.apply(Delta((*world.services, *world.slices)))
    snapshot = Planner(family).plan(tracker, settings)
    desired = render(snapshot, None, "hash" if by_client else "random")
    return Walker(desired, [ip for ip in world.local if family_of(ip) is family])


def wanted_of(world, packet, expected, cidrs):
    """(fate, {endpoint: masqueraded}, cells)"""
    family, cells = family_of(packet.destination), set()
    if expected.row is None:
        return _to_nobody(world, packet, cidrs)
    kind, policy, _ = expected.row
    claim = model.holder(world, packet)
    if kind == NODE_PORT and not model.serves_node_port(world, packet.destination):
        return (
            UNTOUCHED,
            {},
            {"elsewhere"} - ({"elsewhere"} if expected.fate == UNTOUCHED else set()),
        )
    ready, draining = model.usable(world, claim, family)
    if expected.fate == UNTOUCHED:
        return (DROPPED if ready or draining else REJECTED), {}, {"own"}
    chosen = {place: way.masquerade for place, way in expected.endpoints.items()}
    for place, marked in chosen.items():
        entry = ready.get(place) or draining[place]
        if place[0] == packet.source and marked and entry.node != world.node:
            inside = kind == CLUSTER_IP
            others = _masqueraded(world, policy, model.client_of(world, packet), inside)
            chosen[place] = others
            cells |= set() if others else {"far hairpin"}
    return expected.fate, chosen, cells


def _masqueraded(world, policy, client, inside):
    """Whether a client is masqueraded, whoever serves it."""
    if inside:
        return world.masquerade_all or (world.detector is not None and client != POD)
    return policy == TrafficPolicy.CLUSTER or client == NODE


def _to_nobody(world, packet, cidrs):
    """To no service port."""
    family, spots = (
        family_of(packet.destination),
        model.claims(world, family_of(packet.destination)),
    )
    winners = [
        one
        for one in spots
        if min(model.claims_on(world, one.spot, family), key=model.Claim.precedence) == one
    ]
    if model.is_local(world, packet.destination) and packet.in_interface:
        return UNTOUCHED, {}, set()
    if any(one.kind == CLUSTER_IP and one.spot[0] == packet.destination for one in winners):
        return REJECTED, {}, {"stranger"}
    if cidrs and model.within(packet.destination, SERVICE_CIDRS[family]):
        return DROPPED, {}, {"range"}
    return UNTOUCHED, {}, set()


def outcome_of(found):
    """(fate, {endpoint: masqueraded}) of what a walk came to."""
    (fate,) = {one.fate for one in found}
    chosen = {one.endpoint: one.masqueraded for one in found if one.endpoint is not None}
    return FATES[fate], chosen


class Clients:
    """What affinity remembers of all clients of one cluster."""

    def __init__(self, walker) -> None:
        self._walker = walker
        #: Number of a service port -> the port, and the other way round.
        self._ports, self._numbers = {}, {}

    def check(self, packet, found, expected) -> None:
        """A client that came before gets its endpoint again, treated as before, and its time
        begins anew; what is remembered of another service port or client changes nothing."""
        for one in found:
            assert (one.note is None) is (expected.affinity is None or one.endpoint is None)
            if one.note is None:
                continue
            assert one.note.seconds == expected.affinity
            assert self._ports.setdefault(one.note.service_port, expected.port) == expected.port
            number = self._numbers.setdefault(expected.port, one.note.service_port)
            assert number == one.note.service_port
            memory = {(packet.source, number): one.note.id}
            assert self._walker.outcomes(packet, memory) == {one}
            for other in ((packet.source, number ^ 1), ("192.0.2.99", number)):
                assert self._walker.outcomes(packet, {other: one.note.id}) == found
            # An endpoint that is there no more is forgotten.
            assert self._walker.outcomes(packet, {(packet.source, number): 0}) == found


@pytest.mark.parametrize("family", Family)
def test_packets_meet_the_model(family: Family) -> None:
    """What rules and elements do with a first packet is what the model says, for every packet and
    cluster; every row and all of :data:`CELLS` are met, and nothing differs but these."""
    rows, cells, seen, cases = Counter(), Counter(), Counter(), Counter()

    @BUDGET
    @given(
        drawn=worlds(),
        seed=st.integers(0, 1 << 16),
        cidrs=st.booleans(),
        by_client=st.booleans(),
    )
    def check(drawn, seed, cidrs, by_client):
        world = in_this_mode(drawn)
        walker = walker_of(world, family, cidrs, by_client)
        clients = Clients(walker)
        sent = random.Random(seed).choices(packets(world, family), k=PACKETS)
        for packet in dict.fromkeys(one for one in sent if one.ctstate == "NEW"):
            expected = model.expected(world, packet)
            fate, chosen, met = wanted_of(world, packet, expected, cidrs)
            word = str(packet.protocol).lower()
            first = Packet(
                packet.source, packet.destination, word, packet.dport, packet.in_interface
            )
            found = walker.outcomes(first)
            assert outcome_of(found) == (fate, chosen), (first, expected, met, found)
            if fate == TRANSLATED:
                clients.check(first, found, expected)
            cases["packets"] += 1
            seen.update(expected.seen)
            cells.update(met)
            if expected.row:
                rows[expected.row] += 1

    check()
    if _RANDOM:
        return
    assert rows.keys() == {
        (kind, policy, client)
        for kind in (CLUSTER_IP, BALANCER, EXTERNAL_IP, NODE_PORT)
        for policy in TrafficPolicy
        for client in (POD, NODE, OTHER)
    }
    assert cells.keys() == CELLS.keys()
    assert {"affinity", "source permitted", "source not permitted", "hairpin"} <= seen.keys()
    assert cases["packets"] >= CASES
