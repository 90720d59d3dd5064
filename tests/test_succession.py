"""Userspace mode: one daemon takes over from another, real processes under real traffic."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Self

import pytest

from kproxy.backends.userspace import handover, state
from kproxy.backends.userspace.estate import Words
from kproxy.core.objects import Family
from kproxy.errors import OccupiedError
from kproxy.kernel import netns
from kproxy.kernel.netlink import open_route
from kproxy.occupancy import occupant
from kproxy.succession import Succession
from tests.test_daemon import Proxy, put

pytestmark = pytest.mark.kernel

TIMEOUT = 60.0
NODE = "192.0.2.7"
CLUSTER_IP, STICKY_IP = "172.30.0.41", "172.30.0.42"
ENDPOINTS = ("10.180.0.1", "10.180.0.2", "10.180.0.3")
NODE_PORT = 30080

SERVICES = f"""\
apiVersion: v1
kind: Service
metadata: {{namespace: ns1, name: web}}
spec:
  type: NodePort
  clusterIP: {CLUSTER_IP}
  ports:
  - {{name: p, port: 80, nodePort: {NODE_PORT}}}
  - {{name: u, port: 80, protocol: UDP, nodePort: {NODE_PORT}}}
---
apiVersion: v1
kind: Service
metadata: {{namespace: ns1, name: sticky}}
spec:
  clusterIP: {STICKY_IP}
  sessionAffinity: ClientIP
  ports: [{{name: p, port: 80}}, {{name: u, port: 80, protocol: UDP}}]
"""


def slices(*endpoints: str) -> str:
    """Both services' endpoints."""
    return "".join(
        f"""\
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{namespace: ns1, name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: p, port: 8080, protocol: TCP}}, {{name: u, port: 5300, protocol: UDP}}]
endpoints: [{", ".join(f"{{addresses: [{each}]}}" for each in endpoints)}]
"""
        for name in ("web", "sticky")
    )


# --- the node and its endpoints -----------------------------------------------------------------


class Node:
    """A namespace in which everything is: clients are on the node itself, endpoints too. An
    endpoint answers each request with its own address."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        netns.create(self.name)
        self._opened.callback(netns.remove, self.name)
        with open_route(self.name) as route:
            route.link("set", index=1, state="up")
            route.link("add", ifname="br0", kind="bridge", state="up")
            index = route.link_lookup(ifname="br0")[0]
            route.addr("add", index=index, address=NODE, prefixlen=24)
            for address in ENDPOINTS:
                route.addr("add", index=index, address=address, prefixlen=32)
            route.route("add", dst="default", gateway="192.0.2.1")
        for address in ENDPOINTS:
            self._serve(address)
        return self

    def __exit__(self, *exc: object) -> None:
        self._opened.close()

    def _serve(self, address: str) -> None:
        listening = self.open()
        listening.bind((address, 8080))
        listening.listen(1024)
        datagrams = self.open(socket.SOCK_DGRAM)
        datagrams.bind((address, 5300))
        for one, work in ((listening, _accept), (datagrams, _answer)):
            self._opened.callback(one.close)
            # Closing alone would not wake a thread that waits.
            self._opened.callback(_shut, one)
            threading.Thread(target=work, args=(one, address.encode()), daemon=True).start()

    def open(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """One of the node's, that waits for :data:`TIMEOUT` at most."""
        with netns.entered(self.name):
            made = socket.socket(socket.AF_INET, kind)
        if kind is socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return made

    def connect(
        self,
        address: str = CLUSTER_IP,
        port: int = 80,
        kind: socket.SocketKind = socket.SOCK_STREAM,
    ) -> socket.socket:
        made = self.open(kind)
        made.settimeout(TIMEOUT)
        made.connect((address, port))
        return made

    def endpoint(self, address: str = CLUSTER_IP, **more: socket.SocketKind) -> str:
        """Which endpoint answers a new client."""
        with self.connect(address, **more) as client:
            return asked(client)


def asked(client: socket.socket) -> str:
    """Which endpoint answers on this connection, or session."""
    client.sendall(b"?")
    answer = client.recv(64).decode()
    assert answer, "closed instead of answered"
    return answer


def _shut(one: socket.socket) -> None:
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # one of UDP is woken all the same


def _accept(listening: socket.socket, name: bytes) -> None:
    while True:
        try:
            client, _ = listening.accept()
        except OSError:
            return
        threading.Thread(target=_talk, args=(client, name), daemon=True).start()


def _talk(client: socket.socket, name: bytes) -> None:
    with client:
        try:
            while client.recv(64):
                client.sendall(name)
        except OSError:
            return


def _answer(datagrams: socket.socket, name: bytes) -> None:
    while True:
        try:
            said, client = datagrams.recvfrom(64)
            if not said:
                return
            datagrams.sendto(name, client)
        except OSError:
            return


@pytest.fixture
def node() -> Iterator[Node]:
    with Node(f"kp-A{os.getpid()}") as made:
        yield made


class Daemons(Proxy):
    """The daemons that serve with one state directory, one after another."""

    def __init__(self, namespace: str, folder: Path) -> None:
        super().__init__(namespace, folder)
        self.older: list[subprocess.Popen[bytes]] = []
        self.file = self.manifests / "web.yaml"

    def __exit__(self, *exc: object) -> None:
        for one in self.older:
            if one.poll() is None:
                one.kill()
                one.wait(TIMEOUT)
        super().__exit__(*exc)

    def serve(self, *flags: str) -> None:
        """Start one more, and return when it has all in force."""
        if self.process is not None and self.process.poll() is None:
            self.older.append(self.process)
        self.start("--proxy-mode", "userspace", "--healthz-bind-address", "", *flags)
        self.until_in_force(self.file)

    def until(self, reached: Callable[[], bool]) -> None:
        """With patience: clients may keep the processors busy meanwhile."""
        self.notices.until_sync(reached, TIMEOUT)

    @property
    def written(self) -> list[int]:
        """What the last sync wrote, by family."""
        return [one.written for one in self.status().families]


@pytest.fixture
def daemons(node: Node, tmp_path: Path) -> Iterator[Daemons]:
    with Daemons(node.name, tmp_path) as made:
        put(made.file, SERVICES + slices(*ENDPOINTS))
        try:
            made.serve()
            yield made
        finally:
            sys.stdout.write(made.log.read_text())


class Load:
    """Clients that come and go all the time; ``failed`` says what went wrong."""

    def __init__(self, node: Node, *kinds: socket.SocketKind) -> None:
        self._node = node
        self._stop = threading.Event()
        self._came = threading.Condition()
        self.answers = 0
        self.failed: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(kind,)) for kind in kinds]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.more()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT)

    def more(self, count: int = 100) -> None:
        """Return when so many more clients have been answered."""
        with self._came:
            goal = self.answers + count
            assert self._came.wait_for(lambda: self.answers >= goal or self.failed, TIMEOUT)

    def _run(self, kind: socket.SocketKind) -> None:
        while not self._stop.is_set():
            try:
                with self._node.connect(kind=kind) as client:
                    # A session stays until it times out, and a relay has room for a thousand.
                    for _ in range(16 if kind is socket.SOCK_DGRAM else 1):
                        asked(client)
                failed = ""
            except (OSError, AssertionError) as why:
                failed = f"{kind.name}: {why!r}"
            with self._came:
                self.answers += not failed
                self.failed += [failed] * bool(failed)
                self._came.notify_all()


TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM

# --- taking over --------------------------------------------------------------------------------


def test_nobody_notices(node: Node, daemons: Daemons) -> None:
    """Under load one daemon after another takes over: no client is refused or left without an
    answer, connections go on, and the rules stay as they are."""
    assert daemons.stop() == 0
    # Longer than an endpoint can be held up here: its answer finds no session after that.
    daemons.serve("--udp-timeout", "3s")
    rules = daemons.rules()
    with node.connect() as long_lived, Load(node, TCP, TCP, UDP, UDP) as load:
        endpoint = asked(long_lived)
        for _ in range(3):
            daemons.serve("--udp-timeout", "3s")
            assert daemons.written == [0, 0]
            load.more()
            assert asked(long_lived) == endpoint
    assert load.failed == []
    assert daemons.rules() == rules
    # The first one had the long connection, the second nothing but short ones.
    assert [one.wait(TIMEOUT) for one in daemons.older] == [0, 0, 0]


def test_udp_sessions_keep_their_endpoint(node: Node, daemons: Daemons) -> None:
    """A client that goes on sending reaches the same endpoint through the new daemon."""
    with ExitStack() as opened:
        clients = [opened.enter_context(node.connect(kind=UDP)) for _ in range(24)]
        before = [asked(client) for client in clients]
        assert len(set(before)) == len(ENDPOINTS)
        for _ in range(2):
            daemons.serve()
            assert [asked(client) for client in clients] == before


@pytest.mark.parametrize("kind", [TCP, UDP])
def test_affinity_is_kept(node: Node, daemons: Daemons, kind: socket.SocketKind) -> None:
    """A client's next connections go where its last ones went."""
    before = node.endpoint(STICKY_IP, kind=kind)
    for _ in range(2):
        daemons.serve()
        assert {node.endpoint(STICKY_IP, kind=kind) for _ in range(12)} == {before}


def test_what_changed_meanwhile_is_taken_in(node: Node, daemons: Daemons) -> None:
    """The new daemon serves what its manifests say, whatever the old one served; a connection to
    an endpoint that is gone goes on."""
    with node.connect() as long_lived:
        went = asked(long_lived)
        daemons.process.send_signal(signal.SIGSTOP)  # type: ignore[union-attr]
        left = [each for each in ENDPOINTS if each != went]
        put(daemons.file, SERVICES + slices(*left))
        daemons.process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
        daemons.serve()
        assert {node.endpoint() for _ in range(20)} == set(left)
        assert asked(long_lived) == went


def test_node_ports_stay_held(node: Node, daemons: Daemons) -> None:
    """While they change hands and after the first holder has ended no other program gets them."""
    daemons.serve()
    assert daemons.older[0].wait(TIMEOUT) == 0
    for kind in (TCP, UDP):
        with closing(node.open(kind)) as other, pytest.raises(OSError, match="in use"):
            other.bind((NODE, NODE_PORT))
    with node.connect(NODE, NODE_PORT) as client:
        assert asked(client) in ENDPOINTS


def test_servers_of_the_old_one_make_room(node: Node, daemons: Daemons) -> None:
    """The new daemon answers on the metrics port at once, with counters of its own."""
    for _ in range(2):
        daemons.serve("--metrics-bind-address", "127.0.0.1:10249")
        node.endpoint()
        with node.connect("127.0.0.1", 10249) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = b"".join(iter(lambda: client.recv(65536), b"")).decode()
        labels = 'ip_family="IPv4",namespace="ns1",port="p",protocol="TCP",service="web"'
        assert f"kproxy_relay_connections_total{{{labels}}} 1.0" in text
        by_endpoint = [
            line.rpartition(" ")[2]
            for line in text.splitlines()
            if line.startswith("kproxy_relay_endpoint_connections_total{") and labels in line
        ]
        assert sorted(by_endpoint) == [*("0.0",) * (len(ENDPOINTS) - 1), "1.0"]


def test_figures_are_told_to_who_asks(
    node: Node, daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was carried of each service port, without taking over."""
    # Nobody looks at a screen here.
    monkeypatch.setattr(handover, "_ASK_PATIENCE", TIMEOUT)
    for _ in range(3):
        node.endpoint()
    figures = handover.ask(daemons.state)
    assert figures is not None
    (v4,) = [each for each in figures if each.family is Family.IPV4]
    counted = {str(each.name): each.counters["connections"] for each in v4.services}
    assert counted == {"ns1/web:p": 3, "ns1/web:u": 0, "ns1/sticky:p": 0, "ns1/sticky:u": 0}
    assert not any(each.endpoints for each in v4.services)
    asked_more = handover.ask(daemons.state, endpoints=True)
    assert asked_more is not None
    (web,) = [
        each for told in asked_more for each in told.services if str(each.name) == "ns1/web:p"
    ]
    by_endpoint = {each.address: each.counters["connections"] for each in web.endpoints}
    assert by_endpoint.keys() == set(ENDPOINTS)
    assert sum(by_endpoint.values()) == 3


# --- when it does not come about ----------------------------------------------------------------


def _only_knocks(successor: handover.Predecessor) -> None:
    """It says nothing at all."""


def _takes_the_sockets(successor: handover.Predecessor) -> None:
    assert successor.estates()[Family.IPV4].fds


def _hears_the_first_words(successor: handover.Predecessor) -> None:
    """Some services are its own by then, and others are not."""
    successor.estates()
    with pytest.raises(InterruptedError):
        successor.parting(_break_off)


def _break_off(family: Family, words: Words) -> None:
    raise InterruptedError


def _hears_the_last_words(successor: handover.Predecessor) -> None:
    said: list[Words] = []
    successor.estates()
    successor.parting(lambda _, words: said.append(words))
    assert len(said) == 4


@pytest.mark.parametrize(
    "step",
    [_only_knocks, _takes_the_sockets, _hears_the_first_words, _hears_the_last_words],
    ids=lambda step: step.__name__,
)
def test_a_successor_that_breaks_off(
    node: Node, daemons: Daemons, step: Callable[[handover.Predecessor], None]
) -> None:
    """Wherever it does, the old daemon serves on as before: its connections, its sessions, its
    clients' endpoints; and the next successor finds everything."""
    rules = daemons.rules()
    with node.connect() as flow, node.connect(kind=UDP) as session:
        endpoints = asked(flow), asked(session), node.endpoint(STICKY_IP)
        # Of TCP only: thousands of UDP sessions would make the idle one give way.
        with Load(node, TCP, TCP) as load:
            # A process of its own: what it was given ends with it.
            child = os.fork()
            if child == 0:
                try:
                    found = handover.Predecessor.find(daemons.state)
                    assert found is not None
                    step(found)
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            load.more()
            assert (asked(flow), asked(session), node.endpoint(STICKY_IP)) == endpoints
            daemons.serve()
            load.more()
            assert (asked(flow), asked(session), node.endpoint(STICKY_IP)) == endpoints
        assert load.failed == []
    assert daemons.rules() == rules


def test_a_successor_that_cannot_start(node: Node, daemons: Daemons) -> None:
    """One that finds its input broken has taken nothing, and the directory is still the old one's;
    so it is for one of another mode."""
    place = ("--state-dir", str(daemons.state))
    failed = daemons.kproxy("run", "-f", "/nowhere", *place, "--proxy-mode", "userspace")
    assert failed.returncode == 2, failed.stderr
    assert node.endpoint() in ENDPOINTS
    other = daemons.kproxy("run", "-f", str(daemons.manifests), *place, "--proxy-mode", "iptables")
    assert other.returncode == 2, other.stderr
    assert f"another kproxy (process {daemons.process.pid})" in other.stderr  # type: ignore[union-attr]


def test_two_successors_at_once(node: Node, daemons: Daemons) -> None:
    """The one that comes first is heard; the other one is told who it is. When the first one
    breaks off it is no obstacle to the next."""
    assert daemons.process is not None
    with hesitating(daemons) as first:
        second = handover.Predecessor.find(daemons.state)
        assert second is not None
        with pytest.raises(OccupiedError) as refused:
            second.estates()
        second.close()
        assert str(refused.value) == (
            f"process {first} takes over from process {daemons.process.pid} already, so this one "
            "does not; leave it to that one, or start this one again to take over from it"
        )
        assert refused.value.exit_status == 1
    assert node.endpoint() in ENDPOINTS
    daemons.serve()
    assert node.endpoint() in ENDPOINTS


@contextmanager
def hesitating(daemons: Daemons) -> Iterator[int]:
    """A process that takes over and does not go on when it has got the sockets; its number."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = handover.Predecessor.find(daemons.state)
            assert found is not None
            found.estates()
            os.write(write, b"x")
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(read, 1) == b"x"
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def test_another_one_was_faster(node: Node, daemons: Daemons) -> None:
    """One that reads its manifests for a while finds another daemon in the old one's place."""
    assert daemons.process is not None
    old = daemons.process.pid
    place = Succession(daemons.state, "userspace")
    assert place.predecessor == old
    daemons.serve()
    with pytest.raises(OccupiedError) as refused:
        asyncio.run(place.begin([], lambda: None))
    place.close()
    faster = daemons.process.pid
    assert str(refused.value).startswith(f"process {faster} takes over from process {old} already")
    assert node.endpoint() in ENDPOINTS


def test_the_old_one_ended_meanwhile(node: Node, daemons: Daemons) -> None:
    """Whoever was about to take over moves in as after any other end."""
    place = Succession(daemons.state, "userspace")
    assert daemons.stop() == 0
    with netns.entered(node.name):
        asyncio.run(place.begin([], lambda: None))
        found = occupant()
    assert (place.predecessor, place.state is None) == (0, False)
    assert found is not None
    assert (found.pid, found.mode) == (os.getpid(), "userspace")
    place.close()
    daemons.serve()
    assert node.endpoint() in ENDPOINTS


def test_another_user_is_not_spoken_to(tmp_path: Path) -> None:
    """Even if it could open the socket."""
    tmp_path.chmod(0o755)
    with handover.listen(tmp_path) as listening:
        (tmp_path / handover.SOCKET).chmod(0o666)
        listening.setblocking(True)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                where = os.open(tmp_path, os.O_PATH)
                os.setuid(65534)
                made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                made.connect(f"/proc/self/fd/{where}/{handover.SOCKET}")
                status = 0 if made.recv(1) == b"" else 2
            finally:
                os._exit(status)
        line = handover.Line(listening.accept()[0])
        with pytest.raises(handover.KernelError, match="a process of user 65534 is not spoken to"):
            handover.greet(line)
        line.close()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- the end ------------------------------------------------------------------------------------


def test_the_lock_goes_with_the_successor(node: Node, daemons: Daemons) -> None:
    """A daemon that only drains holds up nobody: when its successor is killed, the next one
    starts, gets the same relay ports, and what drains drains on."""
    rules = daemons.rules()
    with node.connect() as long_lived:
        endpoint = asked(long_lived)
        daemons.serve()
        assert daemons.process is not None
        daemons.process.kill()
        daemons.process.wait(TIMEOUT)
        daemons.serve()
        assert node.endpoint() in ENDPOINTS
        assert asked(long_lived) == endpoint
    assert daemons.rules() == rules
    assert daemons.older[0].wait(TIMEOUT) == 0


def test_after_a_crash_the_relay_ports_are_the_same(node: Node, daemons: Daemons) -> None:
    """Also with connections that linger on them: the rules stay as they are."""
    rules = daemons.rules()
    ports = state.read(daemons.state, Family.IPV4)
    assert len(ports) == 4
    with ExitStack() as opened:
        for _ in range(8):
            asked(opened.enter_context(node.connect()))
        assert daemons.stop(signal.SIGKILL) == -signal.SIGKILL
        daemons.serve()
        assert state.read(daemons.state, Family.IPV4) == ports
    assert daemons.rules() == rules
    assert node.endpoint() in ENDPOINTS


def test_a_range_of_ports_is_kept_to(node: Node, daemons: Daemons) -> None:
    """With --proxy-port-range all relay ports are in it; what does not fit is told by name, and the
    rest is served."""
    assert daemons.stop() == 0
    daemons.serve("--proxy-port-range", "20000-20000")
    ports = state.read(daemons.state, Family.IPV4)
    assert set(ports.values()) == {20000}
    # One port of TCP and one of UDP, for two services.
    assert sorted(front.name.protocol.value for front in ports) == ["TCP", "UDP"]
    refusals = [line for line in daemons.status().refusals if "no free relay port" in line]
    assert len(refusals) == 2
    assert all("20000-20000" in line for line in refusals)


def test_told_to_stop_it_lets_connections_end(node: Node, daemons: Daemons) -> None:
    """New clients are refused, the open connection goes on until it ends, then so does the daemon;
    the rules stay."""
    rules = daemons.rules()
    assert daemons.process is not None
    with node.connect() as flow:
        asked(flow)
        daemons.process.send_signal(signal.SIGTERM)
        _until_refused(node)
        asked(flow)
    assert daemons.process.wait(TIMEOUT) == 0
    assert daemons.rules() == rules


def test_told_twice_it_ends_at_once(node: Node, daemons: Daemons) -> None:
    """Whatever is open."""
    assert daemons.process is not None
    with node.connect() as flow:
        asked(flow)
        daemons.process.send_signal(signal.SIGTERM)
        _until_refused(node)
        daemons.process.send_signal(signal.SIGTERM)
        assert daemons.process.wait(TIMEOUT) == 128 + signal.SIGTERM


def test_one_that_drains_ends_when_told(node: Node, daemons: Daemons) -> None:
    """After a hand-over it has no flows to wait for but for a moment."""
    with node.connect() as flow:
        asked(flow)
        daemons.serve()
        (old,) = daemons.older
        old.send_signal(signal.SIGTERM)
        assert old.wait(TIMEOUT) == 0
        with pytest.raises(ConnectionResetError):
            flow.recv(64)


def _until_refused(node: Node) -> None:
    while True:
        try:
            node.connect().close()
        except ConnectionResetError:
            continue  # it waited in a socket when that was closed
        except ConnectionRefusedError:
            return
