"""A process that answers with who it is, or asks over and over until the right one has answered.

    python -m kproxy.bench.prober       # started by Prober, in its namespace

Tries begin every two milliseconds, whatever becomes of those before: where packets are swallowed
(a node tells at most one client a second that it knows no way, icmp_ratelimit) the next try does
not wait for the last one to be given up.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Sequence
from typing import Self

from kproxy.bench.helper import Helper, obey
from kproxy.bench.load import Place

#: Seconds between the beginnings of two tries, which is what a figure is exact to, and for one.
_EVERY, _ONE = 0.002, 0.25

#: Connections that wait to be taken.
_WAITING = 1024


class Prober(Helper):
    """The near end of one; see :class:`kproxy.bench.helper.Helper` for errors."""

    def __init__(self, namespace: int) -> None:
        super().__init__(namespace, "kproxy.bench.prober")

    def serve(self, places: Sequence[Place]) -> None:
        """Tell everybody who connects at one of these places its address, until the end."""
        self.ask(do="serve", places=places)

    def watch(self, place: Place, wanted: str) -> None:
        """Connect again and again until ``wanted`` has answered; one try is over on return."""
        self.ask(do="watch", place=place, wanted=wanted)

    def seen(self, patience: float) -> int:
        """When it had (CLOCK_MONOTONIC ns). CheckFailed: it has not within ``patience`` seconds."""
        return int(self.ask(do="seen", patience=patience))


# --- the process --------------------------------------------------------------------------------


class _Side:
    def __init__(self) -> None:
        self.ending = threading.Event()
        self.tried = threading.Event()
        self.found = threading.Event()
        self.at = 0
        self.last = "nobody"
        self.thread: threading.Thread | None = None

    def serve(self, *, places: list[Place]) -> None:
        for host, port in places:
            listening = socket.create_server((host, port), backlog=_WAITING)
            threading.Thread(target=_tell, args=(listening, host.encode()), daemon=True).start()

    def watch(self, *, place: Place, wanted: str) -> None:
        self._end_watch()
        for each in (self.ending, self.tried, self.found):
            each.clear()
        self.thread = threading.Thread(target=self._watch, args=(tuple(place), wanted))
        self.thread.start()
        self.tried.wait()

    def seen(self, *, patience: float) -> int:
        if not self.found.wait(patience):
            raise LookupError(f"no good answer within {patience:g} s: the last was {self.last}")
        return self.at

    def end(self) -> None:
        self._end_watch()

    def _end_watch(self) -> None:
        self.ending.set()
        if self.thread is not None:
            self.thread.join()

    def _watch(self, place: Place, wanted: str) -> None:
        with _Tries(place) as tries:
            while not self.ending.is_set():
                for answer in tries.answers():
                    self.last = answer
                    if answer == wanted:
                        self.at = time.monotonic_ns()
                        self.found.set()
                    self.tried.set()
                if self.found.is_set():
                    return


class _Tries:
    """Connections to a place that wait for an answer."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._poll = select.epoll()
        #: Descriptor -> the try and when it is given up.
        self._open: dict[int, tuple[socket.socket, float]] = {}
        self._next = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for tried, _ in self._open.values():
            tried.close()
        self._poll.close()

    def answers(self) -> list[str]:
        """Who has answered, or what came instead, since the last call; at most one pause long."""
        said = []
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY
            said += self._begin()
        for descriptor, _ in self._poll.poll(max(0.0, self._next - time.monotonic())):
            tried, _ = self._open.pop(descriptor)
            with tried:
                said.append(_answer(tried))
        for descriptor, (tried, until) in list(self._open.items()):
            if time.monotonic() < until:
                break
            del self._open[descriptor]
            tried.close()
            said.append("silence")
        return said

    def _begin(self) -> list[str]:
        tried = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        tried.setblocking(False)
        failed = tried.connect_ex(self._place)
        if failed != errno.EINPROGRESS:
            tried.close()
            return [os.strerror(failed)]
        # Readable: there is an answer, or an error that takes its place.
        self._poll.register(tried, select.EPOLLIN)
        self._open[tried.fileno()] = (tried, time.monotonic() + _ONE)
        return []


def _answer(tried: socket.socket) -> str:
    try:
        return tried.recv(64).decode() or "an end"
    except OSError as failed:
        return str(failed)


def _tell(listening: socket.socket, who: bytes) -> None:
    while True:
        taken, _ = listening.accept()
        with taken:
            taken.sendall(who)


def main() -> None:
    side = _Side()
    try:
        obey({each.__name__: each for each in (side.serve, side.watch, side.seen)})
    finally:
        side.end()


if __name__ == "__main__":
    main()
