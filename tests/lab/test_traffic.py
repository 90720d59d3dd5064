"""The traffic engine on real sockets: who answered, what was refused, what met silence."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
import urllib.request
from collections.abc import Iterator

import pytest

from kproxy.core.health.values import Check, Grpc, Http, Target, Udp
from kproxy.core.objects import Protocol
from kproxy.errors import LabError
from kproxy.health.checks.probers import probe
from kproxy.kernel import netns
from kproxy.lab.faults import HEALTHY, Affliction
from kproxy.lab.network import End, Link, Network, Route, RouteKind
from kproxy.lab.traffic import (
    Holding,
    Listener,
    Outcome,
    Probe,
    Reach,
    Responder,
    join_host_port,
    probe_all,
    split_host_port,
)
from kproxy.lab.traffic.wire import Answer, Request, decode_answer, next_request, reply, web_answer
from tests.lab.wired import host, wired

#: Seconds for what must come, however busy the machine is.
PATIENCE = 30.0

LAB = f"g-traffic-{os.getpid()}"

#: client -- server, and on the server a black hole and an address whose packets are prohibited.
NETWORK = Network(
    LAB,
    hosts=(
        host(
            "client",
            [("eth0", "192.0.2.1/32"), ("eth0", "2001:db8::1/128")],
            Route("0.0.0.0/0", "eth0", via="192.0.2.2"),
            Route("::/0", "eth0", via="2001:db8::2"),
        ),
        host(
            "server",
            [("eth0", "192.0.2.2/32"), ("eth0", "192.0.2.22/32"), ("eth0", "2001:db8::2/128")],
            Route("192.0.2.1/32", "eth0"),
            Route("2001:db8::1/128", "eth0"),
            Route("198.51.100.0/24", kind=RouteKind.BLACKHOLE),
            Route("203.0.113.0/24", kind=RouteKind.UNREACHABLE),
        ),
    ),
    links=(Link(End("client", "eth0"), End("server", "eth0")),),
)


class Stage:
    """The two namespaces and a responder."""

    def __init__(self, client: int, server: int, responder: Responder) -> None:
        self.client, self.server, self.responder = client, server, responder

    def ask(self, to: str, port: int, protocol: Protocol, **more: object) -> Outcome:
        more = {"timeout": PATIENCE, **more}
        probe = Probe(to, port, protocol, self.client, **more)  # type: ignore[arg-type]
        return probe_all([probe])[0]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with wired(NETWORK) as builder, Responder() as responder:
        server = builder.fd("server")
        for protocol in (Protocol.TCP, Protocol.UDP):
            responder.listen("any", server, Listener("any", 80, protocol))
            responder.listen("one", server, Listener("one", 81, protocol, "192.0.2.22"))
            responder.listen("six", server, Listener("six", 81, protocol, "2001:db8::2"))
        yield Stage(builder.fd("client"), server, responder)


REACHABLE = [
    ("192.0.2.2", 80, "any", "192.0.2.1"),
    ("192.0.2.22", 80, "any", "192.0.2.1"),
    ("192.0.2.22", 81, "one", "192.0.2.1"),
    ("2001:db8::2", 80, "any", "2001:db8::1"),
    ("2001:db8::2", 81, "six", "2001:db8::1"),
]


@pytest.mark.kernel
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
@pytest.mark.parametrize(("to", "port", "name", "client"), REACHABLE)
def test_answer_names_both_ends(
    stage: Stage, to: str, port: int, name: str, client: str, protocol: Protocol
) -> None:
    """An answer tells who answered, at which address, and which client it saw."""
    seen = stage.ask(to, port, protocol, source=client)
    assert seen.reach is Reach.REACHED, seen
    assert (seen.endpoint, seen.local) == (name, join_host_port(to, port))
    assert seen.client == seen.sender
    assert split_host_port(seen.client)[0] == client
    assert not seen.masqueraded


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("path", "status", "page"),
    [("/healthz", 200, "ok"), ("/status/503", 503, "Service Unavailable")],
)
def test_a_web_server_is_asked_for_a_path(stage: Stage, path: str, status: int, page: str) -> None:
    """Whoever answers by HTTP has been reached; status and body are what it said."""
    seen = stage.ask("192.0.2.2", 80, Protocol.TCP, path=path)
    assert (seen.reach, seen.status, seen.page) == (Reach.REACHED, status, page)
    assert seen.local == "192.0.2.2:80"
    assert stage.ask("192.0.2.2", 9, Protocol.TCP, path=path).reach is Reach.REFUSED


ELSEWHERE = [
    ("192.0.2.2", 9, Reach.REFUSED),
    ("2001:db8::2", 9, Reach.REFUSED),
    ("198.51.100.1", 80, Reach.SILENCE),
    ("203.0.113.1", 80, Reach.ERROR),
]


@pytest.mark.kernel
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
@pytest.mark.parametrize(("to", "port", "reach"), ELSEWHERE)
def test_refusal_silence_and_other_errors_differ(
    stage: Stage, to: str, port: int, reach: Reach, protocol: Protocol
) -> None:
    """Only a reset or a port unreachable is a refusal; a host unreachable is an error."""
    patience = 0.3 if reach is Reach.SILENCE else PATIENCE
    assert stage.ask(to, port, protocol, timeout=patience).reach is reach


@pytest.mark.kernel
def test_silence_needs_an_answered_control(stage: Stage) -> None:
    """Silence is believed only when the control flow sent after it was answered."""
    good = Probe("192.0.2.2", 80, namespace=stage.client, timeout=PATIENCE)
    bad = Probe("192.0.2.2", 9, namespace=stage.client, timeout=PATIENCE)
    silent = {"timeout": 0.1}
    believed = stage.ask("198.51.100.1", 80, Protocol.TCP, control=good, **silent)
    doubted = stage.ask("198.51.100.1", 80, Protocol.TCP, control=bad, **silent)
    assert believed.reach is Reach.SILENCE
    assert doubted.reach is Reach.ERROR
    assert "control" in doubted.detail


@pytest.mark.kernel
def test_many_probes_keep_their_order(stage: Stage) -> None:
    """More probes than fit at once come back in the order in which they were given."""
    ports = [80, 9] * 300
    outcomes = probe_all(
        [Probe("192.0.2.2", port, namespace=stage.client, timeout=PATIENCE) for port in ports]
    )
    wanted = {80: Reach.REACHED, 9: Reach.REFUSED}
    assert [outcome.reach for outcome in outcomes] == [wanted[port] for port in ports]


@pytest.mark.kernel
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_source_port_is_kept(stage: Stage, protocol: Protocol) -> None:
    """A flow can be sent twice from one source port."""
    for _ in range(2):
        seen = stage.ask("192.0.2.2", 80, protocol, source="192.0.2.1", source_port=40000)
        assert seen.client == "192.0.2.1:40000"


@pytest.mark.kernel
def test_faults_and_healing(stage: Stage) -> None:
    """A hung owner accepts and says nothing, a refusing one resets, a healed one answers."""
    stage.responder.listen("faulty", stage.server, Listener("faulty", 90))
    seen = []
    with Holding(Probe("192.0.2.2", 90, namespace=stage.client, timeout=PATIENCE)) as held:
        for affliction in (Affliction(hung=True), HEALTHY, Affliction(closed=True)):
            stage.responder.afflict("faulty", affliction)
            patience = 0.3 if affliction.hung else PATIENCE
            seen.append(stage.ask("192.0.2.2", 90, Protocol.TCP, timeout=patience).reach)
            if affliction == HEALTHY:
                assert held.check(timeout=PATIENCE).alive
        broken = held.check(timeout=PATIENCE)
    stage.responder.afflict("faulty", HEALTHY)
    assert stage.ask("192.0.2.2", 90, Protocol.TCP).reach is Reach.REACHED
    assert seen == [Reach.SILENCE, Reach.REACHED, Reach.REFUSED]
    assert (broken.alive, broken.lost) == (False, 3)
    with pytest.raises(LabError, match="nobody"):
        stage.responder.afflict("nobody", HEALTHY)
    stage.responder.release("faulty")
    assert stage.ask("192.0.2.2", 90, Protocol.TCP).reach is Reach.REFUSED


@pytest.fixture
def ailing(stage: Stage) -> Iterator[Stage]:
    """A second owner, on TCP and UDP port 91."""
    for protocol in (Protocol.TCP, Protocol.UDP):
        stage.responder.listen("ailing", stage.server, Listener("ailing", 91, protocol))
    yield stage
    stage.responder.release("ailing")


@pytest.mark.kernel
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_a_slow_owner_answers_late_and_delays_nobody(ailing: Stage, protocol: Protocol) -> None:
    """Its answer comes no earlier than it may; those of others come before it."""
    ailing.responder.afflict("ailing", Affliction(slow=1.0))
    slow = Probe("192.0.2.2", 91, protocol, ailing.client, timeout=PATIENCE)
    swift = Probe("192.0.2.2", 80, protocol, ailing.client, timeout=PATIENCE)
    first, *others = probe_all([slow] + [swift] * 20)
    assert first.reach is Reach.REACHED
    assert first.seconds >= 1.0
    assert all(other.seconds < first.seconds for other in others)
    ailing.responder.afflict("ailing", HEALTHY)
    assert ailing.ask("192.0.2.2", 91, protocol).reach is Reach.REACHED


@pytest.mark.kernel
def test_slow_answers_keep_their_order_and_follow_the_client_s_end(ailing: Stage) -> None:
    """Also when the owner is healed meanwhile; who says no more still gets his answers."""
    ailing.responder.afflict("ailing", Affliction(slow=0.3))
    with netns.entered(ailing.client):
        typed = socket.create_connection(("192.0.2.2", 91), timeout=PATIENCE)
    with typed:
        typed.sendall(b"one\ntwo\n")
        # Answered by another owner: by then these two have been read.
        assert ailing.ask("192.0.2.2", 80, Protocol.TCP).reach is Reach.REACHED
        ailing.responder.afflict("ailing", HEALTHY)
        typed.sendall(b"three\n")
        typed.shutdown(socket.SHUT_WR)
        answers = typed.makefile()
        lines = [answers.readline() for _ in range(3)]
    assert [json.loads(line)["echo"] for line in lines] == ["one", "two", "three"]


@pytest.mark.kernel
def test_a_hung_owner_says_what_it_was_about_to_when_it_is_healed(ailing: Stage) -> None:
    """Nothing before that, nothing lost."""
    # Time for the two steps that come before the answer would leave, which it would while hung.
    ailing.responder.afflict("ailing", Affliction(slow=3.0))
    with netns.entered(ailing.client):
        typed = socket.create_connection(("192.0.2.2", 91), timeout=PATIENCE)
    with typed:
        typed.sendall(b"said before\n")
        assert ailing.ask("192.0.2.2", 80, Protocol.TCP).reach is Reach.REACHED
        ailing.responder.afflict("ailing", Affliction(hung=True, slow=3.0))
        assert ailing.ask("192.0.2.2", 91, Protocol.TCP, timeout=3.5).reach is Reach.SILENCE
        typed.setblocking(False)
        with pytest.raises(BlockingIOError):
            typed.recv(1)
        typed.settimeout(PATIENCE)
        ailing.responder.afflict("ailing", HEALTHY)
        assert json.loads(typed.makefile().readline())["echo"] == "said before"


@pytest.mark.kernel
def test_a_flapping_owner_is_open_and_closed_in_turn(ailing: Stage) -> None:
    """Each state comes, and comes again, until it ends."""
    ailing.responder.afflict("ailing", Affliction(flap=(0.05, 0.05)))
    for wanted in (Reach.REFUSED, Reach.REACHED, Reach.REFUSED):
        deadline = time.monotonic() + 2 * PATIENCE
        while ailing.ask("192.0.2.2", 91, Protocol.TCP).reach is not wanted:
            assert time.monotonic() < deadline
    ailing.responder.afflict("ailing", HEALTHY)
    with Holding(Probe("192.0.2.2", 91, namespace=ailing.client, timeout=PATIENCE)) as held:
        assert ailing.ask("198.51.100.1", 9, Protocol.UDP, timeout=0.2).reach is Reach.SILENCE
        assert held.check(timeout=PATIENCE).alive


@pytest.mark.kernel
def test_a_restart_cuts_what_is_open_and_listens_on(ailing: Stage) -> None:
    """As a process does that is started again; one that is closed stays so."""
    with Holding(Probe("192.0.2.2", 91, namespace=ailing.client, timeout=PATIENCE)) as held:
        assert held.outcome.reach is Reach.REACHED
        ailing.responder.restart("ailing")
        assert not held.check(timeout=PATIENCE).alive
    assert ailing.ask("192.0.2.2", 91, Protocol.TCP).reach is Reach.REACHED
    ailing.responder.afflict("ailing", Affliction(closed=True))
    ailing.responder.restart("ailing")
    assert ailing.ask("192.0.2.2", 91, Protocol.TCP).reach is Reach.REFUSED


@pytest.mark.kernel
def test_it_answers_probes(stage: Stage) -> None:
    """By HTTP, with the status that was asked for, by gRPC and by UDP."""
    seen = {}
    with netns.entered(stage.client):
        for name, check in {
            "healthz": Http(path="/healthz?verbose", body="ok"),
            "other text": Http(path="/healthz", body="no"),
            "503": Http(path="/status/503"),
            "503 wanted": Http(path="/status/503", statuses=((503, 503),)),
            "204": Http(path="/status/204"),
            "no status": Http(path="/status/99", body='"name":"any"'),
            "grpc": Grpc(),
            "grpc of a service": Grpc(service="shop"),
            "udp": Udp(send=b"hello", expect=b'"echo":"hello"'),
        }.items():
            target = Target(Check(check), "192.0.2.2", 80)
            seen[name] = asyncio.run(probe(target, PATIENCE))
    bad = {name: outcome for name, outcome in seen.items() if not outcome.good}
    assert list(bad) == ["other text", "503"], bad


@pytest.mark.kernel
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_held_flow_stays_with_its_endpoint(stage: Stage, protocol: Protocol) -> None:
    """Later requests of a held flow are answered on the same flow."""
    probe = Probe("192.0.2.2", 80, protocol, stage.client, timeout=PATIENCE)
    with Holding(probe) as held:
        first, later = held.outcome, held.check(timeout=PATIENCE)
    assert (later.alive, later.lost) == (True, 0)
    assert (later.endpoint, later.client) == ("any", first.client)


@pytest.mark.kernel
def test_http_and_typed_lines(stage: Stage) -> None:
    """The same TCP port serves HTTP clients and a person who types lines."""
    with netns.entered(stage.client):
        with urllib.request.urlopen("http://192.0.2.2:80/", timeout=PATIENCE) as response:
            body = json.load(response)
        with socket.create_connection(("192.0.2.2", 80), timeout=PATIENCE) as typed:
            typed.sendall(b"hello\r\nagain\n")
            answers = typed.makefile()
            lines = [json.loads(answers.readline())["echo"] for _ in range(2)]
    assert body["name"] == "any"
    assert body["client"].startswith("192.0.2.1:")
    assert lines == ["hello", "again"]


REQUESTS = [
    (b"", None, b""),
    (b"half", None, b"half"),
    (b"line\r\nrest", Request("line"), b"rest"),
    (b"GET / HTTP/1.1\r\nHost: x\r\n", None, b"GET / HTTP/1.1\r\nHost: x\r\n"),
    (b"GET / HTTP/1.1\r\n\r\nmore", Request("GET / HTTP/1.1", http=True), b"more"),
    (b"HEAD / HTTP/1.0\r\n\r\n", Request("HEAD / HTTP/1.0", True, True, True), b""),
    (
        b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: 2\r\n\r\nabX",
        Request("POST / HTTP/1.1", http=True, close=True),
        b"X",
    ),
    (b"PUT / HTTP/1.1\r\nContent-Length: 9\r\n\r\nab", None, None),
]


@pytest.mark.parametrize(("data", "request_", "rest"), REQUESTS)
def test_requests_are_cut_from_the_stream(
    data: bytes, request_: Request | None, rest: bytes | None
) -> None:
    """One whole request at a time; an incomplete one stays in the buffer."""
    assert next_request(data) == (request_, data if rest is None else rest)


@pytest.mark.parametrize("data", [b"x" * 9000, b"GET /" + b"x" * 9000])
def test_endless_requests_are_refused(data: bytes) -> None:
    """A peer cannot fill memory with a request that never ends."""
    with pytest.raises(ValueError, match="request"):
        next_request(data)


def test_answers_round_trip() -> None:
    """What reply() writes decode_answer() reads; HTTP carries it as its body."""
    answer = Answer("pod", "[2001:db8::1]:5", "192.0.2.1:80", Protocol.UDP, "x")
    assert decode_answer(reply(Request("x"), answer)) == answer
    head, _, body = reply(Request("x", http=True), answer).partition(b"\r\n\r\n")
    assert decode_answer(body) == answer
    assert f"Content-Length: {len(body)}".encode() in head
    assert reply(Request("x", http=True, head_only=True), answer).endswith(b"\r\n\r\n")
    assert decode_answer(b"{}") is None
    assert decode_answer(b"\xff\n") is None


@pytest.mark.parametrize("pair", [("192.0.2.1", 80), ("2001:db8::1", 443)])
def test_host_port_text_round_trips(pair: tuple[str, int]) -> None:
    """IPv6 stands in brackets, and both directions agree."""
    assert split_host_port(join_host_port(*pair)) == pair


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"HTTP/1.0 200 OK\r\nX: y\r\n\r\nok\n", (200, "ok")),
        (b"HTTP/1.1 503 \r\n\r\n", (503, "")),
        (b"HTTP/1.1 200 OK\r\nX: y\r\n", (0, "")),
        (b'{"name": "x"}\n', (0, "")),
        (b"SSH-2.0-x 200\r\n\r\n", (0, "")),
        (b"\r\n\r\n", (0, "")),
        (b"HTTP/1.1\r\n\r\n", (0, "")),
        (b"", (0, "")),
    ],
)
def test_answers_of_web_servers(data: bytes, answer: tuple[int, str]) -> None:
    """Status and body of a whole answer; anything else is none."""
    assert web_answer(data) == answer
