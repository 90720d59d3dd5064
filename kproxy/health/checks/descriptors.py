"""Tries that are one socket and one event of it: TCP and UDP, thousands at once.

They have an epoll of their own, and the event loop watches that alone: events come by the hundred
in one call, without a callback of the loop's for each.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from typing import Protocol

from kproxy.core.health.values import Target
from kproxy.health.checks.faults import broken_off
from kproxy.health.checks.outcome import Outcome, no_answer
from kproxy.health.checks.run import Run

#: Events taken in one call.
_BATCH = 512


class DescriptorProber(Protocol):
    """One way to check with one socket."""

    #: The epoll event to wait for (errors are always reported).
    mask: int

    def open(self, target: Target) -> socket.socket | Outcome:
        """Start a try: the socket to watch, or how it ended at once. Never blocks or raises."""
        ...

    def ended(self, target: Target, its: socket.socket, events: int) -> Outcome | None:
        """What the events mean; None: nothing yet. The caller closes the socket."""
        ...


class Descriptors:
    """All tries of this kind. ``ended`` is called when one is over, its socket closed; it must not
    start another."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, ended: Callable[[Run, Outcome], None]
    ) -> None:
        self._loop = loop
        self._ended = ended
        self._epoll = select.epoll()
        self._open: dict[int, tuple[Run, DescriptorProber, socket.socket]] = {}
        loop.add_reader(self._epoll.fileno(), self.gather)

    def start(self, run: Run, prober: DescriptorProber) -> None:
        made = opened(prober, run.target)
        if isinstance(made, Outcome):
            self._ended(run, made)
            return
        number = run.descriptor = made.fileno()
        self._open[number] = (run, prober, made)
        self._epoll.register(number, prober.mask)

    def gather(self) -> None:
        """Take what has come."""
        while True:
            found = self._epoll.poll(0, _BATCH)
            for number, events in found:
                # Nothing is opened in here, so no number in ``found`` has got another socket.
                run, prober, its = self._open[number]
                outcome = prober.ended(run.target, its, events)
                if outcome is not None:
                    self._close(run)
                    self._ended(run, outcome)
            if len(found) < _BATCH:
                return

    def expire(self, run: Run) -> None:
        """Its time is over. Call :meth:`gather` before, for what has come meanwhile."""
        self._close(run)
        self._ended(run, no_answer(run.target.check.pace.timeout))

    def stop(self, run: Run) -> None:
        """Forget it; ``ended`` is not called."""
        self._close(run)

    def close(self) -> None:
        for run, _, _ in list(self._open.values()):
            self._close(run)
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _close(self, run: Run) -> None:
        # Not left to the closing: a program that another thread starts has a copy of the descriptor
        # between its fork and its exec, and the entry lives as long as that. What it then tells
        # would be taken for the next socket of this number.
        self._epoll.unregister(run.descriptor)
        self._open.pop(run.descriptor)[2].close()
        run.descriptor = -1


def opened(prober: DescriptorProber, target: Target) -> socket.socket | Outcome:
    """A try that was started, or what kept it from that: an exception would end the rounds of all
    the others."""
    try:
        return prober.open(target)
    except Exception as error:  # noqa: BLE001
        return broken_off(error, target)
