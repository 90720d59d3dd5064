"""Connections that say nothing: they end, and keep nobody out. Real sockets and the real server."""

from __future__ import annotations

import asyncio
import resource

import pytest

from kproxy.config import Config
from kproxy.health import sites
from kproxy.health.guests import MOST, Guests
from kproxy.kernel import process
from tests.health.test_server import HEALTH, METRICS, get, monitor_of, namespace, run, serving

__all__ = ["namespace"]

pytestmark = pytest.mark.kernel

LONG = 1000.0
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(sent: bytes = b"", port: int = HEALTH) -> Connection:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    await writer.drain()
    return reader, writer


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other side ends it, in whatever way."""
    parts = []
    try:
        while part := await reader.read(1 << 16):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


async def ask_for_ever(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        await writer.drain()


def limits(monkeypatch: pytest.MonkeyPatch, **given: float) -> list[Guests]:
    """The servers of this test have these limits; their guests, once they are made."""
    made: list[Guests] = []

    def guests() -> Guests:
        made.append(Guests(**{"first": LONG, "following": LONG, **given}))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(sites, "Guests", guests)
    return made


@pytest.mark.parametrize("port", [HEALTH, METRICS])
@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: "])
def test_who_keeps_silent_keeps_nobody_out(
    monkeypatch: pytest.MonkeyPatch, port: int, sent: bytes
) -> None:
    """Whatever number of connections is open, a probe is answered: those that were quiet longest
    have ended, and the others are still there."""
    most = 8
    made = limits(monkeypatch, most=most)

    async def work() -> None:
        async with serving(Config(), monitor_of()):
            await get("/healthz", port)
            silent = [await connect(sent, port) for _ in range(3 * most)]
            assert (await get("/healthz", port)).status in (200, 503)
            await asyncio.gather(*(ended(reader) for reader, _ in silent[: 2 * most]))
            assert max(len(guests) for guests in made) <= most
            for reader, writer in silent:
                writer.close()
                await ended(reader)

    run(work)


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HT"])
def test_a_request_has_to_come_soon(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """A connection on which none came is ended without an answer."""
    limits(monkeypatch, first=0.02)

    async def work() -> None:
        async with serving(Config(), monitor_of()):
            reader, writer = await connect(sent)
            assert await ended(reader) == b""
            writer.close()

    run(work)


def test_the_next_request_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that has asked stays for more, and is ended when nothing follows."""
    limits(monkeypatch, following=0.3)
    request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"

    async def work() -> None:
        async with serving(Config(), monitor_of()):
            reader, writer = await connect(request * 2)
            assert (await ended(reader)).count(b"HTTP/1.1 503") == 2
            writer.close()

    run(work)


def test_who_takes_no_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much waits to be taken: closing would wait for the reader."""
    made = limits(monkeypatch, following=0.1)

    async def work() -> None:
        async with serving(Config(), monitor_of()):
            await get("/healthz", METRICS)
            _, writer = await connect(port=METRICS)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            with pytest.raises(ConnectionError):
                await ask_for_ever(writer)
            writer.close()
            assert sum(len(guests) for guests in made) == 0

    run(work)


def test_a_daemon_has_descriptors_for_all() -> None:
    """The limit is raised as far as the administrator lets it; both servers need a part of it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
        process.raise_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert 2 * MOST < 1024
