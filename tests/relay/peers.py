"""TCP clients and endpoints around a relay, for peers that misbehave.

A relay, its clients and its endpoints are in a namespace of their own, on its loopback. A client
and the connection that the relay makes for it are a :class:`Pair`: what one end does, the other
sees.
"""

from __future__ import annotations

import errno
import itertools
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import NamedTuple

import pytest

from kproxy._relay import Relay
from tests.contract.namespaces import scratch

#: Seconds after which a test that waits for something has failed.
PATIENCE = 60.0

HOST = "127.0.0.1"

Place = tuple[str, int]

#: Ports of :func:`nobody`.
_VACANT = itertools.cycle(range(10000, 20000))

MILLION = random.Random(1).randbytes(1_000_000)

#: Which end does it; the other one sees it.
ends = pytest.mark.parametrize("end", ["client", "server"])


class Pair(NamedTuple):
    """Both ends of one flow."""

    client: socket.socket
    server: socket.socket

    def turned(self) -> Pair:
        """Seen from the other side: what holds for one direction holds for the other."""
        return Pair(self.server, self.client)


def seen_from(end: str, pair: Pair) -> Pair:
    """(who does it, who sees it)"""
    return pair if end == "client" else pair.turned()


class Lab:
    """One relay with one service of TCP, and what a test adds to it."""

    def __init__(self, module: ModuleType, relay: Relay, stack: ExitStack) -> None:
        self.module = module
        self.relay = relay
        self.stack = stack
        self.service = relay.add_service()
        self.endpoints: list[socket.socket] = []
        front = listening()
        self.place: Place = front.getsockname()
        relay.open(self.service, module.CLUSTER, (front.detach(),))

    def endpoint(self) -> socket.socket:
        """One more that listens; :meth:`publish` tells the relay."""
        self.endpoints.append(self.stack.enter_context(listening()))
        return self.endpoints[-1]

    def publish(self, *places: Place) -> None:
        """These are the service's endpoints from now on, or all that listen."""
        given = places or tuple(each.getsockname() for each in self.endpoints)
        self.relay.set_endpoints(self.service, given, range(len(given)), ())

    def client(self) -> socket.socket:
        return self.stack.enter_context(socket.create_connection(self.place, PATIENCE))

    def accepted(self, endpoint: socket.socket | None = None) -> socket.socket:
        """The connection that the relay makes next."""
        made, _ = (endpoint or self.endpoints[0]).accept()
        made.settimeout(PATIENCE)
        return self.stack.enter_context(made)

    def pair(self, endpoint: socket.socket | None = None) -> Pair:
        client = self.client()
        return Pair(client, self.accepted(endpoint))

    def works(self, endpoint: socket.socket | None = None) -> None:
        """Somebody else is served all the same."""
        client, server = self.pair(endpoint)
        carried(client, server, b"question")
        carried(server, client, b"answer")
        client.close()
        assert server.recv(1) == b""
        server.close()

    def is_empty(self) -> None:
        """In the end nothing is left of any flow."""
        # All at once: a client that has gone already may still be let in between two looks.
        until(
            lambda: (
                self.relay.totals()["flows"]
                == self.relay.totals()["buffered"]
                == self.counted("active")
                == 0
            )
        )

    def counted(self, name: str) -> int:
        return self.relay.service_counters(self.service)[name]


@contextmanager
def relaying(module: ModuleType, endpoints: int = 1, **settings: object) -> Iterator[Lab]:
    """A relay at work in a new namespace, with so many endpoints."""
    with scratch(loopback=True), ExitStack() as stack:
        relay = module.Relay(**settings)
        stack.callback(relay.stop)
        relay.start()
        lab = Lab(module, relay, stack)
        for _ in range(endpoints):
            lab.endpoint()
        lab.publish()
        yield lab


def listening(backlog: int = 4096) -> socket.socket:
    made = socket.create_server((HOST, 0), backlog=backlog)
    made.settimeout(PATIENCE)
    return made


def nobody() -> Place:
    """Where nobody listens: a connection is refused. Below the ports that the kernel deals out:
    a connection that comes from the very port it goes to reaches itself."""
    return HOST, next(_VACANT)


def carried(source: socket.socket, sink: socket.socket, data: bytes) -> None:
    source.sendall(data)
    assert received(sink, len(data)) == data


def received(sink: socket.socket, size: int) -> bytes:
    """So many bytes, fewer if the peer has finished."""
    found = bytearray()
    while len(found) < size and (data := sink.recv(min(size - len(found), 1 << 20))):
        found += data
    return bytes(found)


def all_of(sink: socket.socket) -> bytes:
    """Until the peer has finished."""
    return received(sink, 1 << 40)


@contextmanager
def sending(source: socket.socket, data: bytes, *, then_close: bool = False) -> Iterator[None]:
    """All of it while the caller reads the other end."""

    def send() -> None:
        source.sendall(data)
        if then_close:
            source.close()

    thread = threading.Thread(target=send)
    thread.start()
    yield
    thread.join(PATIENCE)
    assert not thread.is_alive()


def reset(one: socket.socket) -> None:
    """Close by a RST, at once, whatever is under way."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    one.close()


def is_reset(one: socket.socket) -> bool:
    """Whether the peer resets, after whatever it had sent."""
    try:
        all_of(one)
    except ConnectionResetError:
        return True
    return is_over(one) in (errno.EPIPE, errno.ECONNRESET)


def is_over(one: socket.socket) -> int:
    """Wait until the connection is: 0 when both have finished, else why. Reading does not tell of
    a reset by who had finished before."""
    poll = select.poll()
    poll.register(one, 0)
    assert poll.poll(1000 * PATIENCE), "it is still there"
    return one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def filled(source: socket.socket) -> int:
    """Send until nobody takes any more for the moment: how much that was."""
    source.setblocking(False)
    sent = 0
    try:
        while True:
            sent += source.send(bytes(1 << 16))
    except BlockingIOError:
        source.settimeout(PATIENCE)
        return sent


def stuffed(lab: Lab, source: socket.socket) -> int:
    """Send to a peer that does not read, until the relay keeps something for it: how much was
    taken."""
    sent = filled(source)
    while not lab.relay.totals()["buffered"]:
        sent += filled(source)
    return sent


def until(holds: Callable[[], bool]) -> None:
    """Look again and again; for what no socket can tell of."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it never came true"


def closed(pairs: Sequence[Pair]) -> None:
    for pair in pairs:
        pair.client.close()
        pair.server.close()
