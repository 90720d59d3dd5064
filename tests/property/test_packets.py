"""The whole iptables path, from objects to the end of a packet, against the model in words.

A case is one packet in one cluster, no packet twice in a cluster: at least 10,000 for each family.
The cases are the same in every run, and the run fails when they leave out a row of (kind of address
x policy x client), anything that may become of its packets, or a special case. Other cases, with
any number of clusters, and without that count::

    KPROXY_RANDOM_CLUSTERS=2000 pytest tests/property/test_packets.py [--hypothesis-seed=N]
"""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as budget
from hypothesis import strategies as st

from kproxy.backends.iptables.endpoint_set import NAMES, sources
from kproxy.backends.iptables.render import context_of, render_rules
from kproxy.backends.iptables.walk import Fate, Walk, Walker, split_endpoint, steps_of
from kproxy.config import Config
from kproxy.config_sections import DetectLocal, Iptables
from kproxy.core.events import Delta
from kproxy.core.objects import Family, Node
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
from tests.property.worlds import packets, worlds

CASES = 10_000
PACKETS = 30
CLUSTERS = 1200

_RANDOM = int(os.environ.get("KPROXY_RANDOM_CLUSTERS", "0"))

BUDGET = budget(
    max_examples=_RANDOM or CLUSTERS,
    derandomize=not _RANDOM,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

#: The field of KubeProxyConfiguration for each way to tell pods.
_DETECTION = {
    "cidr": lambda values: {"cluster_cidr": ",".join(values.values())},
    "bridge": lambda values: {
        "detect_local_mode": "BridgeInterface",
        "detect_local": DetectLocal(bridge_interface=values[Family.IPV4]),
    },
    "prefix": lambda values: {
        "detect_local_mode": "InterfaceNamePrefix",
        "detect_local": DetectLocal(interface_name_prefix=values[Family.IPV4]),
    },
}


def config_of(world):
    """The operator's configuration of a world."""
    detection = {} if world.detector is None else _DETECTION[world.detector[0]](world.detector[1])
    return Config(
        iptables=Iptables(
            masquerade_all=world.masquerade_all, localhost_node_ports=world.localhost_node_ports
        ),
        node_port_addresses=world.node_port_addresses,
        **detection,
    )


def rules_of(world, family):
    """The rules of a world, by all that lies between objects and rules, and the sets they ask."""
    labels = (("topology.kubernetes.io/zone", world.zone),) if world.zone else ()
    node = Node(world.node, labels, world.addresses)
    settings = node_settings(config_of(world), node, world.node, family, world.local)
    tracker = Tracker()
    tracker.apply(Delta((*world.services, *world.slices)))
    snapshot = Planner(family).plan(tracker, settings)
    context = context_of(snapshot, drop_invalid=world.drop_invalid, endpoint_set=world.asks_sets)
    return render_rules(snapshot, context), {NAMES[family]: sources(snapshot)}


def outcome_of(walk: Walk):
    """A walk in the model's terms: (fates, {endpoint: arrival}, accepted)."""
    endpoints = {
        split_endpoint(way.endpoint): model.Arrival(way.masquerade, way.accepted)
        for way in walk.outcomes
        if way.fate is Fate.TRANSLATED
    }
    accepted = any(way.accepted for way in walk.outcomes if way.fate is Fate.UNTOUCHED)
    return {str(fate) for fate in walk.fates}, endpoints, accepted


def check_chances(walk: Walk) -> None:
    """Endpoints have equal chances, but for the kernel's rounding to 2^-31."""
    assert sum(way.probability for way in walk.outcomes) == 1
    for chance in walk.endpoints.values():
        assert abs(chance - 1 / len(walk.endpoints)) < 1e-8


class Affinity:
    """The lists of clients in one cluster: one for each endpoint of each service port."""

    def __init__(self) -> None:
        self._owners: dict[str, tuple] = {}
        self._lists: dict[tuple, str] = {}

    def check(self, walker: Walker, walk: Walk, expected: model.Expected) -> None:
        """A client that came before gets its endpoint again, treated as before."""
        for way in walk.outcomes:
            assert bool(way.recorded) is (expected.affinity is not None)
            if not way.recorded:
                continue
            owner = (expected.port, way.endpoint)
            assert self._lists.setdefault(owner, way.recorded) == way.recorded
            assert self._owners.setdefault(way.recorded, owner) == owner
            again = walker.walk(walk.packet, {way.recorded, *self._strangers(expected.port)})
            assert len(again.outcomes) == 1, story(again, expected)
            stuck = again.outcomes[0]
            assert (stuck.endpoint, stuck.masquerade, stuck.accepted, stuck.recorded) == (
                way.endpoint,
                way.masquerade,
                way.accepted,
                way.recorded,
            )
            times = [step.rule.recent.seconds for step in stuck.steps if step.rule.recent]
            assert times == [expected.affinity, None]

    def _strangers(self, port):
        """Lists of other service ports: they must not matter."""
        return {name for name, owner in self._owners.items() if owner[0] != port}


# --- what must have been met --------------------------------------------------------------------

CLUSTER, LOCAL = "Cluster", "Local"
CLIENTS = (POD, NODE, OTHER)

#: First letters of what may become of a packet, in columns.
FATES = {fate[0]: fate for fate in (TRANSLATED, REJECTED, DROPPED, UNTOUCHED)}

#: (kind of address, policy) -> fates of packets from a pod, the node, others. Dropped: nobody here,
#: a source out of range. Untouched: sent by the node, which no rule refuses (it may have an address
#: of the pods' range), or a node port that is not served on the address.
ROWS = {
    (CLUSTER_IP, CLUSTER): ("tr  ", "tr  ", "tr  "),
    (CLUSTER_IP, LOCAL): ("trd ", "trd ", "trd "),
    (BALANCER, CLUSTER): ("trdu", "trdu", "trd "),
    (BALANCER, LOCAL): ("trdu", "trdu", "trd "),
    (EXTERNAL_IP, CLUSTER): ("tr u", "tr u", "tr  "),
    (EXTERNAL_IP, LOCAL): ("tr u", "tr u", "trd "),
    (NODE_PORT, CLUSTER): ("tr u", "tr u", "tr u"),
    (NODE_PORT, LOCAL): ("trdu", "trdu", "trdu"),
}

SPECIAL = {
    *(f"detector {kind}" for kind in (None, "cidr", "bridge", "prefix")),
    "affinity",
    "conflict",
    "draining",
    "endpoint with the node's address",
    "established accepted",
    "hairpin",
    "health check accepted",
    "hinted by node",
    "hinted by zone",
    "invalid dropped",
    "invalid of an endpoint dropped",
    "invalid of others untouched",
    "masqueradeAll",
    "NEW untouched",
    "INVALID untouched",
    "ESTABLISHED untouched",
    "node port not on this address",
    "nobody",
    "nobody here",
    "source is the load balancer's address",
    "source not permitted",
    "source permitted",
    "the node's own packets are not refused",
}
#: Only IPv4 has a route_localnet, so only there node ports are served on loopback.
SPECIAL_OF = {
    Family.IPV4: SPECIAL | {"localhost guarded", "node port on localhost"},
    Family.IPV6: SPECIAL,
}


def check_coverage(family: Family, rows: Counter, seen: Counter) -> None:
    """All that may become of a packet was met, and nothing else; so was every special case."""
    expected = {
        ((*row, client), FATES[letter])
        for row, columns in ROWS.items()
        for client, column in zip(CLIENTS, columns)
        for letter in column.strip().replace(" ", "")
    }
    assert rows.keys() == expected
    assert seen.keys() == SPECIAL_OF[family]


def story(walk: Walk, expected: model.Expected) -> str:
    """A failure in words: the packet, what was expected and why, the rules that it met."""
    met = [f"{step.hook}: {step.rule}" for step in steps_of(walk)]
    return "\n".join((str(walk.packet), str(expected), *met))


@pytest.mark.parametrize("family", list(Family))
def test_packets_meet_the_model(family):
    """What the rules do with a packet is what the model says, for every packet and cluster."""
    rows, seen, cases = Counter(), Counter(), Counter()

    @BUDGET
    @given(world=worlds(), seed=st.integers(0, 1 << 16))
    def check(world, seed):
        rules, sets = rules_of(world, family)
        walker, affinity = Walker(rules, world.local, sets), Affinity()
        sent = random.Random(seed).choices(packets(world, family), k=PACKETS)
        for packet in dict.fromkeys(sent):
            expected = model.expected(world, packet)
            walk = walker.walk(packet)
            found = outcome_of(walk)
            wanted = ({expected.fate}, expected.endpoints, expected.accepted)
            assert found == wanted, story(walk, expected)
            check_chances(walk)
            affinity.check(walker, walk, expected)
            cases["packets"] += 1
            seen.update(expected.seen)
            if expected.row:
                rows[expected.row, expected.fate] += 1

    check()
    if not _RANDOM:
        check_coverage(family, rows, seen)
        assert cases["packets"] >= CASES
