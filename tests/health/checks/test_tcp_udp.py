"""Checks of one socket and one event, against real sockets."""

from __future__ import annotations

import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kproxy.core.health.values import Pace, Probe, Tcp, Udp
from kproxy.health.checks import Outcome, probe
from kproxy.health.checks.outcome import bad, own
from kproxy.health.checks.probers import KINDS, simple
from tests.health.checks.places import BRIEF, NOWHERE, PATIENT, SILENT, run, scratch, target

pytestmark = pytest.mark.kernel

CONNECTED = Outcome(True, "connected")


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with scratch():
        yield


def outcome(of: Probe, port: int, ip: str = "127.0.0.1", pace: Pace = PATIENT) -> Outcome:
    found = []

    async def work() -> None:
        found.append(await probe(target(of, port, ip, pace)))

    run(work())
    return found[0]


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_tcp_answers_and_refuses(ip: str) -> None:
    """A listener is enough; without one the refusal is immediate."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.create_server((ip, 0), family=family) as server:
        port = server.getsockname()[1]
        assert outcome(Tcp(), port, ip) == CONNECTED
    assert outcome(Tcp(), port, ip) == bad("connection refused")


@pytest.mark.parametrize(
    ("ip", "expected"),
    [(SILENT, bad("no answer in 0.2s")), (NOWHERE, own("this node has no route there"))],
)
@pytest.mark.parametrize("of", [Tcp(), Udp(send=b"x")], ids=["tcp", "udp"])
def test_silence_and_no_route(of: Probe, ip: str, expected: Outcome) -> None:
    """Silence is the endpoint's, a missing route the node's."""
    assert outcome(of, 80, ip, BRIEF) == expected


def _states() -> list[str]:
    rows = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    return [row.split()[3] for row in rows]


def test_tcp_leaves_nothing_behind() -> None:
    """It is reset: no TIME_WAIT on either side, and nothing that stays in the backlog."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        for _ in range(20):
            assert outcome(Tcp(), server.getsockname()[1]) == CONNECTED
        # What is left is the listener (0A), and no TIME_WAIT (06), which would stay for a minute,
        # or established one (01). On a busy machine the last reset arrives a moment later.
        deadline = time.monotonic() + 20
        while (states := _states()) != ["0A"]:
            assert time.monotonic() < deadline, states


def test_tcp_to_itself_is_a_refusal() -> None:
    """The kernel may connect a socket to itself where nobody listens; that is no answer."""
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("33000 33000")
    assert outcome(Tcp(), 33000) == bad("connection refused")


def test_no_local_port_left() -> None:
    """All ports towards the endpoint are taken: the endpoint is not to blame."""
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("33000 33000")
    with socket.create_server(("127.0.0.1", 80)) as server:
        with socket.create_connection(("127.0.0.1", 80)):
            assert outcome(Tcp(), 80) == own("this node has no local port or address left")
        server.accept()[0].close()


@contextmanager
def descriptors(most: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("of", [Tcp(), Udp(send=b"x")], ids=["tcp", "udp"])
def test_no_descriptor_left(of: Probe) -> None:
    """The prober says whose fault it is, and raises nothing."""
    prober = simple(KINDS[type(of)])
    assert prober is not None
    with descriptors(0):
        made = prober.open(target(of, 80))
    assert made == own("this process has no descriptor left")


@contextmanager
def udp_server(reply: bytes | None) -> Iterator[int]:
    """A port that answers one datagram."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def answer() -> None:
            data, client = server.recvfrom(100)
            if reply is not None:
                server.sendto(reply.replace(b"%", data), client)

        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


REPLIED = Outcome(True, "replied")


@pytest.mark.parametrize(
    ("of", "reply", "expected"),
    [
        (Udp(send=b"PING"), b"whatever", REPLIED),
        (Udp(send=b"PING"), b"", REPLIED),
        (Udp(send=b"PING", expect=b"PONG"), b"+PONG %", REPLIED),
        (Udp(send=b"PING", expect=b"PING"), b"%", REPLIED),
        (Udp(expect=b"hello"), b"hello", REPLIED),
        (Udp(send=b"PING", expect=b"PONG"), b"NO\n", bad('reply "NO\\n", want "PONG"')),
    ],
)
def test_udp_replies(of: Udp, reply: bytes, expected: Outcome) -> None:
    """Any reply, or one that holds what is expected."""
    with udp_server(reply) as port:
        assert outcome(of, port) == expected


def test_udp_port_unreachable_is_a_failure_at_once() -> None:
    """The ICMP error is waited for no longer than it takes."""
    assert outcome(Udp(send=b"x"), 9) == bad("connection refused")


def test_udp_without_a_reply() -> None:
    """The datagram was taken, and nothing came back."""
    with udp_server(None) as port:
        assert outcome(Udp(send=b"x"), port, pace=BRIEF) == bad("no answer in 0.2s")
