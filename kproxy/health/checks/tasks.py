"""Tries that are a conversation: HTTP, gRPC, programs. A task each, while it lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from kproxy.core.health.values import Target
from kproxy.health.checks.faults import broken_off
from kproxy.health.checks.outcome import Outcome, bad, no_answer, of_errno
from kproxy.health.checks.run import Run


class Progress:
    """How far a try has come: ``lacks`` is what there is none of yet, for when time runs out."""

    __slots__ = ("lacks",)

    def __init__(self) -> None:
        self.lacks = "no connection"


class TaskProber(Protocol):
    """One way to check with a conversation. Made in the event loop's thread, before first use."""

    async def probe(self, target: Target, progress: Progress) -> Outcome:
        """One try, to its end; who calls limits its time by cancelling. OSError is understood."""
        ...

    async def close(self) -> None:
        """No try is under way any more."""
        ...


class Tasks:
    """All tries of this kind. ``ended`` is called when one is over."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, ended: Callable[[Run, Outcome], None]
    ) -> None:
        self._loop = loop
        self._ended = ended
        self._going: set[asyncio.Task[None]] = set()

    def start(self, run: Run, prober: TaskProber) -> None:
        task = run.task = self._loop.create_task(self._try(run, prober))
        self._going.add(task)
        task.add_done_callback(self._going.discard)

    async def _try(self, run: Run, prober: TaskProber) -> None:
        progress = Progress()
        try:
            outcome = await guarded(prober, run.target, progress)
        except asyncio.CancelledError:
            if not run.expired:
                raise
            outcome = no_answer(run.target.check.pace.timeout, progress.lacks)
        run.task = None
        self._ended(run, outcome)

    def expire(self, run: Run) -> None:
        """Its time is over; ``ended`` follows when it has tidied up."""
        run.expired = True
        if run.task is not None:
            run.task.cancel()

    def stop(self, run: Run) -> None:
        """Forget it; ``ended`` is not called."""
        if run.task is not None:
            run.task.cancel()
            run.task = None

    async def close(self) -> None:
        """Nobody is told of what is still under way."""
        for task in self._going:
            task.cancel()
        if self._going:
            await asyncio.wait(self._going)


async def guarded(prober: TaskProber, target: Target, progress: Progress) -> Outcome:
    """A try whose errors are outcomes, too."""
    try:
        return await prober.probe(target, progress)
    except asyncio.IncompleteReadError:
        return bad("closed before the answer was whole")
    except OSError as error:
        return of_errno(error.errno, at_once=getattr(error, "at_once", False))
    except Exception as error:  # noqa: BLE001
        return broken_off(error, target)
