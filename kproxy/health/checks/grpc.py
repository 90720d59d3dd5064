"""gRPC: ``grpc.health.v1.Health/Check`` answers SERVING, in clear text HTTP/2.

The protocol is https://github.com/grpc/grpc/blob/master/doc/health-checking.md, its two messages
are grpc/health/v1/health.proto of https://github.com/grpc/grpc-proto: HealthCheckRequest has
``string service = 1``, HealthCheckResponse ``ServingStatus status = 1``. Two fields are packed and
read here by hand; the framing is doc/PROTOCOL-HTTP2.md of grpc.
"""

from __future__ import annotations

import struct

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError

from kproxy.core.health.values import Grpc, Target
from kproxy.health.checks import streams
from kproxy.health.checks.outcome import Outcome, bad
from kproxy.health.checks.tasks import Progress
from kproxy.health.checks.text import plain

_PATH = "/grpc.health.v1.Health/Check"
_READ = 65536
#: Bytes that an endpoint may send in all: its settings, an answer of four bytes, trailers.
_MOST = 64 * 1024

#: Of a message: whether it is compressed, and its length.
_FRAME = struct.Struct("!BI")

#: What a server sends first is a SETTINGS frame (RFC 9113, 3.4); the type is its fourth byte (4.1).
_TYPE_AT, _SETTINGS = 3, b"\x04"

_STATUS = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_SERVING = 1

#: Codes of grpc that have a meaning here (doc/statuscodes.md).
_CODES = {
    "5": "service not known there",
    "12": "no health service there",
    "14": "unavailable",
    "16": "unauthenticated",
}


class GrpcProber:
    """A :class:`~kproxy.health.checks.tasks.TaskProber`. A connection for each try."""

    async def probe(self, target: Target, progress: Progress) -> Outcome:
        its = target.check.probe
        assert isinstance(its, Grpc)
        reader, writer = await streams.connected(target)
        try:
            progress.lacks = "no answer"
            call = _Call(its.service, _authority(target))
            writer.write(call.to_send())
            received = 0
            while (outcome := call.outcome) is None:
                data = await reader.read(_READ)
                received += len(data)
                if not data:
                    return bad("closed without an answer" if not received else _CUT)
                if received > _MOST:
                    return bad(f"more than {_MOST // 1024} kB of answer")
                progress.lacks = "no whole answer"
                call.take(data)
                if answer := call.to_send():
                    writer.write(answer)
            return outcome
        finally:
            writer.transport.abort()

    async def close(self) -> None:
        """Nothing is kept between tries."""


_CUT = "closed before the answer was whole"


class _Call:
    """One call on a new connection: bytes in, bytes out, and what it comes to."""

    def __init__(self, service: str, authority: str) -> None:
        self.outcome: Outcome | None = None
        self._first = b""
        self._body = bytearray()
        self._headers: dict[str, str] = {}
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._h2.initiate_connection()
        self._stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(
            self._stream,
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", _PATH),
                (":authority", authority),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                ("user-agent", "kproxy-health-check"),
            ],
        )
        self._h2.send_data(self._stream, request(service), end_stream=True)

    def to_send(self) -> bytes:
        return self._h2.data_to_send()

    def take(self, data: bytes) -> None:
        self._first += data[: _TYPE_AT + 1 - len(self._first)]
        if self._first[_TYPE_AT:] not in (b"", _SETTINGS):
            # The library would take "HTT" for a length, and wait for that many bytes.
            self.outcome = bad("no HTTP/2 there")
            return
        try:
            events = self._h2.receive_data(data)
        except (ProtocolError, UnicodeDecodeError):
            self.outcome = bad("broken HTTP/2")
            return
        for event in events:
            if self.outcome is None:
                self._take(event)

    def _take(self, event: Event) -> None:
        match event:
            case ResponseReceived() | TrailersReceived():
                self._headers |= dict(event.headers)  # type: ignore[arg-type]
            case DataReceived():
                self._body += event.data
            case StreamEnded():
                self.outcome = self._judged()
            case StreamReset():
                self.outcome = bad(f"call reset, HTTP/2 error {int(event.error_code or 0)}")
            case ConnectionTerminated():
                self.outcome = bad(f"sent away, HTTP/2 error {int(event.error_code or 0)}")

    def _judged(self) -> Outcome:
        status = self._headers.get(":status", "")
        if status != "200":
            return bad(f"HTTP status {plain(status)}, want 200")
        code = self._headers.get("grpc-status", "")
        if code != "0":
            what = _CODES.get(code) or plain(self._headers.get("grpc-message", ""))[:80]
            return bad(f"grpc status {plain(code) or 'missing'}{f' ({what})' if what else ''}")
        try:
            serving = response(bytes(self._body))
        except ValueError as error:
            return bad(f"no health answer: {error}")
        if serving != _SERVING:
            return bad(f"status {_STATUS.get(serving, serving)}, want SERVING")
        return Outcome(True, "status SERVING")


def request(service: str) -> bytes:
    """A framed HealthCheckRequest."""
    name = service.encode()
    # Field 1, length-delimited; a field with its default is left out.
    message = b"\x0a" + _varint(len(name)) + name if name else b""
    return _FRAME.pack(0, len(message)) + message


def response(body: bytes) -> int:
    """The status of a framed HealthCheckResponse. ValueError when it is none."""
    if len(body) < _FRAME.size:
        raise ValueError("no message")
    compressed, length = _FRAME.unpack_from(body)
    message = body[_FRAME.size :]
    if compressed:
        raise ValueError("a compressed message, which nobody asked for")
    if length != len(message):
        raise ValueError("a message of another length than it says")
    status, at = 0, 0
    while at < len(message):
        key, at = _read_varint(message, at)
        field, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _read_varint(message, at)
            if field == 1:
                status = value
        else:
            # Fields of a later version are stepped over.
            at = _after(message, kind, at)
    return status


def _after(message: bytes, kind: int, at: int) -> int:
    """Where a field of a wire type other than varint ends."""
    if kind == 2:
        length, at = _read_varint(message, at)
        at += length
    elif kind in (1, 5):
        at += 8 if kind == 1 else 4
    else:
        raise ValueError("a field of unknown kind")
    if at > len(message):
        raise ValueError("a field that is cut off")
    return at


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends. At most ten bytes hold 64 bits."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("a number that is cut off")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number that does not end")


def _authority(target: Target) -> str:
    host = f"[{target.ip}]" if ":" in target.ip else target.ip
    return f"{host}:{target.port}"
