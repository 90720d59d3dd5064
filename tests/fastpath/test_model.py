"""From objects to the end of a packet: the engine does what the model in words says, in clusters at
random. The model is of iptables mode; where the engine differs on purpose is told below."""

from __future__ import annotations

import random
from collections import Counter
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as budget
from hypothesis import strategies as st

from kproxy.backends.fastpath.plan import node_table, plan_tables
from kproxy.core.events import Delta
from kproxy.core.objects import Family, Node
from kproxy.core.planner import Planner
from kproxy.core.settings import node_settings
from kproxy.core.tracker import Tracker
from kproxy.core.twin.parse import parse
from kproxy.core.twin.rewrite import tuple_of
from kproxy.core.twin.values import Code, Reason
from tests.fastpath.packets import ip, raw, sctp, tcp, udp
from tests.fastpath.pair import Pair
from tests.property import model
from tests.property.model import DROPPED, NODE_PORT, REJECTED, TRANSLATED, UNTOUCHED
from tests.property.test_packets import config_of
from tests.property.worlds import packets, worlds

BODIES = {
    "TCP": (6, lambda sport, dport: tcp(sport, dport)),
    "UDP": (17, lambda sport, dport: udp(sport, dport)),
    "SCTP": (132, lambda sport, dport: sctp(sport, dport)),
}
FATES = {Code.FORWARD: TRANSLATED, Code.REPLY: REJECTED, Code.DROP: DROPPED, Code.PASS: UNTOUCHED}
#: The rules of iptables mode that refuse hang where the node's own packets to others do not pass;
#: its guard of 127.0.0.0/8 is the steering's business here; a node port without endpoints is
#: refused on addresses where it would not be served, which do not come to the engine at all.
DIFFERENT = {"the node's own packets are not refused", "localhost guarded"}


def pair_of(world: model.World, family: Family, fastpath: ModuleType) -> Pair:
    """A cluster, through all that lies between objects and the engine."""
    labels = (("topology.kubernetes.io/zone", world.zone),) if world.zone else ()
    node = Node(world.node, labels, world.addresses)
    settings = node_settings(config_of(world), node, world.node, family, world.local)
    tracker = Tracker()
    tracker.apply(Delta((*world.services, *world.slices)))
    snapshot = Planner(family).plan(tracker, settings)
    tables = plan_tables(snapshot, None)
    table = node_table(settings, family, world.local, (49152, 65535))
    return Pair(fastpath, dict(enumerate(tables.services.values())), nodes=[table])


@pytest.mark.parametrize("family", list(Family))
def test_packets_meet_the_model(fastpath: ModuleType, family: Family):
    """Fate, endpoints and masquerade of first packets, of every kind of client and address."""
    met: Counter[str] = Counter()

    @budget(
        max_examples=60,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(world=worlds(), seed=st.integers(0, 1 << 16))
    def check(world: model.World, seed: int) -> None:
        if world.detector is not None and world.detector[0] != "cidr":
            return
        pair = pair_of(world, family, fastpath)
        sent = random.Random(seed).choices(packets(world, family), k=60)
        for number, packet in enumerate(dict.fromkeys(sent)):
            if packet.ctstate == "NEW":
                judge(world, pair, packet, 1024 + number, met)

    check()
    assert {TRANSLATED, REJECTED, DROPPED, UNTOUCHED} <= met.keys()
    assert met["masqueraded"]
    assert met["seen"]


def judge(world: model.World, pair: Pair, packet, sport: int, met: Counter[str]) -> None:
    """One first packet, both by the model and by the engine."""
    expected = model.expected(world, packet)
    if expected.seen & DIFFERENT:
        return
    of_node_port = expected.row is not None and expected.row[0] == NODE_PORT
    if of_node_port and not model.serves_node_port(world, packet.destination):
        return
    protocol, body = BODIES[str(packet.protocol)]
    made = ip(packet.source, packet.destination, protocol, body(sport, packet.dport))
    outcome = pair.send(made)
    if outcome.reason in (Reason.MALFORMED, Reason.STALE):
        return
    assert FATES[outcome.code] == expected.fate, (packet, expected, outcome.reason)
    met[expected.fate] += 1
    if outcome.code is not Code.FORWARD:
        return
    plan = pair.twin.plan(parse(made).family, tuple_of(parse(made)))
    assert plan is not None
    chosen = {(one.address, one.port) for one, _ in plan.service.choosers[plan.use].members}
    assert chosen == {(raw(address), port) for address, port in expected.endpoints}
    reached = parse(outcome.packet)
    place = reached.destination, reached.ports[1]
    arrival = {(raw(a), port): how for (a, port), how in expected.endpoints.items()}[place]
    node = pair.twin.nodes[reached.family]
    hidden = reached.source != raw(packet.source) or reached.ports[0] != sport
    assert hidden == arrival.masquerade
    if hidden:
        assert reached.source == node.masquerade
        assert node.ports[0] <= reached.ports[0] <= node.ports[1]
    met["masqueraded" if hidden else "seen"] += 1
