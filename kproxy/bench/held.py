"""Connections that are held open and asked again and again, each by a thread of its own: which of
them live on, and how long the longest silence was."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Self

from kproxy.bench.agent import asked
from kproxy.bench.load import Place
from kproxy.core.objects import Value
from kproxy.errors import CheckFailed
from kproxy.kernel import netns

#: Seconds between two questions on one connection.
INTERVAL = 0.02

#: Seconds without an answer after which a connection counts as dead: TCP has sent again five times
#: by then.
_PATIENCE = 6.0


class Outcome(Value, frozen=True):
    """Of ``connections`` so many ``survived``; the longest ``silence`` (seconds) of those."""

    connections: int
    survived: int
    silence: float

    @property
    def share(self) -> float:
        """Of them that live on; 1 when there were none."""
        return self.survived / self.connections if self.connections else 1.0


class Held:
    """``count`` connections from ``namespace`` (descriptor or name) to ``target``.

    ``ask(socket)`` sends one question and reads its answer; OSError when there is none.
    CheckFailed: one of them has none to its first.
    """

    def __init__(
        self,
        namespace: int | str,
        target: Place,
        count: int,
        ask: Callable[[socket.socket], object] = asked,
    ) -> None:
        self._ask = ask
        self._ending = threading.Event()
        self._silence = [0.0] * count
        self._alive = [True] * count
        self._sockets: list[socket.socket] = []
        try:
            with netns.entered(namespace):
                for _ in range(count):
                    self._sockets.append(socket.create_connection(target, timeout=_PATIENCE))
            for each in self._sockets:
                ask(each)
        except OSError as failed:
            self._close()
            raise CheckFailed(f"a connection to hold has no answer: {failed}") from failed
        except BaseException:
            self._close()
            raise
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(count)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def _run(self, number: int) -> None:
        while not self._ending.is_set():
            begun = time.monotonic()
            try:
                self._ask(self._sockets[number])
            except OSError:
                self._alive[number] = False
                return
            self._silence[number] = max(self._silence[number], time.monotonic() - begun)
            self._ending.wait(INTERVAL)

    def end(self) -> Outcome:
        """Each is asked to the end of its last question."""
        self._ending.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self._close()
        silences = [s for s, alive in zip(self._silence, self._alive, strict=True) if alive]
        return Outcome(len(self._alive), sum(self._alive), max(silences, default=0.0))

    def _close(self) -> None:
        for each in self._sockets:
            each.close()
