"""What becomes of a packet in IPVS mode, told from servers and sets, is what a Service promises.

The rules beside the servers are a fixed few: each asks a set. Here the question is put to the sets
themselves, for every client and every way in of whole clusters, and the answer held against the
model of all modes. Where IPVS answers otherwise stands in :data:`CELLS`, each with its reason.
"""

from __future__ import annotations

import ipaddress
import random
from collections import Counter

import pytest
from hypothesis import Phase, given
from hypothesis import settings as budget
from hypothesis import strategies as st
from msgspec.structs import replace

from kproxy.backends.ipvs import sets
from kproxy.backends.ipvs.fixed import Context
from kproxy.backends.ipvs.held import settled
from kproxy.backends.ipvs.plan import server_key
from kproxy.backends.ipvs.render import render
from kproxy.core.events import Delta
from kproxy.core.objects import Family, Node, TrafficPolicy, family_of
from kproxy.core.planner import Planner
from kproxy.core.settings import node_settings
from kproxy.core.tracker import Tracker
from tests.property import model
from tests.property.model import DROPPED, NODE, OTHER, POD, REJECTED, TRANSLATED, UNTOUCHED
from tests.property.test_packets import config_of
from tests.property.worlds import packets, worlds

CLUSTER_IP, NODE_PORT = model.CLUSTER_IP, model.NODE_PORT

#: Packets of one cluster.
PACKETS = 40

#: What IPVS mode does otherwise, and why.
CELLS = {
    "local": "a server has one list: under Local policy clients inside get the endpoints here too",
    "own": "IPVS sees what the node sends, whatever address it is for: nobody is refused there too",
    "elsewhere": "a node port has no server on an address where it does not answer",
}


class Held:
    """Servers and sets as the kernel holds them, asked as the rules ask."""

    def __init__(self, world, family):
        labels = (("topology.kubernetes.io/zone", world.zone),) if world.zone else ()
        node = Node(world.node, labels, world.addresses)
        config = replace(config_of(world), mode="ipvs")
        self.settings = node_settings(config, node, world.node, family, world.local)
        tracker = Tracker()
        tracker.apply(Delta((*world.services, *world.slices)))
        snapshot = Planner(family).plan(tracker, self.settings)
        held = settled(render(snapshot, Context(family, self.settings), (6, 1), None))
        self.family, self.servers, self._sets = family, held.servers, held.sets

    def has(self, name, *parts):
        return b"".join(parts) in self._sets[sets.in_family(name, self.family)]

    def permits(self, key, source):
        if not self.has(sets.LOAD_BALANCER_FIREWALL, key):
            return True
        ranges = self._sets[sets.in_family(sets.LOAD_BALANCER_SOURCE_RANGE, self.family)]
        for member in ranges:
            if member.startswith(key):
                net = ipaddress.ip_network((member[len(key) : -1], member[-1]))
                if ipaddress.ip_address(source) in net:
                    return True
        return self.has(sets.LOAD_BALANCER_SOURCE_IP, key, source)

    def marked(self, key, client):
        """Whether a packet to a server is marked for masquerading."""
        if self.has(sets.CLUSTER_IP, key):
            told = self.settings.detector is not None and client != POD
            return self.settings.masquerade_all or told
        if self.has(sets.EXTERNAL_IP, key):
            return True
        local = self.has(sets.EXTERNAL_IP_LOCAL, key) or self.has(sets.LOAD_BALANCER_LOCAL, key)
        if not (local or self.has(sets.LOAD_BALANCER, key)):
            local = self._by_port(sets.NODE_PORT_LOCAL, key)
            assert self._by_port(sets.NODE_PORT, key)
        return client == NODE or not local

    def _by_port(self, names, key):
        name = {6: "TCP", 17: "UDP", 132: "SCTP"}[key[-1]]
        return self.has(names[name], key if name == "SCTP" else key[-3:-1])

    def outcome(self, packet, client):
        """(fate, {endpoint: masqueraded})"""
        key = server_key(packet.destination, packet.dport, packet.protocol)
        source = ipaddress.ip_address(packet.source).packed
        if key not in self.servers:
            assert not self.has(sets.NO_ENDPOINT, key)
            assert not self.has(sets.NO_LOCAL_ENDPOINT, key)
            return UNTOUCHED, {}
        if not self.permits(key, source) or self.has(sets.NO_ENDPOINT, key):
            return DROPPED, {}
        if client == OTHER and self.has(sets.NO_LOCAL_ENDPOINT, key):
            return DROPPED, {}
        chosen = {}
        for real in self.servers[key].reals:
            hairpin = self.has(sets.LOOP_BACK, real, key[-1:], source)
            assert self.has(sets.LOOP_BACK, real, key[-1:], real[:-2])
            place = str(ipaddress.ip_address(real[:-2])), int.from_bytes(real[-2:])
            chosen[place] = self.marked(key, client) or hairpin
        return (TRANSLATED if chosen else REJECTED), chosen


def wanted_of(world, packet, expected):
    """(fate, {endpoint: masqueraded}, the cell of it or "")."""
    kind, policy, client = expected.row
    claim = model.holder(world, packet)
    chosen = {place: way.masquerade for place, way in expected.endpoints.items()}
    if kind == NODE_PORT and not model.serves_node_port(world, packet.destination):
        return UNTOUCHED, {}, "" if expected.fate == UNTOUCHED else "elsewhere"
    ready, draining = model.usable(world, claim, family_of(packet.destination))
    if expected.fate == UNTOUCHED:
        return (DROPPED if ready or draining else REJECTED), {}, "own"
    inside = client != OTHER and kind != CLUSTER_IP and policy == TrafficPolicy.LOCAL
    here = model.on_node(world, ready, draining)
    if expected.fate == TRANSLATED and inside and here and set(here) != set(chosen):
        mark = client == NODE
        return TRANSLATED, {place: mark or place[0] == packet.source for place in here}, "local"
    return expected.fate, chosen, ""


@pytest.mark.parametrize("family", Family)
def test_every_client_at_every_way_in(family) -> None:
    """Served by the right endpoints with the right source, refused or dropped, as everywhere; all
    of :data:`CELLS` are met, and nothing differs but these."""
    rows, cells = Counter(), Counter()

    @budget(
        max_examples=150, deadline=None, derandomize=True, database=None,
        phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(world=worlds(), seed=st.integers(0, 1 << 16))
    def check(world, seed):
        held = Held(world, family)
        for packet in random.Random(seed).choices(packets(world, family), k=PACKETS):
            ends = map(ipaddress.ip_address, (packet.source, packet.destination))
            expected = model.expected(world, packet)
            if expected.row is None or any(end.is_loopback for end in ends):
                continue
            fate, chosen, cell = wanted_of(world, packet, expected)
            found = held.outcome(packet, model.client_of(world, packet))
            for marks in (found[1], chosen):
                # Nothing leaves the node on the way to an endpoint that has its address.
                marks.update((place, False) for place in marks if place[0] in world.local)
            assert found == (fate, chosen), (packet, expected, cell)
            rows[expected.row, fate] += 1
            cells[cell] += bool(cell)

    check()
    assert {row for row, _ in rows} == {
        (kind, policy, client)
        for kind in (CLUSTER_IP, model.BALANCER, model.EXTERNAL_IP, NODE_PORT)
        for policy in TrafficPolicy
        for client in (POD, NODE, OTHER)
    }
    assert {cell for cell, count in cells.items() if count} == CELLS.keys()
