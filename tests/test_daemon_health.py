"""The daemon and the health of endpoints: as a real process, with endpoints that live and die."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from watchfiles import watch

from kproxy import status
from kproxy.health.memory import FILE
from kproxy.health.standing import PortStanding, State
from kproxy.kernel import command, netns, sysctl
from tests.test_daemon import TIMEOUT, Proxy, node, proxy, put
from tests.test_daemon_watched import of, samples

__all__ = ["node", "proxy"]

pytestmark = pytest.mark.kernel

VIP, PORT = "172.30.0.41", 80
ONE, TWO = "10.180.0.1", "10.180.0.2"
ONE6, TWO6 = "fd00:10::1", "fd00:10::2"

#: Quick enough for a test. Who is dead here refuses at once; a time-out would only be that of a
#: busy machine.
ACTIVE = {
    "tcp": {},
    "interval": "100ms",
    "fastInterval": "50ms",
    "timeout": "30s",
    "fall": 2,
    "rise": 1,
}
#: Only what comes before the first sync could be the same at once.
SLOW = ACTIVE | {"interval": "60s", "fastInterval": "60s", "fall": 1}
PASSIVE = {"passive": {"failures": 2, "base": "3s", "share": "50%"}}


def manifest(health: Any, *, six: bool = False) -> str:
    """A service with two endpoints in each family, and what is asked of their health."""
    meta = {"namespace": "ns1", "name": "web", "annotations": {}}
    if health is not None:
        meta["annotations"] = {"kproxy/health-check": json.dumps(health)}
    ips = [VIP, "fd00:30::41"] if six else [VIP]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": {
            "clusterIP": VIP,
            "clusterIPs": ips,
            "ipFamilies": ["IPv4", "IPv6"][: len(ips)],
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [{"name": "p", "port": PORT, "protocol": "TCP"}],
        },
    }
    slices = [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": "ns1",
                "name": f"web-{kind.lower()}",
                "labels": {"kubernetes.io/service-name": "web"},
            },
            "addressType": kind,
            "ports": [{"name": "p", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": [address]} for address in addresses],
        }
        for kind, addresses in (("IPv4", (ONE, TWO)), ("IPv6", (ONE6, TWO6)))[: len(ips)]
    ]
    return "\n---\n".join(json.dumps(each) for each in (service, *slices))


class Pods:
    """A namespace behind the node with the addresses of all pods, and servers there."""

    def __init__(self, proxy: Proxy, stack: ExitStack) -> None:
        self.name, self._node, self._stack = f"{proxy.namespace}p", proxy.namespace, stack
        self._servers: dict[str, socket.socket] = {}
        netns.create(self.name)
        stack.callback(netns.remove, self.name)
        with netns.entered(proxy.namespace):
            sysctl.write("net/ipv4/ip_forward", "1")
            _ip(f"link add kp0 type veth peer kp0 netns {self.name}", "link set kp0 up")
            _ip("address add 10.180.255.254/16 dev kp0")
            _ip("address add fd00:10::ffff/64 dev kp0 nodad", "route add default dev br0")
        with netns.entered(self.name):
            _ip("link set kp0 up", "link set lo up")
            for address in (ONE, TWO):
                _ip(f"address add {address}/16 dev kp0")
            for address in (ONE6, TWO6):
                _ip(f"address add {address}/64 dev kp0 nodad")
            _ip("route add default via 10.180.255.254", "route add default via fd00:10::ffff")

    def open(self, *addresses: str) -> None:
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with netns.entered(self.name):
                server = self._stack.enter_context(socket.socket(family))
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address, 8080))
            server.listen(128)
            self._servers[address] = server

    def close(self, address: str) -> None:
        """Whoever comes is refused from here on."""
        self._servers.pop(address).close()

    def knock(self, address: str = VIP) -> None:
        """One connection from the node to the service, which must be made."""
        with netns.entered(self._node):
            client = socket.socket()
        with client:
            client.settimeout(TIMEOUT)
            client.connect((address, PORT))


def _ip(*lines: str) -> None:
    for line in lines:
        command.run(["ip", *line.split()])


@pytest.fixture
def pods(proxy: Proxy) -> Iterator[Pods]:
    with ExitStack() as stack:
        yield Pods(proxy, stack)


def standing(proxy: Proxy, family: int = 4) -> PortStanding:
    (found,) = (each for each in proxy.status().health if each.family == family)
    return found


def until_up(proxy: Proxy, count: int, family: int = 4) -> None:
    def reached() -> bool:
        return proxy.mine() and any(
            each.up == count for each in proxy.status().health if each.family == family
        )

    proxy.until(reached)


def events(proxy: Proxy) -> list[tuple[str, str]]:
    lines = (proxy.state / "events.jsonl").read_text().splitlines()
    return [(each["kind"], each["endpoint"]) for each in map(json.loads, lines)]


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_who_refuses_leaves_the_rules_until_it_heals(
    proxy: Proxy, pods: Pods, variant: str
) -> None:
    """And that is told: in the status, in the log, in the journal, in the metrics."""
    pods.open(ONE, TWO)
    file = proxy.manifests / "web.yaml"
    put(file, manifest(ACTIVE))
    proxy.start("--iptables-variant", variant)
    proxy.until_in_force(file)
    until_up(proxy, 2)
    pods.close(TWO)
    until_up(proxy, 1)
    assert f"{ONE}:8080" in proxy.rules(variant)
    assert f"{TWO}:8080" not in proxy.rules(variant)
    (ailing,) = standing(proxy).endpoints
    assert (ailing.address, ailing.state) == (f"{TWO}:8080", State.DOWN)
    assert "refused" in ailing.reason
    port = {"namespace": "ns1", "service": "web", "port": "p", "protocol": "TCP"}
    found = samples(proxy)
    for state, count in (("up", 1), ("down", 1), ("ejected", 0)):
        assert found[of("kproxy_health_endpoints", **port, ip_family="IPv4", state=state)] == count
    assert found[of("kproxy_health_transitions_total", kind="down", ip_family="IPv4")] == 1
    assert found[of("kproxy_health_transitions_total", kind="down", ip_family="IPv6")] == 0
    assert found[of("kproxy_health_panic", **port, ip_family="IPv4")] == 0
    assert found[of("kproxy_health_checks_total", kind="tcp", result="good")] > 0
    assert found[of("kproxy_health_targets", kind="tcp")] == 2
    pods.open(TWO)
    until_up(proxy, 2)
    assert f"{TWO}:8080" in proxy.rules(variant)
    assert standing(proxy).endpoints == ()
    assert proxy.stop() == 0
    assert events(proxy) == [("down", f"{TWO}:8080"), ("up", f"{TWO}:8080")]
    log = proxy.log.read_text()
    assert log.count("WARNING health: endpoint is down") == 1
    assert log.count("INFO health: endpoint is up") == 1


def test_nobody_up_is_panic(proxy: Proxy, pods: Pods) -> None:
    """All are used rather than none, and it is told; so is its end."""
    pods.open(ONE, TWO)
    file = proxy.manifests / "web.yaml"
    put(file, manifest(ACTIVE))
    proxy.start()
    proxy.until_in_force(file)
    pods.close(ONE)
    until_up(proxy, 1)
    pods.close(TWO)
    until_up(proxy, 0)
    assert standing(proxy).panic
    assert all(f"{address}:8080" in proxy.rules() for address in (ONE, TWO))
    pods.open(TWO)
    until_up(proxy, 1)
    assert not standing(proxy).panic
    assert f"{ONE}:8080" not in proxy.rules()
    assert [kind for kind, _ in events(proxy)] == ["down", "down", "panic", "up", "calm"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_keeps_what_is_known(proxy: Proxy, pods: Pods, number: int) -> None:
    """The next daemon writes no rule for an endpoint that is down, and tells nothing anew."""
    pods.open(ONE)
    file = proxy.manifests / "web.yaml"
    put(file, manifest(SLOW))
    proxy.start()
    proxy.until_in_force(file)
    until_up(proxy, 1)
    rules = proxy.rules()
    assert f"{TWO}:8080" not in rules
    _until_kept(proxy)
    proxy.stop(number)
    assert (proxy.state / FILE).stat().st_mode & 0o777 == 0o600
    told = events(proxy)
    proxy.start()
    proxy.until_in_force(file)
    assert proxy.rules() == rules
    assert [one.written for one in proxy.status().families] == [0, 0]
    assert standing(proxy).up == 1
    assert "known from before" in proxy.log.read_text()
    assert events(proxy) == told


def test_a_successor_goes_on_with_what_is_known(proxy: Proxy, pods: Pods) -> None:
    """It takes over from a living one, which checks and writes nothing any more."""
    pods.open(ONE)
    file = proxy.manifests / "web.yaml"
    put(file, manifest(SLOW))
    flags = "--proxy-mode", "userspace", "--healthz-bind-address", ""
    proxy.start(*flags)
    proxy.until_in_force(file)
    until_up(proxy, 1)
    first, told = proxy.process, events(proxy)
    assert first is not None
    proxy.start(*flags)
    proxy.until_in_force(file)
    assert standing(proxy).up == 1
    assert first.wait(TIMEOUT) == 0
    assert events(proxy) == told
    assert "known from before" in proxy.log.read_text()
    assert proxy.stop() == 0
    kept = json.loads((proxy.state / FILE).read_bytes())["opinions"]
    assert len(kept) == 2


def _until_kept(proxy: Proxy) -> None:
    """Until what is known of both endpoints is in the file: a kill after that loses nothing."""
    path = proxy.state / FILE
    for _ in watch(proxy.state, step=10, rust_timeout=200, yield_on_timeout=True):
        if path.exists() and len(json.loads(path.read_bytes())["opinions"]) == 2:
            return


def test_both_families_are_judged(proxy: Proxy, pods: Pods) -> None:
    """Each endpoint by its own address."""
    pods.open(ONE, TWO, ONE6, TWO6)
    file = proxy.manifests / "web.yaml"
    put(file, manifest(ACTIVE, six=True))
    proxy.start()
    proxy.until_in_force(file)
    until_up(proxy, 2, family=6)
    pods.close(TWO6)
    until_up(proxy, 1, family=6)
    assert standing(proxy, 4).up == 2
    (ailing,) = standing(proxy, 6).endpoints
    assert ailing.address == f"[{TWO6}]:8080"
    pods.open(TWO6)
    until_up(proxy, 2, family=6)
    assert standing(proxy, 4).up == 2


@pytest.mark.parametrize("mode", ["userspace", "fastpath"])
def test_failed_connections_eject(proxy: Proxy, pods: Pods, mode: str) -> None:
    """Without any check: clients are served by the other one, the dead one is left out and let in
    again after its time."""
    pods.open(ONE)
    file = proxy.manifests / "web.yaml"
    put(file, manifest(PASSIVE))
    proxy.start("--proxy-mode", mode, "--iptables-variant", "auto")
    proxy.until_in_force(file)
    for knocks in range(100):
        # Of one status: the ejection has its time, however slow the clients are.
        found = standing(proxy)
        if found.up == 1:
            break
        pods.knock()
        # The first ones are more than it takes; what follows from them is told a moment later.
        if knocks >= 20:
            select.select([proxy.notices], [], [], 0.3)
            while proxy.notices.receive() is not None:
                pass
    (ailing,) = found.endpoints
    assert (ailing.address, ailing.state) == (f"{TWO}:8080", State.EJECTED)
    assert "refused" in ailing.reason
    pods.open(TWO)
    until_up(proxy, 2)
    told = events(proxy)
    # More than once, if nobody looked in the time of the first.
    once = [("ejected", f"{TWO}:8080"), ("readmitted", f"{TWO}:8080")]
    assert told == once * max(1, len(told) // 2)


def test_no_checks_no_files(proxy: Proxy) -> None:
    """A daemon whose services ask for nothing tells nothing, and has no thread for it."""
    file = proxy.manifests / "web.yaml"
    put(file, manifest(None))
    proxy.start()
    proxy.until_in_force(file)
    assert status.read(proxy.state) is not None
    assert proxy.status().health == ()
    assert proxy.process is not None
    threads = f"/proc/{proxy.process.pid}/task"
    names = set()
    for task in os.listdir(threads):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
            names.add(_read(f"{threads}/{task}/comm"))
    assert names
    assert "checks" not in names
    assert proxy.stop() == 0
    assert {path.name for path in proxy.state.iterdir()} <= {"lock", "status.json"}


def _read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()
