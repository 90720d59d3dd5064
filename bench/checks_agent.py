"""The two sides of ``bench_checks.py``, each a process in its namespace.

python -m bench.checks_agent       # started by Side
"""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import msgspec

from kproxy.bench import usage
from kproxy.bench.helper import Helper, obey
from kproxy.core.health.values import Check, Http, Pace, Probe, Target, Tcp
from kproxy.health.checks import Checker
from kproxy.health.checks.group import KindFigures

_PROBES: dict[str, Probe] = {"tcp": Tcp(), "http": Http()}

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n"


class Side(Helper):
    """The near end of one; see :class:`kproxy.bench.helper.Helper` for errors."""

    def __init__(self, namespace: int) -> None:
        super().__init__(namespace, "bench.checks_agent")

    def serve(self, port: int) -> None:
        """Answer HTTP on a port of every address."""
        self.ask(do="serve", port=port)

    def check(self, kind: str, port: int, addresses: list[str], interval: float) -> None:
        """Check these places from now on, and no others."""
        self.ask(do="check", kind=kind, port=port, addresses=addresses, interval=interval)

    def figures(self, kind: str) -> KindFigures:
        return msgspec.convert(self.ask(do="figures", kind=kind), KindFigures)

    def cpu(self) -> float:
        """Seconds that it has spent, user and system."""
        return usage.cpu_seconds([self.pid])


# --- the process --------------------------------------------------------------------------------


class _Http(asyncio.Protocol):
    """One request, one answer; who asked closes."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(_ANSWER)


class _Work:
    """What the process holds between two orders."""

    def __init__(self) -> None:
        self.checker: Checker | None = None
        self.heard = 0

    def serve(self, *, port: int) -> None:
        listening = socket.create_server(("", port), backlog=4096)

        def run() -> None:
            async def work() -> None:
                loop = asyncio.get_running_loop()
                server = await loop.create_server(_Http, sock=listening, backlog=4096)
                await server.serve_forever()

            asyncio.run(work())

        threading.Thread(target=run, daemon=True).start()

    def check(self, *, kind: str, port: int, addresses: list[str], interval: float) -> None:
        self.end()
        check = Check(_PROBES[kind], Pace(interval=interval, fast_interval=interval))
        self.checker = Checker(self._told)
        self.checker.change([Target(check, address, port) for address in addresses])

    def _told(self, results: list[Any]) -> None:
        self.heard += len(results)

    def figures(self, *, kind: str) -> KindFigures:
        if self.checker is None:
            raise LookupError("nothing is checked")
        return next(each for each in self.checker.figures().kinds if each.name == kind)

    def end(self) -> None:
        if self.checker is not None:
            self.checker.close()
            self.checker = None


def main() -> None:
    work = _Work()
    try:
        obey({each.__name__: each for each in (work.serve, work.check, work.figures)})
    finally:
        work.end()


if __name__ == "__main__":
    main()
