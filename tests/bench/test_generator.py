"""The load generator, both builds: it does what it is told, counts what was done, tells failures
from speed, and leaves no wait out."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from struct import pack
from types import ModuleType
from typing import Any

import pytest

from kproxy.bench.histogram import Histogram

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("loopback")]

PLACE = ("127.0.0.1", 7000)
PLACE_6 = ("::1", 7000)
NOBODY = ("127.0.0.1", 7001)

#: A load of so many operations, long before its seconds are over.
FEW: dict[str, Any] = {
    "connections": 4,
    "rate": 0.0,
    "seconds": 60.0,
    "operations": 200,
    "warmup": 0.0,
    "timeout": 20.0,
    "request_bytes": 64,
    "response_bytes": 64,
}


@contextmanager
def serving(generator: ModuleType) -> Iterator[Any]:
    """The generator's server at both families."""
    server = generator.Server(tcp=[PLACE, PLACE_6], udp=[PLACE, PLACE_6])
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


@contextmanager
def hostile(treat: Callable[[socket.socket], None]) -> Iterator[None]:
    """A server that does to each connection what a test wants."""
    with socket.create_server(PLACE, backlog=512) as door:

        def serve() -> None:
            while True:
                try:
                    connection, _ = door.accept()
                except OSError:
                    return
                with connection, suppress(ConnectionResetError):
                    treat(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            door.shutdown(socket.SHUT_RDWR)
            thread.join()


def answer(connection: socket.socket) -> None:
    """As the generator's server does, for requests of 64 bytes."""
    while request := connection.recv(64, socket.MSG_WAITALL):
        connection.sendall(request)


def time_waits() -> set[str]:
    """Which ends hold connections that are over: ``client`` or ``server``."""
    waiting = set()
    for line in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state = line.split()[:4]
        if state == "06":
            waiting.add("server" if local.endswith(f":{PLACE[1]:04X}") else "client")
    return waiting


# --- what is done -------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [PLACE, PLACE_6])
@pytest.mark.parametrize("per_connection", [0, 1, 7])
@pytest.mark.parametrize("rate", [0.0, 5000.0])
@pytest.mark.parametrize(("request_bytes", "response_bytes"), [(24, 24), (300_000, 700_000)])
def test_exchange(
    generator: ModuleType,
    place: tuple[str, int],
    per_connection: int,
    rate: float,
    request_bytes: int,
    response_bytes: int,
) -> None:
    """Every operation is done, counted once, and so is every byte."""
    sizes = {"request_bytes": request_bytes, "response_bytes": response_bytes}
    with serving(generator) as server:
        said = generator.exchange(
            [place], per_connection=per_connection, **{**FEW, **sizes, "rate": rate}
        )
    counted = server.counters()
    assert said["failures"] == {}
    assert said["started"] == said["completed"] == sum(said["series"]) == FEW["operations"]
    assert sum(said["latency"].values()) == FEW["operations"]
    assert said["bytes_in"] == FEW["operations"] * response_bytes
    assert said["bytes_out"] == FEW["operations"] * request_bytes
    assert counted["requests"] == FEW["operations"]
    assert counted["wrong"] == 0
    if per_connection == 1:
        assert counted["accepted"] == sum(said["connect"].values()) == FEW["operations"]


@pytest.mark.parametrize(
    ("closer", "expected"), [("client", {"client"}), ("server", {"server"}), ("reset", set())]
)
def test_who_closes_first(generator: ModuleType, closer: str, expected: set[str]) -> None:
    """TIME_WAIT is at the end that closes first, and nowhere after a reset."""
    with serving(generator):
        said = generator.exchange([PLACE], closer=closer, **FEW)
    assert said["completed"] == FEW["operations"]
    assert time_waits() == expected


def test_both_may_close(generator: ModuleType) -> None:
    """Neither waits for the other, and every answer has come before."""
    with serving(generator) as server:
        said = generator.exchange([PLACE], closer="both", **FEW)
        counted = server.counters()
    assert said["completed"] == counted["requests"] == counted["accepted"] == FEW["operations"]
    assert said["failures"] == {}
    assert counted["wrong"] == 0


def test_targets_and_sources_are_taken_in_turn(generator: ModuleType) -> None:
    """Each address of either list has its share of the connections."""
    sources = ["127.0.0.2", "127.0.0.3"]
    seen: list[str] = []

    def treat(connection: socket.socket) -> None:
        seen.append(connection.getpeername()[0])
        answer(connection)

    with hostile(treat):
        generator.exchange([PLACE], sources, **{**FEW, "connections": 1})
    assert {source: seen.count(source) for source in sources} == dict.fromkeys(sources, 100)


@pytest.mark.parametrize("direction", ["down", "up", "both"])
@pytest.mark.parametrize("connections", [1, 4])
def test_stream(generator: ModuleType, direction: str, connections: int) -> None:
    """Bytes flow where they should, and nowhere else, on every connection."""
    expected = (direction != "up", direction != "down")
    # A busy machine may do something else for all of a short time.
    for seconds in (0.3, 3.0, 30.0):
        load = {"seconds": seconds, "operations": 0, "warmup": 0.1, "connections": connections}
        with serving(generator) as server:
            said = generator.stream([PLACE], direction=direction, **{**FEW, **load})
            arrived = sum(octets for octets, _ in server.series(said["began"], said["ended"]))
            accepted = server.counters()["accepted"]
        assert sum(said["series"]) == said["bytes_in"]
        # The requests arrive in any case.
        flowed = (said["bytes_in"] > 0, arrived > 24 * connections)
        assert not any(had and not right for had, right in zip(flowed, expected, strict=True))
        if flowed == expected:
            break
    assert flowed == expected
    assert accepted == connections
    assert said["failures"] == {}


@pytest.mark.parametrize("place", [PLACE, PLACE_6])
@pytest.mark.parametrize("window", [1, 16])
@pytest.mark.parametrize("rate", [0.0, 5000.0])
def test_datagrams_with_answers(
    generator: ModuleType, place: tuple[str, int], window: int, rate: float
) -> None:
    """Each datagram is answered, and each answer is its own."""
    with serving(generator) as server:
        said = generator.datagram([place], window=window, **{**FEW, "rate": rate})
    counted = server.counters()
    assert said["failures"] == {}
    assert said["completed"] == sum(said["latency"].values()) == FEW["operations"]
    assert counted["datagrams_in"] == counted["datagrams_out"] == FEW["operations"]


def test_datagrams_one_way(generator: ModuleType) -> None:
    """Nothing comes back; what arrived is in the server's series."""
    # So many that all of them have room in the server's socket until it comes to read them.
    one_way = {"response_bytes": 0, "rate": 400.0, "operations": 0, "seconds": 0.5}
    with serving(generator) as server:
        said = generator.datagram([PLACE], **{**FEW, **one_way})
        # Datagrams queue: when this one is answered all before it have been read.
        last = generator.datagram([PLACE], **{**FEW, "operations": 1})
    counted = server.counters()
    series = server.series(said["began"] - 10**9, last["ended"] + 10**9)
    assert said["completed"] == 200
    assert said["bytes_in"] == 0
    assert counted["datagrams_out"] == 1
    assert counted["datagrams_in"] == sum(number for _, number in series) == 201


def test_failures_are_kept_one_by_one(generator: ModuleType) -> None:
    """With when they were due, when they were given up, and how far they had come."""
    said = generator.exchange([NOBODY], **{**FEW, "rate": 1000.0, "operations": 20})
    assert said["quiet"] == said["ended"] - said["began"]
    # Two that are under way at once are refused in any order.
    lost = sorted(said["lost"])
    assert [(kind, connected) for _, _, kind, connected in lost] == [("refused", False)] * 20
    assert [intended - said["began"] for intended, *_ in lost] == [
        number * 1_000_000 for number in range(20)
    ]
    assert all(intended <= at for intended, at, *_ in lost)


def test_deafened_serves_what_is_open(generator: ModuleType) -> None:
    """Nobody new is let in, who is in is answered, and datagrams are none of it."""
    with serving(generator) as server, socket.create_connection(PLACE) as held:
        request = pack("=IBBHIIQ", 0x646C706B, 0, 0, 0, 64, 64, 7).ljust(64, b"\0")
        held.sendall(request)
        held.recv(64, socket.MSG_WAITALL)
        server.deafen()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(PLACE)
        held.sendall(request)
        assert held.recv(64, socket.MSG_WAITALL)[:24] == request[:24]
        assert generator.datagram([PLACE], **FEW)["failures"] == {}


def test_warm_up_is_not_counted(generator: ModuleType) -> None:
    """Of what begins before the warm-up is over nothing is in the figures."""
    warm = {"rate": 1000.0, "operations": 0, "seconds": 0.2, "warmup": 0.2}
    with serving(generator) as server:
        said = generator.exchange([PLACE], **{**FEW, **warm})
    counted = server.counters()
    assert said["started"] == 200
    assert counted["requests"] == 400


# --- failures -----------------------------------------------------------------------------------


def reset(connection: socket.socket) -> None:
    connection.recv(64, socket.MSG_WAITALL)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))


def end_early(connection: socket.socket) -> None:
    connection.sendall(connection.recv(64, socket.MSG_WAITALL)[:30])


def answer_another(connection: socket.socket) -> None:
    connection.sendall(connection.recv(64, socket.MSG_WAITALL)[:16] + b"\xff" * 48)


def answer_too_much(connection: socket.socket) -> None:
    connection.sendall(connection.recv(64, socket.MSG_WAITALL) + b"!")


def say_nothing(connection: socket.socket) -> None:
    while connection.recv(64):
        pass


@pytest.mark.parametrize(
    ("treat", "failure"),
    [
        (reset, "reset"),
        (end_early, "early_end"),
        (answer_another, "wrong"),
        (answer_too_much, "wrong"),
        (say_nothing, "timeout"),
    ],
)
def test_each_failure_has_its_name(
    generator: ModuleType, treat: Callable[[socket.socket], None], failure: str
) -> None:
    """What goes wrong is counted as what it is, and in no latency."""
    with hostile(treat):
        said = generator.exchange(
            [PLACE],
            **{**FEW, "operations": 3, "connections": 1}
            | {"timeout": 0.2 if failure == "timeout" else 20.0},
        )
    assert said["failures"] == {failure: 3}
    assert said["completed"] == sum(said["latency"].values()) == 0


def test_refused(generator: ModuleType) -> None:
    """Where nobody listens every connection is refused."""
    said = generator.exchange([NOBODY], **{**FEW, "operations": 5})
    assert said["failures"] == {"refused": 5}


def test_refused_datagrams_are_lost(generator: ModuleType) -> None:
    """The refusal is told, the datagram is lost all the same."""
    said = generator.datagram([NOBODY], **{**FEW, "operations": 1, "timeout": 1.0})
    assert said["failures"] == {"lost": 1, "refused": 1}


def test_datagrams_without_answer_are_lost(generator: ModuleType) -> None:
    """Each one, once, after its time."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(PLACE)
        said = generator.datagram([PLACE], **{**FEW, "operations": 20, "timeout": 0.1})
    assert said["failures"] == {"lost": 20}
    assert said["completed"] == 0


def test_no_port_left_is_the_clients_own(generator: ModuleType) -> None:
    """A client that has used up its ports says so, and blames nobody else."""
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("50000 50003")
    Path("/proc/sys/net/ipv4/tcp_tw_reuse").write_text("0")
    with serving(generator):
        said = generator.exchange([PLACE], **{**FEW, "operations": 10, "connections": 1})
    assert said["completed"] == 4
    assert said["failures"] == {"no_port": 6}


def test_a_stall_holds_up_all_that_was_due(generator: ModuleType) -> None:
    """At a fixed rate each operation waits from when it was due: one stall of 0.5 s is in the
    latency of all 200 that were due in the 0.2 s after its beginning, not of one alone."""
    stall = threading.Event()

    def treat(connection: socket.socket) -> None:
        if not stall.is_set():
            stall.wait(0.5)  # what is tested, not what is waited for
            stall.set()
        answer(connection)

    with hostile(treat):
        said = generator.exchange([PLACE], **{**FEW, "connections": 1, "rate": 1000.0})
    waits = Histogram(said["latency"])
    assert waits.total == 200
    assert waits.percentile(0) > 0.29
    assert waits.percentile(100) > 0.49


def test_what_is_not_done_in_time_is_unfinished(generator: ModuleType) -> None:
    """Operations that were due and never got their turn are failures, none is left out."""
    with hostile(say_nothing):
        said = generator.exchange(
            [PLACE],
            **{**FEW, "operations": 0, "seconds": 0.2, "rate": 100.0, "connections": 1}
            | {"timeout": 0.5},
        )
    assert said["completed"] == 0
    assert sum(said["failures"].values()) == said["started"] == 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"connections": 0},
        {"request_bytes": 23},
        {"response_bytes": 5},
        {"seconds": 0, "operations": 0},
    ],
)
def test_impossible_loads_are_refused(generator: ModuleType, wrong: dict[str, Any]) -> None:
    """What makes no sense is refused before anything is done."""
    with pytest.raises(ValueError, match=r"connections|bytes|ends"):
        generator.exchange([PLACE], **{**FEW, **wrong})


@pytest.mark.parametrize("sources", [["::1"], ["no address"]])
def test_impossible_sources_are_refused(generator: ModuleType, sources: list[str]) -> None:
    """Two families in one load, or no address at all."""
    with pytest.raises(ValueError, match=r"families|address"):
        generator.exchange([PLACE], sources, **FEW)


# --- HTTP, for clients of others -----------------------------------------------------------------

GET = b"GET /%d HTTP/1.1\r\nHost: 127.0.0.1:7000\r\n%s\r\n"


def answered(connection: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size and (data := connection.recv(size - len(found))):
        found += data
    return bytes(found)


@pytest.mark.parametrize("asked", [0, 46, 64, 1 << 20])
def test_http_on_a_kept_connection(generator: ModuleType, asked: int) -> None:
    """As many bytes as the path says, the head included, which has 46; request after request."""
    size = max(asked, 46)
    with serving(generator) as server:
        for place in (PLACE, PLACE_6):
            with socket.create_connection(place, 20) as client:
                for _ in range(3):
                    client.sendall(GET % (asked, b""))
                    answer = answered(client, size)
                    assert len(answer) == size
                    head, _, body = answer.partition(b"\r\n\r\n")
                    assert head == b"HTTP/1.1 200 OK\r\nContent-Length:%10d" % len(body)
        counted = server.counters()
    assert (counted["requests"], counted["wrong"]) == (6, 0)


def test_http_byte_by_byte(generator: ModuleType) -> None:
    """And several requests at once."""
    with serving(generator), socket.create_connection(PLACE, 20) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in GET % (100, b"X-Connection: close\r\nConnection: closer\r\n"):
            client.sendall(bytes([byte]))
        assert len(answered(client, 100)) == 100
        client.sendall(3 * (GET % (50, b"")))
        assert len(answered(client, 150)) == 150


@pytest.mark.parametrize("field", [b"Connection: close", b"connection: Close"])
def test_http_closed_when_asked_for(generator: ModuleType, field: bytes) -> None:
    """By the server, after the answer."""
    with serving(generator), socket.create_connection(PLACE, 20) as client:
        client.sendall(GET % (64, b"Accept: */*\r\n" + field + b"\r\n"))
        answer = answered(client, 1000)
    assert len(answer) == 64
    # What a client needs no field to understand: that was the last one.
    assert answer.startswith(b"HTTP/1.0 200 ")


@pytest.mark.parametrize("said", [b"GET x", b"GOT /1", b"GET /99999999999 HTTP/1.1\r\n\r\n"])
def test_no_http(generator: ModuleType, said: bytes) -> None:
    """What is no such request is reset, and counted."""
    with serving(generator) as server, socket.create_connection(PLACE, 20) as client:
        client.sendall(said)
        with pytest.raises(ConnectionResetError):
            answered(client, 1)
        assert server.counters()["wrong"] == 1
