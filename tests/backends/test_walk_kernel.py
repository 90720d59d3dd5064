"""The walker against the kernel: real packets, and the counters of the rules that they met."""

from __future__ import annotations

import os
import re
import socket
import time
from contextlib import ExitStack, contextmanager, suppress

import pytest

from kproxy.backends.iptables.render import context_of, render_rules
from kproxy.backends.iptables.walk import Fate, Packet, Walker
from kproxy.backends.xtables.text import line
from kproxy.backends.xtables.variant import Variant
from kproxy.core.events import Delta
from kproxy.core.objects import (
    Family,
    Protocol,
    ServiceType,
    SlicePort,
    TrafficPolicy,
)
from kproxy.core.planner import Planner
from kproxy.core.snapshot import LocalDetector
from kproxy.core.tracker import Tracker
from kproxy.kernel import netns, sysctl
from kproxy.kernel.command import run
from kproxy.kernel.ipset import IpSets
from tests.factories import make_endpoint, make_port, make_service, make_settings, make_slice

pytestmark = pytest.mark.kernel

UDP = Protocol.UDP
LOCAL = TrafficPolicy.LOCAL
NODE, PEER, OUTSIDE = "192.168.0.2", "192.168.0.9", "192.0.2.7"
PODS = ("10.180.0.1", "10.180.0.2", "10.180.0.3")
DEVICE = "veth0"

#: Seconds within which the kernel must have counted a packet.
_PATIENCE = 20.0


def _service(name, ip, *, node_port=0, **fields):
    ports = (make_port("p", 80, protocol=UDP, node_port=node_port),)
    return make_service(name, ip=ip, ports=ports, **fields)


def _slice(name, *entries):
    return make_slice(
        *entries, service=name, ports=(SlicePort("p", UDP, 8080),), family=Family.IPV4
    )


OBJECTS = (
    _service("many", "172.30.0.1", type=ServiceType.NODE_PORT, node_port=30080),
    _slice("many", *(make_endpoint(ip, "node2") for ip in PODS)),
    _service("sticky", "172.30.0.2", affinity_seconds=10800),
    _slice("sticky", *(make_endpoint(ip, "node2") for ip in PODS)),
    _service("nobody", "172.30.0.3", type=ServiceType.NODE_PORT, node_port=30083),
    _service(
        "ranged",
        "172.30.0.4",
        type=ServiceType.LOAD_BALANCER,
        node_port=30084,
        load_balancer_ips=("203.0.113.1",),
        source_ranges=("192.0.2.0/24", "192.168.0.2/32"),
        source_ranges_set=True,
        external_policy=LOCAL,
        internal_policy=LOCAL,
    ),
    _slice("ranged", make_endpoint(PODS[0], "node2")),
    _service("hosted", "172.30.0.5", external_ips=("198.51.100.1",)),
    _slice("hosted", make_endpoint(NODE, "node1")),
)

#: (source, destination, port): sources other than the node send from the peer.
PACKETS = [
    (PODS[0], "172.30.0.1", 80),
    (OUTSIDE, "172.30.0.1", 80),
    (NODE, "172.30.0.1", 80),
    (OUTSIDE, "172.30.0.2", 80),
    (OUTSIDE, "172.30.0.2", 80),
    (OUTSIDE, "172.30.0.2", 80),
    (OUTSIDE, "172.30.0.3", 80),
    (NODE, "172.30.0.3", 80),
    (OUTSIDE, "172.30.0.4", 80),
    (OUTSIDE, "172.30.0.5", 80),
    (NODE, "172.30.0.5", 80),
    (OUTSIDE, "198.51.100.1", 80),
    (OUTSIDE, "203.0.113.1", 80),
    (PODS[1], "203.0.113.1", 80),
    (PEER, "203.0.113.1", 80),
    (NODE, "203.0.113.1", 80),
    (OUTSIDE, NODE, 30080),
    (NODE, NODE, 30080),
    (OUTSIDE, NODE, 30083),
    (NODE, NODE, 30083),
    (OUTSIDE, NODE, 30084),
    (PODS[2], NODE, 30084),
    (OUTSIDE, "172.30.0.9", 80),
]


def rules():
    """(rules, settings) of the objects."""
    settings = make_settings(addresses=(NODE,), detector=LocalDetector(cidr="10.180.0.0/16"))
    tracker = Tracker()
    tracker.apply(Delta(OBJECTS))
    snapshot = Planner(Family.IPV4).plan(tracker, settings)
    return render_rules(snapshot, context_of(snapshot))


class Wire:
    """The calling thread's namespace as the node, and a peer that is everybody else."""

    def __init__(self, variant: Variant, peer: int, lock: str) -> None:
        self.variant, self.peer = variant, peer
        self.env = {"XTABLES_LOCKFILE": lock}

    def load(self, wanted) -> None:
        """Put the rules into the kernel, and the sets that they ask, empty."""
        with IpSets(Family.IPV4) as sets:
            for name in {match.name for rule in wanted for match in rule.sets}:
                sets.create(name)
        text = []
        for table in dict.fromkeys(rule.table for rule in wanted):
            mine = [rule for rule in wanted if rule.table is table]
            named = {rule.chain for rule in mine} | {
                rule.target.chain for rule in mine if hasattr(rule.target, "chain")
            }
            text.append(f"*{table}")
            text += [f":{chain} - [0:0]" for chain in sorted(named) if chain.startswith("KUBE-")]
            text += [line(rule, Family.IPV4) for rule in mine]
            text.append("COMMIT\n")
        self._tool("restore", stdin="\n".join(text).encode())

    def counters(self) -> dict[tuple[str, str], int]:
        """(table, rule as text) -> packets that met it."""
        found, table = {}, ""
        for row in self._tool("save", "-c").decode().splitlines():
            if row.startswith("*"):
                table = row[1:]
            elif match := re.fullmatch(r"\[(\d+):\d+\] (-A .*)", row):
                found[table, match[2]] = int(match[1])
        return found

    def send(self, source: str, destination: str, port: int) -> None:
        with netns.entered(None if source == NODE else self.peer):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        # EPERM: filter OUTPUT did not let it out. The counters tell.
        with sender, suppress(PermissionError):
            sender.bind((source, 0))
            sender.sendto(b"x", (destination, port))

    def _tool(self, what: str, *args: str, stdin: bytes | None = None) -> bytes:
        return run([f"iptables-{self.variant}-{what}", *args], stdin=stdin, env=self.env).stdout


@contextmanager
def wired(variant: Variant, lock: str):
    """A node and its peer, wired; gone when nobody holds their namespaces any more."""
    with ExitStack() as stack:
        with netns.fresh():
            peer = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, peer)
        stack.enter_context(netns.fresh())
        sysctl.write("net/ipv4/ip_forward", "1")
        run(
            [
                "ip",
                "link",
                "add",
                DEVICE,
                "type",
                "veth",
                "peer",
                DEVICE,
                "netns",
                f"/proc/{os.getpid()}/fd/{peer}",
            ]
        )
        _set_up(
            [f"{NODE}/24"],
            (f"10.180.0.0/16 via {PEER}", f"192.0.2.0/24 via {PEER}", f"default via {PEER}"),
        )
        with netns.entered(peer):
            others = [f"{ip}/32" for ip in (*PODS, OUTSIDE)]
            _set_up([f"{PEER}/24", *others], (f"default via {NODE}",))
            sinks = [_sink(ip) for ip in PODS]
        for sink in (*sinks, _sink(NODE)):
            stack.enter_context(sink)
        yield Wire(variant, peer, lock)


def _set_up(addresses, routes) -> None:
    run(["ip", "link", "set", "lo", "up"])
    run(["ip", "link", "set", DEVICE, "up"])
    for address in addresses:
        run(["ip", "address", "add", address, "dev", DEVICE])
    for route in routes:
        run(["ip", "route", "add", *route.split()])


def _sink(address: str) -> socket.socket:
    """Takes what arrives at an endpoint: a closed port would answer, and that would be counted."""
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind((address, 8080))
    return sink


def lines_of(way):
    return {(str(step.rule.table), line(step.rule, Family.IPV4)) for step in way.steps}


def refusal_of(walker: Walker, packet: Packet):
    """The rules that the ICMP error meets, which the node sends back for a refused packet."""
    answer = Packet(NODE, packet.source, UDP, 0, ctstate="ESTABLISHED")
    (way,) = walker.walk(answer).outcomes
    return lines_of(way)


@pytest.mark.parametrize("variant", list(Variant))
def test_counters_follow_the_walk(variant, tmp_path):
    """The rules whose counters a packet moves are those of one of the ways that it may take."""
    wanted = rules()
    walker, lists, fates = Walker(wanted, [NODE]), {}, set()
    with wired(variant, str(tmp_path / "lock")) as wire:
        wire.load(wanted)
        before = wire.counters()
        for source, destination, port in PACKETS:
            packet = Packet(source, destination, UDP, port, "" if source == NODE else DEVICE)
            ways = {}
            for way in walker.walk(packet, lists.get(source, ())).outcomes:
                met = lines_of(way)
                if way.fate is Fate.REJECTED:
                    met |= refusal_of(walker, packet)
                ways[frozenset(met)] = way
            wire.send(source, destination, port)
            deadline = time.monotonic() + _PATIENCE
            while True:
                after = wire.counters()
                moved = frozenset(rule for rule, count in after.items() if count > before[rule])
                if moved in ways or time.monotonic() > deadline:
                    break
            assert moved in ways, (packet, moved)
            before = after
            fates.add(ways[moved].fate)
            if ways[moved].recorded:
                lists.setdefault(source, set()).add(ways[moved].recorded)
    assert fates == set(Fate)
