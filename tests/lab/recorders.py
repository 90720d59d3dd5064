"""Servers in a lab's pods that write down who comes, and a pod that opens connections to them at a
steady rate: what was translated twice would come to two of them, or from another address."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from typing import NamedTuple, Self

from kproxy.bench.modeswitch import service
from kproxy.kernel import netns
from kproxy.lab.model import LabState

PORT = 7778

#: Put beside a topology's own services.
SERVICE = service("recorded", PORT)

#: New connections a second, and how many threads take turns: one that waits holds up no other.
RATE, CALLERS = 200.0, 16

#: Seconds after which a call has failed: several SYNs by then.
PATIENCE = 10.0

_NUMBER = struct.Struct("!Q")


class Visit(NamedTuple):
    """One connection as a server saw it."""

    server: str
    peer: str


class Recorders:
    """A server in each of these pods; ``visits``: number of a connection -> who saw it."""

    def __init__(self, lab: LabState, pods: Iterable[str]) -> None:
        self.visits: dict[int, list[Visit]] = defaultdict(list)
        self._lab = lab
        self._pods = tuple(pods)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for pod in self._pods:
            with netns.entered(self._lab.network.namespace(pod)):
                listening = socket.create_server(("0.0.0.0", PORT), backlog=1024)
            thread = threading.Thread(target=self._serve, args=(pod, listening))
            thread.start()
            self._stack.callback(_end, listening, thread)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _serve(self, pod: str, listening: socket.socket) -> None:
        while True:
            try:
                made, peer = listening.accept()
            except OSError:
                return  # shut down
            with made:
                made.settimeout(PATIENCE)
                try:
                    said = made.recv(_NUMBER.size)
                    if len(said) == _NUMBER.size:
                        self.visits[_NUMBER.unpack(said)[0]].append(Visit(pod, peer[0]))
                        made.sendall(said)
                except OSError:
                    continue  # who called has failed, and says so


def _end(listening: socket.socket, thread: threading.Thread) -> None:
    listening.shutdown(socket.SHUT_RDWR)
    thread.join()
    listening.close()


class Calls:
    """Connections from a namespace to a place, each with a number of its own, ``RATE`` a second
    while the ``with`` lasts. ``made``: number -> the client's own address; ``failures``: number ->
    why."""

    #: Never the same twice in a process: recorders may outlive the calls.
    _numbers = itertools.count()

    def __init__(self, namespace: str, place: tuple[str, int]) -> None:
        self.made: dict[int, str] = {}
        self.failures: dict[int, str] = {}
        self._namespace = namespace
        self._place = place
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(at,)) for at in range(CALLERS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _run(self, at: int) -> None:
        due = time.monotonic() + at / RATE
        with netns.entered(self._namespace):
            while not self._ending.wait(max(0.0, due - time.monotonic())):
                due += CALLERS / RATE
                self._call(next(self._numbers))

    def _call(self, number: int) -> None:
        said = _NUMBER.pack(number)
        try:
            with socket.create_connection(self._place, timeout=PATIENCE) as made:
                self.made[number] = made.getsockname()[0]
                made.sendall(said)
                if made.recv(_NUMBER.size) != said:
                    self.failures[number] = "another answer"
        except OSError as failed:
            self.failures[number] = repr(failed)
