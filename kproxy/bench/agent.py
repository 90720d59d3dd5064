"""A process in a namespace that serves loads, or is the client of them.

Clients and servers are processes of their own, as they are in life: threads of one process share a
table of descriptors, whose lock and whose limit would be part of every figure. They stay from one
measurement to the next and start nothing while one runs.

    python -m kproxy.bench.agent       # started by Agent, in its namespace
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from socket import AF_INET, AF_INET6, SO_LINGER, SOCK_STREAM, SOL_SOCKET, socket
from struct import pack
from typing import Any

import msgspec

from kproxy.bench import load as loads
from kproxy.bench._load import Server
from kproxy.bench.helper import Helper, obey
from kproxy.bench.load import Load, Place, Result

#: The header of a request that wants 64 bytes back (kproxy/bench/generator/wire.pxi).
_ASK = pack("=IBBHIIQ", 0x646C706B, 0, 0, 0, 64, 64, 0).ljust(64, b"\0")

#: Seconds that one connection may take that is to be held.
_PATIENCE = 10.0


class Agent(Helper):
    """The near end of one; see :class:`kproxy.bench.helper.Helper` for errors."""

    def __init__(self, namespace: int) -> None:
        super().__init__(namespace, "kproxy.bench.agent")

    def serve(self, tcp: Sequence[Place] = (), udp: Sequence[Place] = ()) -> None:
        """Serve loads at these places until the end."""
        self.ask(do="serve", tcp=tcp, udp=udp)

    def deafen(self) -> None:
        """Listen no more for TCP: what is open is served on."""
        self.ask(do="deafen")

    def run(self, load: Load, target: Place, *, sources: Sequence[str] = ()) -> Result:
        """Run a load to its end."""
        self.begin(load, [target], sources=sources)
        return self.result()

    def begin(self, load: Load, targets: Sequence[Place], *, sources: Sequence[str] = ()) -> None:
        """Start a load; :meth:`result` waits for what comes of it."""
        self.tell(do="load", load=load, targets=targets, sources=sources)

    def result(self) -> Result:
        return msgspec.convert(self.answer(), Result, str_keys=True)

    def hold(self, connections: int, target: Place, *, sources: Sequence[str] = ()) -> int:
        """Open so many connections, exchange one request on each, and keep them until
        :meth:`release`; how many are kept now."""
        held = self.ask(do="hold", connections=connections, target=target, sources=sources)
        return int(held)

    def release(self) -> None:
        self.ask(do="release")

    def counters(self) -> dict[str, int]:
        """What the server has done (:meth:`kproxy.bench._load.Server.counters`)."""
        return msgspec.convert(self.ask(do="counters"), dict[str, int])

    def series(self, since: int, until: int) -> list[tuple[int, int]]:
        """What arrived at the server (:meth:`kproxy.bench._load.Server.series`)."""
        return msgspec.convert(
            self.ask(do="series", since=since, until=until), list[tuple[int, int]]
        )


def asked(connection: socket) -> None:
    """One question on a connection that is kept, and its answer. OSError: there is none."""
    connection.sendall(_ASK)
    _take(connection, len(_ASK))


# --- the process --------------------------------------------------------------------------------


class _Side:
    """What the process holds between two orders."""

    def __init__(self) -> None:
        self.server: Server | None = None
        self.thread: threading.Thread | None = None
        self.held: list[socket] = []

    def serve(self, *, tcp: list[Place], udp: list[Place]) -> None:
        self.server = Server([(h, p) for h, p in tcp], [(h, p) for h, p in udp])
        self.thread = threading.Thread(target=self.server.run, name="server")
        self.thread.start()

    def deafen(self) -> None:
        self._serving().deafen()

    def load(self, *, load: dict[str, Any], targets: list[Place], sources: list[str]) -> Result:
        before = _retransmits()
        places = [(host, port) for host, port in targets]
        result = loads.run(msgspec.convert(load, Load), places, sources)
        return msgspec.structs.replace(result, retransmits=_retransmits() - before)

    def hold(self, *, connections: int, target: Place, sources: list[str]) -> int:
        made = []
        for number in range(connections):
            made.append(_connected(target, sources[number % len(sources)] if sources else ""))
            made[-1].sendall(_ask(number))
        for each in made:
            _take(each, len(_ASK))
        self.held += made
        return len(self.held)

    def release(self) -> None:
        for each in self.held:
            each.setsockopt(SOL_SOCKET, SO_LINGER, pack("ii", 1, 0))
            each.close()
        self.held.clear()

    def counters(self) -> dict[str, int]:
        return self._serving().counters()

    def series(self, *, since: int, until: int) -> list[tuple[int, int]]:
        return self._serving().series(since, until)

    def end(self) -> None:
        if self.server is not None and self.thread is not None:
            self.server.stop()
            self.thread.join()

    def _serving(self) -> Server:
        if self.server is None:
            raise LookupError("no server was asked for")
        return self.server


def _ask(number: int) -> bytes:
    return _ASK[:16] + number.to_bytes(8, sys.byteorder) + _ASK[24:]


def _take(connection: socket, length: int) -> None:
    while length:
        data = connection.recv(length)
        if not data:
            raise ConnectionError("a connection that was to be held was closed")
        length -= len(data)


def _connected(target: Place, source: str) -> socket:
    made = socket(AF_INET6 if ":" in target[0] else AF_INET, SOCK_STREAM)
    made.settimeout(_PATIENCE)
    if source:
        made.bind((source, 0))
    made.connect(tuple(target))
    return made


def _retransmits() -> int:
    """TCP segments that this namespace has sent again, SYNs included."""
    head, values = (
        line.split()
        for line in Path("/proc/self/net/snmp").read_text().splitlines()
        if line.startswith("Tcp:")
    )
    return int(values[head.index("RetransSegs")])


def main() -> None:
    side = _Side()
    orders = (
        side.serve,
        side.deafen,
        side.load,
        side.hold,
        side.release,
        side.counters,
        side.series,
    )
    try:
        obey({each.__name__: each for each in orders})
    finally:
        side.end()


if __name__ == "__main__":
    main()
