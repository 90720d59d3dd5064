"""All active checks of a daemon: one thread, one event loop, whatever their number.

checker = Checker(told)
checker.change(added=[target, …], removed=[…])
checker.close()
"""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Self

from kproxy.core.health.values import Target
from kproxy.health.checks.rounds import Figures, Rounds, Told

#: Tries at once of a kind that has no bound of its own.
_MOST = 8192

#: The part of a process's descriptors that one kind of checks may use.
_SHARE = 4


class Checker:
    """Checks targets in the network namespace of the thread that makes it.

    ``told`` is called in the checker's thread, with what came together: a target's state is known
    now that was assumed, or it changed (:func:`kproxy.core.health.trial.is_news`). It must be
    quick. ``programs``: run exec checks; else they are told as a fault of this node, since whoever
    may annotate a Service would run programs as root on every node.

    ``most`` tries at once of a kind that has no bound of its own; 0: a quarter of the descriptors
    that this process may have.
    """

    def __init__(self, told: Told, *, programs: bool = False, most: int = 0) -> None:
        if not most:
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            most = min(_MOST, soft // _SHARE)
        self._loop = asyncio.new_event_loop()
        self._rounds = Rounds(self._loop, told, most=most, programs=programs)
        self._lock = threading.Lock()
        self._closed = False
        # A thread begins in the network namespace of the one that starts it.
        self._thread = threading.Thread(target=self._run, name="checks", daemon=True)
        self._thread.start()

    def change(
        self,
        added: Iterable[Target] = (),
        removed: Iterable[Target] = (),
        known: Mapping[Target, bool] | None = None,
        begun: Callable[[], None] | None = None,
    ) -> None:
        """Check ``added`` from now on, ``removed`` no more; a target in both is begun afresh.

        ``known`` is the state (up) in which targets begin that somebody knew before, instead of
        their pace's ``initial``. ``begun`` is called in the checker's thread between what is told
        of before the change and what is told of after. From any thread; nothing after
        :meth:`close`.
        """
        coming, going = tuple(added), tuple(removed)
        if not coming and not going:
            return
        with self._lock:
            if not self._closed:
                self._loop.call_soon_threadsafe(
                    self._rounds.change, coming, going, dict(known or {})
                )
                if begun is not None:
                    self._loop.call_soon_threadsafe(begun)

    def figures(self) -> Figures:
        """From any thread."""
        return self._rounds.figures()

    def close(self) -> None:
        """End the thread and all that it has under way; ``told`` may be called until it returns."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with suppress(RuntimeError):  # the thread has ended by itself, and its loop
                self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._rounds.close())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
