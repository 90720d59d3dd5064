"""Where checks of tests go: a namespace with loopback, an address that swallows everything, and
servers that misbehave."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from kproxy.core.health.values import Check, Pace, Probe, Target
from kproxy.kernel import netns
from kproxy.kernel.netlink import open_route

TIMEOUT = 60

#: IFF_UP and IFF_NOARP (linux/if.h).
_UP_NOARP = 0x81

#: Everything sent to 10.9.0.0/16 goes to a device that throws it away.
SILENT = "10.9.1.1"

#: Where there is no route to.
NOWHERE = "192.0.2.1"

#: Long enough never to run out where something is answered.
PATIENT = Pace(timeout=TIMEOUT)

#: For what is to run out of time.
BRIEF = Pace(timeout=0.2)


@contextmanager
def scratch() -> Iterator[None]:
    """The calling thread acts in a fresh namespace."""
    with netns.fresh():
        with open_route() as route:
            route.link("set", index=1, state="up")
            route.link("add", ifname="sink", kind="veth", peer="drain")
            for name in ("sink", "drain"):
                index = route.link_lookup(ifname=name)[0]
                route.link("set", index=index, flags=_UP_NOARP, change=_UP_NOARP)
            # Without ARP all frames have the sender's own address, so the other end drops them.
            sink = route.link_lookup(ifname="sink")[0]
            route.addr("add", index=sink, address="10.9.0.1", prefixlen=16)
        yield


def target(probe: Probe, port: int, ip: str = "127.0.0.1", pace: Pace = PATIENT) -> Target:
    return Target(Check(probe, pace), ip, port)


def run(work: Coroutine[Any, Any, None]) -> None:
    """An event loop for it, and an end if it hangs."""

    async def limited() -> None:
        async with asyncio.timeout(TIMEOUT):
            await work

    asyncio.run(limited())


Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(
    talk: Conversation, *, ip: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """The port of a server that holds this conversation with everybody; ended with the block."""
    going: set[asyncio.Task[None]] = set()

    async def held(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        writer.close()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(held(reader, writer))
        going.add(task)
        task.add_done_callback(going.discard)

    server = await asyncio.start_server(accepted, ip, 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in going:
            task.cancel()
        if going:
            await asyncio.wait(going)


def answering(raw: bytes, *, until: bytes = b"\r\n\r\n") -> Conversation:
    """Takes a request, sends that, and closes."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if until:
            await reader.readuntil(until)
        writer.write(raw)
        await writer.drain()

    return talk


async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes everything, says nothing."""
    await reader.read(-1)


def trickling(raw: bytes) -> Conversation:
    """One byte every 50 ms, as long as somebody is there."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for at in range(len(raw)):
            writer.write(raw[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0.05)

    return talk


def endless(raw: bytes) -> Conversation:
    """The beginning, and then more and more."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        while True:
            writer.write(b"y" * 65536)
            await writer.drain()

    return talk
