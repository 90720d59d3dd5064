"""HTTP and HTTPS: a GET that is answered with the wanted status, and body.

Bounded on every side: an address and no name, so no DNS; no proxy of the environment; no redirect
followed; nothing unpacked; headers and body read up to a limit. What the endpoint sends beyond that
is cut off by a reset.
"""

from __future__ import annotations

import asyncio
import ssl
from functools import lru_cache
from typing import Any

import aiohttp
from aiohttp.connector import Connection
from yarl import URL

from kproxy.core.health.values import Http, Target
from kproxy.health.checks import streams
from kproxy.health.checks.outcome import Outcome, bad, of_errno, own
from kproxy.health.checks.tasks import Progress
from kproxy.health.checks.text import plain, quoted

#: Bytes of a body that are read; what is looked for must be in them.
MOST_BODY = 64 * 1024
#: Bytes before the final status: interim answers (1xx) may come without end, and a check that reads
#: them keeps the others waiting.
MOST_HEAD = 64 * 1024
#: Bytes of one header, and of the status line; so many headers at most (the library's own limit).
_MOST_LINE = 8190

_HEADERS = {"User-Agent": "kproxy-health-check", "Accept": "*/*", "Accept-Encoding": "identity"}


class _EndlessHeadError(Exception):
    """There were more bytes than :data:`MOST_HEAD` before a final status."""


class _Guard(asyncio.Protocol):
    """Stands before a connection's protocol, and ends the connection when too much has come."""

    def __init__(self, transport: asyncio.Transport, its: asyncio.Protocol) -> None:
        self._transport = transport
        self._its = its
        self._came = 0
        #: A final status is there: it stays, as no transport that has ended takes a protocol.
        self.lifted = self.spent = False
        transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        # What has come at once may hold the final status, wherever the limit lies in it.
        if self.lifted or self._came < MOST_HEAD:
            self._came += len(data)
            self._its.data_received(data)
        else:
            self.spent = True
            self._transport.abort()

    def eof_received(self) -> bool | None:
        return self._its.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._its.connection_lost(exc)

    def pause_writing(self) -> None:
        self._its.pause_writing()

    def resume_writing(self) -> None:
        self._its.resume_writing()


class _Answer(aiohttp.ClientResponse):
    """One whose beginning is bounded as well."""

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        transport, protocol = connection.transport, connection.protocol
        if transport is None or transport.is_closing() or protocol is None:
            return await super().start(connection)
        guard = _Guard(transport, protocol)
        try:
            return await super().start(connection)
        except aiohttp.ClientError:
            if guard.spent:
                raise _EndlessHeadError from None
            raise
        finally:
            guard.lifted = True


class HttpProber:
    """A :class:`~kproxy.health.checks.tasks.TaskProber`. One session, a connection for each try."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def probe(self, target: Target, progress: Progress) -> Outcome:
        its = target.check.probe
        assert isinstance(its, Http)
        tls: ssl.SSLContext | bool = True
        if its.scheme == "https":
            progress.lacks = "no TLS connection"
            try:
                tls = _tls(its.verify, its.ca)
            except (ssl.SSLError, ValueError):
                return own("the check's ca holds no certificate in PEM")
        try:
            async with self._opened().get(
                _url(its.scheme, target.ip, target.port, its.path),
                headers=_headers(its.host, its.headers),
                allow_redirects=False,
                ssl=tls,
                server_hostname=_name_of(its.host) if its.scheme == "https" else None,
                trace_request_ctx=progress,
            ) as answer:
                progress.lacks = "no whole answer"
                return await _judged(its, answer)
        except aiohttp.ClientConnectorCertificateError as error:
            return bad(_certificate(error.certificate_error))
        except aiohttp.ClientSSLError as error:
            return bad(_handshake(error.os_error))
        except _EndlessHeadError:
            return bad(f"no final status in {MOST_HEAD // 1024} kB")
        except aiohttp.ServerDisconnectedError:
            return bad("closed without an answer")
        except aiohttp.ClientPayloadError:
            return bad("closed before the answer was whole")
        except aiohttp.ClientConnectorError as error:
            inner = error.os_error
            return of_errno(inner.errno, at_once=getattr(inner, "at_once", False))
        except aiohttp.ClientResponseError as error:
            return bad(f"no valid HTTP answer: {_complaint(error.message)}")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            tracing = aiohttp.TraceConfig()
            tracing.on_connection_create_end.append(_is_connected)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0, force_close=True, socket_factory=lambda info: streams.make(info[0])
                ),
                # The checker's own: it knows when its thread was held up.
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                max_line_size=_MOST_LINE,
                max_field_size=_MOST_LINE,
                headers=_HEADERS,
                trace_configs=[tracing],
                response_class=_Answer,
            )
        return self._session


async def _is_connected(
    session: aiohttp.ClientSession,
    context: Any,
    parameters: aiohttp.TraceConnectionCreateEndParams,
) -> None:
    context.trace_request_ctx.lacks = "no answer"


async def _judged(its: Http, answer: aiohttp.ClientResponse) -> Outcome:
    status = answer.status
    if not any(low <= status <= high for low, high in its.statuses):
        if 300 <= status < 400 and (location := answer.headers.get("Location")):
            return bad(f"status {status}, redirect to {_shown(location)}")
        return bad(f"status {status}, want {_ranges(its.statuses)}")
    if its.body:
        wanted = its.body.encode()
        read, whole = await _beginning(answer, wanted)
        if wanted not in read:
            where = "body" if whole else f"first {MOST_BODY // 1024} kB of body"
            return bad(f"{where} lacks {quoted(its.body)}")
    return Outcome(True, f"status {status}")


async def _beginning(answer: aiohttp.ClientResponse, wanted: bytes) -> tuple[bytes, bool]:
    """What there is of the body up to the limit or to what is wanted; whether that is all."""
    read = bytearray()
    while len(read) < MOST_BODY:
        piece = await answer.content.read(MOST_BODY - len(read))
        if not piece:
            return bytes(read), True
        # It may begin in an earlier piece.
        start = max(0, len(read) - len(wanted))
        read += piece
        if read.find(wanted, start) >= 0:
            break
    return bytes(read), False


@lru_cache(maxsize=8192)
def _url(scheme: str, ip: str, port: int, path: str) -> URL:
    host = f"[{ip}]" if ":" in ip else ip
    return URL(f"{scheme}://{host}:{port}{path}", encoded=True)


@lru_cache(maxsize=1024)
def _headers(host: str, others: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return {**({"Host": host} if host else {}), **dict(others)}


def _name_of(host: str) -> str | None:
    """What the certificate must be for: a header Host may have a port, and brackets."""
    if host.count(":") > 1 and not host.startswith("["):
        return host
    name, bracket, _ = host.removeprefix("[").partition("]")
    return (name if bracket else host.partition(":")[0]) or None


@lru_cache(maxsize=64)
def _tls(verify: bool, ca: str) -> ssl.SSLContext:
    """Loading the machine's certificates takes 20 ms, so contexts are kept."""
    context = ssl.create_default_context(cadata=ca or None)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _ranges(statuses: tuple[tuple[int, int], ...]) -> str:
    """``200-299 or 404``."""
    return " or ".join(str(low) if low == high else f"{low}-{high}" for low, high in statuses)


def _certificate(error: Exception) -> str:
    """``certificate has expired``, ``self-signed certificate``, ``certificate is not valid for …``:
    OpenSSL's own words, without the frame around them."""
    said = getattr(error, "verify_message", "") or str(error)
    # "Hostname mismatch, " or "IP address mismatch, " before it.
    said = plain(said).strip().rstrip(".").rpartition("mismatch, ")[2]
    said = said[:1].lower() + said[1:]
    return said if "certificate" in said else f"bad certificate: {said}"


def _handshake(error: OSError) -> str:
    reason = getattr(error, "reason", None)
    if reason in _NO_TLS:
        return "no TLS there"
    if not isinstance(error, ssl.SSLError):
        return "TLS handshake cut off"
    return f"TLS: {plain(str(reason or error)).replace('_', ' ').lower()}"


#: What OpenSSL calls an answer in clear text.
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"})


def _shown(location: str) -> str:
    cut = location[:120]
    return plain(cut) + ("…" if len(location) > len(cut) else "")


def _complaint(message: str) -> str:
    """The library's words for what it could not read: the first line, without the data."""
    if message.startswith("Got more than"):
        return f"a line or header of more than {_MOST_LINE} bytes"
    lines = message.strip().splitlines() or ["unreadable"]
    said = plain(lines[0].rstrip(":"))[:80]
    return said[:1].lower() + said[1:]
