"""The echo protocol, as pure functions on bytes, and the outcome of one probe as a value.

The client speaks first, so that one port serves both kinds of client:

* bytes that begin with an HTTP method are an HTTP/1.1 request; each gets a response whose body is
  the answer (so ``curl pod:80`` works), but for two paths that probes and load generators like:
  ``/healthz`` is ``ok`` in plain text, ``/status/503`` a response of that status;
* anything else is read line by line, and each line gets one JSON line back (so a person typing
  into ``nc`` sees at once who he is talking to).

Over UDP each datagram is a line. The answer says who answers, which client address it saw, at which
local address the packet arrived, and the line itself.
"""

from __future__ import annotations

from enum import StrEnum
from http import HTTPStatus

import msgspec

from kproxy.core.objects import Protocol, Value

#: What kproxy's own probes send; any other line does as well.
GREETING = b"kproxy-echo"

#: A line or an HTTP head longer than this ends the connection: 8 KiB is what web servers allow.
MAX_REQUEST = 8192

#: Paths of HTTP with answers of their own.
HEALTHZ, STATUS = "/healthz", "/status/"

_METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ")


class Answer(Value, frozen=True):
    """What a responder says. ``client`` and ``local`` are ``ip:port``, IPv6 in brackets."""

    name: str
    client: str
    local: str
    proto: Protocol
    echo: str = ""


class Reach(StrEnum):
    """How a probe ended.

    REFUSED is a reset or a *port* unreachable and nothing else; SILENCE no answer within the
    probe's time; CLOSED a connection that was accepted and ended without an answer; ERROR anything
    else (other ICMP errors, a local refusal), spelled out in the detail.
    """

    REACHED = "reached"
    REFUSED = "refused"
    SILENCE = "silence"
    CLOSED = "closed"
    ERROR = "error"


class Outcome(Value, frozen=True):
    """What came of one probe.

    ``sender`` is the ``ip:port`` that the probe was sent from. ``endpoint`` (the responder's name),
    ``client`` (the source that it saw) and ``local`` (the destination that it saw) are set when
    REACHED. ``seconds`` is the time until the end, ``detail`` the reason in words. ``status`` and
    ``page`` are those of a web server that was asked for a path, whoever it is.
    """

    reach: Reach
    sender: str = ""
    endpoint: str = ""
    client: str = ""
    local: str = ""
    seconds: float = 0.0
    detail: str = ""
    status: int = 0
    page: str = ""

    @property
    def masqueraded(self) -> bool:
        """The responder saw another source address than the sender's (ports do not count)."""
        return split_host_port(self.client)[0] != split_host_port(self.sender)[0]

    def __str__(self) -> str:
        if self.status:
            return f"HTTP {self.status} {self.page}"
        if self.reach is Reach.REACHED:
            return f"{self.local} ({self.endpoint}) from {self.client}"
        return f"{self.reach.value}: {self.detail}" if self.detail else self.reach.value


def join_host_port(host: str, port: int) -> str:
    """``ip:port``, IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_host_port(text: str) -> tuple[str, int]:
    """The reverse of :func:`join_host_port`; ("", 0) for empty text."""
    if not text:
        return "", 0
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def web_request(path: str) -> bytes:
    """What asks a web server for a path, and for the end of the connection after it."""
    return f"GET {path} HTTP/1.0\r\n\r\n".encode()


def web_answer(data: bytes) -> tuple[int, str]:
    """Status and body of a whole answer; (0, "") when it is none."""
    head, end, body = data.partition(b"\r\n\r\n")
    words = head.partition(b"\r\n")[0].split()
    if not end or len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return 0, ""
    return int(words[1]), body.decode(errors="replace").strip()


def encode_answer(answer: Answer) -> bytes:
    """One JSON line."""
    return msgspec.json.encode(answer) + b"\n"


def decode_answer(line: bytes) -> Answer | None:
    """The answer in a line, or None when the line is none of ours."""
    try:
        return msgspec.json.decode(line, type=Answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


class Request(Value, frozen=True):
    """One request cut from the stream: ``text`` to echo, and the shape that the reply must have."""

    text: str
    http: bool = False
    head_only: bool = False
    close: bool = False

    @property
    def path(self) -> str:
        """What an HTTP request asks for, without its query."""
        words = self.text.split(" ")
        return words[1].partition("?")[0] if len(words) > 1 else ""


def next_request(buffer: bytes) -> tuple[Request | None, bytes]:
    """Cut one request off the front of ``buffer``: (request or None when incomplete, the rest).

    ValueError when more than MAX_REQUEST bytes hold no whole request.
    """
    http = buffer.startswith(_METHODS)
    end = b"\r\n\r\n" if http else b"\n"
    head, found, rest = buffer.partition(end)
    if not found:
        if len(buffer) > MAX_REQUEST:
            raise ValueError("no end of request")
        return None, buffer
    if not http:
        return Request(head.rstrip(b"\r").decode(errors="replace")), rest
    lines = head.decode("latin-1").split("\r\n")
    method, _, tail = lines[0].partition(" ")
    fields = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines[1:])
    }
    length = fields.get("content-length", "0")
    body = int(length) if length.isdigit() else 0
    if len(rest) < body:
        if body > MAX_REQUEST:
            raise ValueError("body too long")
        return None, buffer
    close = fields.get("connection", "").lower() == "close" or not tail.endswith("HTTP/1.1")
    request = Request(lines[0], http=True, head_only=method == "HEAD", close=close)
    return request, rest[body:]


def reply(request: Request, answer: Answer) -> bytes:
    """The bytes that answer one request."""
    if not request.http:
        return encode_answer(answer)
    status, kind, body = _page(request.path, answer)
    # RFC 9110, section 8.6: these have no body, and no length of one.
    bare = status < HTTPStatus.OK or status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
    length = "" if bare else f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    head = (
        f"HTTP/1.1 {status} {_phrase(status)}\r\n{length}"
        f"Connection: {'close' if request.close else 'keep-alive'}\r\n\r\n"
    ).encode()
    return head if bare or request.head_only else head + body


def _page(path: str, answer: Answer) -> tuple[int, str, bytes]:
    """Status, type and body of what an HTTP request asks for."""
    if path == HEALTHZ:
        return HTTPStatus.OK, "text/plain; charset=utf-8", b"ok"
    wanted = path.removeprefix(STATUS)
    if (
        wanted != path
        and wanted.isascii()
        and wanted.isdigit()
        and len(wanted) == 3
        and "2" <= wanted < "6"
    ):
        return int(wanted), "text/plain; charset=utf-8", f"{_phrase(int(wanted))}\n".encode()
    return HTTPStatus.OK, "application/json", encode_answer(answer)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Status"
