"""How many connections a site holds, and for how long: silence must not use up descriptors.

The ports are reached from the network, and a daemon that has no descriptor left can start no tool
and sync no more. A connection has some seconds to send its first request, and more for the next
one or to take its answer; and when there are too many, the one that has been quiet longest gives
way to the new one, so that a probe is answered however many others keep silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

#: Connections that a site holds at most.
MOST = 128
#: Seconds for the first request.
FIRST = 10.0
#: Seconds for the next one, or for taking the answer. Scrapers come once a minute.
NEXT = 90.0


class Guests:
    """The connections of one site, by how long they have been quiet. Of one event loop."""

    def __init__(self, *, most: int = MOST, first: float = FIRST, following: float = NEXT) -> None:
        self._most = most
        self._first = first
        self._following = following
        #: In the order of their last sign of life.
        self._timers: dict[asyncio.BaseTransport, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._timers)

    def factory(self, inner: Callable[[], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
        """What a server makes its protocols with: those of ``inner``, watched."""
        return lambda: _Guest(inner(), self)

    def came(self, transport: asyncio.Transport) -> None:
        """A connection was accepted."""
        while len(self._timers) >= self._most:
            self._turn_out(next(iter(self._timers)))
        self._wait(transport, self._first)

    def asked(self, transport: asyncio.BaseTransport | None) -> None:
        """A request came in whole."""
        if transport in self._timers:
            self._timers.pop(transport).cancel()
            self._wait(transport, self._following)

    def dismiss(self, chosen: Callable[[asyncio.BaseTransport], bool]) -> None:
        """End connections at once, answered or not."""
        for transport in [each for each in self._timers if chosen(each)]:
            self._turn_out(transport)

    def left(self, transport: asyncio.BaseTransport) -> None:
        """A connection has ended."""
        timer = self._timers.pop(transport, None)
        if timer is not None:
            timer.cancel()

    def _wait(self, transport: asyncio.BaseTransport, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._timers[transport] = loop.call_later(seconds, self._turn_out, transport)

    def _turn_out(self, transport: asyncio.BaseTransport) -> None:
        self.left(transport)
        # Not closed: that would wait for a reader who takes nothing.
        assert isinstance(transport, asyncio.WriteTransport)
        transport.abort()


class _Guest(asyncio.Protocol):
    """Passes everything on to the protocol of the web library."""

    def __init__(self, inner: asyncio.Protocol, guests: Guests) -> None:
        self._inner = inner
        self._guests = guests
        self._transport: asyncio.Transport | None = None
        self.data_received = inner.data_received  # type: ignore[method-assign]
        self.eof_received = inner.eof_received  # type: ignore[method-assign]
        self.pause_writing = inner.pause_writing  # type: ignore[method-assign]
        self.resume_writing = inner.resume_writing  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._guests.came(transport)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._guests.left(self._transport)
        self._inner.connection_lost(exc)
