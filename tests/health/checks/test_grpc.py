"""gRPC health checks against an HTTP/2 server that answers as each row says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded
from hypothesis import given
from hypothesis import strategies as st

from kproxy.core.health.values import Grpc, Pace
from kproxy.health.checks import Outcome, probe
from kproxy.health.checks.grpc import request, response
from kproxy.health.checks.outcome import bad, own
from tests.health.checks.places import (
    BRIEF,
    NOWHERE,
    PATIENT,
    SILENT,
    answering,
    mute,
    run,
    scratch,
    serving,
    target,
)

GOOD = Outcome(True, "status SERVING")


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4) + message


class Server:
    """Answers calls with this HTTP status, message and trailers; what it was asked is ``seen``."""

    def __init__(
        self,
        message: bytes | None = framed(b"\x08\x01"),
        status: str = "200",
        trailers: tuple[tuple[str, str], ...] = (("grpc-status", "0"),),
        *,
        instead: str = "",
    ) -> None:
        self._message, self._status, self._trailers = message, status, trailers
        self._instead = instead
        self.headers: dict[str, str] = {}
        self.body = b""

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        h2.initiate_connection()
        while data := await reader.read(65536):
            for event in h2.receive_data(data):
                if isinstance(event, RequestReceived):
                    self.headers = dict(event.headers)  # type: ignore[arg-type]
                elif isinstance(event, DataReceived):
                    self.body += event.data
                elif isinstance(event, StreamEnded):
                    self._answer(h2, event.stream_id)
            writer.write(h2.data_to_send())

    def _answer(self, h2: H2Connection, stream: int) -> None:
        if self._instead == "reset":
            h2.reset_stream(stream, 7)
        elif self._instead == "goaway":
            h2.close_connection(11)
        elif self._message is None:
            h2.send_headers(stream, [(":status", self._status), *self._trailers], end_stream=True)
        else:
            h2.send_headers(stream, [(":status", self._status)])
            h2.send_data(stream, self._message)
            h2.send_headers(stream, self._trailers, end_stream=True)


def code(value: str, message: str = "") -> tuple[tuple[str, str], ...]:
    return (("grpc-status", value), *((("grpc-message", message),) if message else ()))


@pytest.fixture
def namespace() -> Iterator[None]:
    with scratch():
        yield


@pytest.mark.kernel
@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (Server(), GOOD),
        (Server(framed(b"\x10\x05\x08\x01\x1a\x02ab")), GOOD),
        (Server(framed(b"\x08\x02")), bad("status NOT_SERVING, want SERVING")),
        (Server(framed(b"\x08\x03")), bad("status SERVICE_UNKNOWN, want SERVING")),
        (Server(framed(b"")), bad("status UNKNOWN, want SERVING")),
        (Server(framed(b"\x08\x63")), bad("status 99, want SERVING")),
        (Server(None, trailers=code("12")), bad("grpc status 12 (no health service there)")),
        (Server(None, trailers=code("5", "x")), bad("grpc status 5 (service not known there)")),
        (Server(None, trailers=code("13", "on fire")), bad("grpc status 13 (on fire)")),
        (Server(trailers=(("x", "y"),)), bad("grpc status missing")),
        (Server(None, "503", code("14")), bad("HTTP status 503, want 200")),
        (Server(b"\0\0"), bad("no health answer: no message")),
        (
            Server(b"\1\0\0\0\0"),
            bad("no health answer: a compressed message, which nobody asked for"),
        ),
        (Server(framed(b"\x08")), bad("no health answer: a number that is cut off")),
        (Server(instead="reset"), bad("call reset, HTTP/2 error 7")),
        (Server(instead="goaway"), bad("sent away, HTTP/2 error 11")),
    ],
)
def test_answers(server: Server, expected: Outcome) -> None:
    """Only SERVING is good."""

    async def work() -> None:
        async with serving(server.talk) as port:
            assert await probe(target(Grpc(service="shop"), port)) == expected
            assert server.headers[":path"] == "/grpc.health.v1.Health/Check"
            assert server.headers[":authority"] == f"127.0.0.1:{port}"
            assert server.headers["content-type"] == "application/grpc"
            assert server.body == framed(b"\x0a\x04shop")

    run(work())


@pytest.mark.kernel
@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", bad("no HTTP/2 there")),
        (b"", bad("closed without an answer")),
        (b"\0\0\x06\x04\0\0\0\0\0", bad("closed before the answer was whole")),
        (b"\0\0\x08\x06\0\0\0\0\0" + bytes(8), bad("no HTTP/2 there")),
    ],
    ids=["http/1", "closed", "half", "no settings"],
)
def test_other_servers(raw: bytes, expected: Outcome) -> None:
    """What is no HTTP/2, or not all of it, is told from an answer."""

    async def work() -> None:
        async with serving(answering(raw, until=b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")) as port:
            found = await probe(target(Grpc(), port))
            # A server that closes before it has read everything resets.
            assert found in (expected, bad("connection reset"))

    run(work())


@pytest.mark.kernel
@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize(
    ("ip", "expected"),
    [
        ("127.0.0.1", bad("connection refused")),
        ("::1", bad("connection refused")),
        (NOWHERE, own("this node has no route there")),
        (SILENT, bad("no connection in 0.2s")),
    ],
)
def test_no_connection(ip: str, expected: Outcome) -> None:
    """As TCP checks say it."""

    async def work() -> None:
        pace = BRIEF if ip == SILENT else PATIENT
        assert await probe(target(Grpc(), 9, ip, pace)) == expected

    run(work())


@pytest.mark.kernel
@pytest.mark.usefixtures("namespace")
def test_out_of_time() -> None:
    """A server that takes the call and says nothing."""

    async def work() -> None:
        async with serving(mute) as port:
            # Long enough to come that far on a busy machine.
            found = await probe(target(Grpc(), port, pace=Pace(timeout=1.0)))
            assert found == bad("no answer in 1s")

    run(work())


@given(st.text(max_size=300))
def test_requests(service: str) -> None:
    """One frame with one field, or with none for the whole server."""
    packed = request(service)
    assert packed[0] == 0
    assert int.from_bytes(packed[1:5]) == len(packed) - 5
    name = service.encode()
    if not name:
        assert packed[5:] == b""
    else:
        assert packed[5] == 0x0A
        assert packed.endswith(name)
        length = len(packed) - 6 - len(name)
        assert length == (1 if len(name) < 128 else 2)


@given(st.binary(max_size=40))
def test_any_bytes_are_an_answer_or_a_value_error(message: bytes) -> None:
    """Nothing else comes of what an endpoint sends."""
    for raw in (message, framed(message)):
        with suppress(ValueError):
            assert response(raw) >= 0
