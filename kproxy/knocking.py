"""Who knocks at a daemon that carries connections itself: a successor, or one who wants figures.

A conversation is held in a thread, so that nobody who says nothing delays a sync.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from kproxy import logs
from kproxy.backends.userspace import handover
from kproxy.backends.userspace.door import RelayDoor
from kproxy.backends.userspace.messages import Ask, Refused, Told
from kproxy.backends.userspace.wire import Line
from kproxy.errors import KproxyError

_log = logs.get("succession")


#: Seconds until somebody is let in again when that was refused by the kernel.
_PAUSE = 1.0


class Knocking:
    """Listens in the event loop. ``heard`` is called when :attr:`successor` is there."""

    def __init__(self, folder: Path, doors: Sequence[RelayDoor], heard: Callable[[], None]) -> None:
        self._doors = doors
        self._heard = heard
        self._talks: set[asyncio.Task[None]] = set()
        #: Who waits to be given everything.
        self.successor: Line | None = None
        #: The process that is given everything, or waits for it; 0: none.
        self._heir = 0
        self._socket = handover.listen(folder)
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._open()

    def taken(self) -> Line | None:
        """The one who waits, who is the caller's then; others are refused for its sake."""
        successor, self.successor = self.successor, None
        return successor

    def again(self) -> None:
        """It did not come about: the next one may come."""
        self._heir = 0

    def close(self) -> None:
        """Nobody is heard any more; the socket's file is the next daemon's to replace."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        for talk in self._talks:
            talk.cancel()
        if (successor := self.taken()) is not None:
            successor.close()

    def _open(self) -> None:
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        try:
            connected, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as failed:
            # At the limit of descriptors. Who knocks waits, and must not keep us busy meanwhile.
            _log.warning("who knocks is not let in", why=failed, retry_seconds=_PAUSE)
            self._loop.remove_reader(self._socket)
            self._pause = self._loop.call_later(_PAUSE, self._open)
            return
        talk = self._loop.create_task(self._talk(Line(connected)))
        self._talks.add(talk)
        talk.add_done_callback(self._talks.discard)

    async def _talk(self, line: Line) -> None:
        kept = False
        try:
            wants = await asyncio.to_thread(handover.greet, line)
            if isinstance(wants, Ask):
                await asyncio.to_thread(self._tell, line, wants.endpoints)
            elif wants is not None and self._heir:
                why = f"process {self._heir} takes over this moment"
                line.say(Refused(why, by=self._heir))
            elif wants is not None:
                self._heir, _ = line.peer
                self.successor, kept = line, True
                self._heard()
        except KproxyError as failed:
            _log.warning("not spoken to", why=failed)
        finally:
            if not kept:
                line.close()

    def _tell(self, line: Line, endpoints: bool) -> None:
        figures = [door.figures(endpoints=endpoints) for door in self._doors]
        line.say(Told(tuple(figures)))
