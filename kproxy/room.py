"""A daemon's place in its network namespace, as long as it has it: who asks for it, and giving it.

Whoever calls is let in by :class:`kproxy.occupancy.Occupancy`; most only want to know who is here.
What is said to one who wants to serve in another mode is :mod:`kproxy.changeover`'s.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path

from kproxy import logs
from kproxy.backends.userspace.wire import Line
from kproxy.changeover import Hello, Left, Serving, greet, next_step, part, refuse, same_folder
from kproxy.errors import KproxyError
from kproxy.occupancy import Occupancy
from kproxy.status import StateDir

_log = logs.get("succession")

#: Modes of which two processes cannot stand side by side in one network namespace: they would have
#: one device.
ALONE = frozenset({"fastpath"})


class Given(Enum):
    """What came of giving our place."""

    SERVED = auto()  # the other one serves
    BROKEN_OFF = auto()  # it is gone, and may have written rules: we are to mend them
    LEFT = auto()  # we were told to stop meanwhile; it goes on without us


class Room:
    """Listens in the event loop. ``heard`` is called when somebody asks for the place."""

    def __init__(
        self, occupancy: Occupancy, mode: str, folder: Path, heard: Callable[[], None]
    ) -> None:
        self._occupancy = occupancy
        self._mode = mode
        self._folder = folder
        self._heard = heard
        #: Somebody else's words, why the place is not to be had right now; "": it is.
        self.busy = ""
        self._asks: tuple[Line, Hello] | None = None
        self._talks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._listen()

    @property
    def wanted(self) -> bool:
        """Somebody waits to be given it."""
        return self._asks is not None

    def close(self) -> None:
        """Nobody is heard any more."""
        self._deaf()
        for talk in self._talks:
            talk.cancel()
        if self._asks is not None:
            self._asks[0].close()
            self._asks = None

    def _listen(self) -> None:
        self._loop.add_reader(self._occupancy.fileno(), self._called)

    def _deaf(self) -> None:
        if not self._occupancy.closed:
            self._loop.remove_reader(self._occupancy.fileno())

    def _called(self) -> None:
        for caller in self._occupancy.callers():
            talk = self._loop.create_task(self._talk(caller))
            self._talks.add(talk)
            talk.add_done_callback(self._talks.discard)

    async def _talk(self, caller: socket.socket) -> None:
        greeted = await asyncio.to_thread(greet, caller)
        if greeted is None:
            return
        line, hello = greeted
        if why := self._why_not(hello):
            refuse(line, why)
            return
        self._asks = line, hello
        self._heard()

    def _why_not(self, hello: Hello) -> str:
        if self._asks is not None:
            return f"process {self._asks[0].peer[0]} takes over"
        if hello.mode == self._mode and self._mode in ALONE:
            return f"it serves in {self._mode} mode already"
        return self.busy

    async def give(
        self, state: StateDir, leave: Callable[[], int], hurry: asyncio.Event
    ) -> tuple[Given, Line | None]:
        """Between two syncs: to the one who waits, with the state directory if it has the same.

        ``leave()`` makes what is carried here independent of our rules; ``hurry`` is set when we
        are told to stop. With SERVED comes the line on which the end of us is to be told.
        """
        assert self._asks is not None
        line, hello = self._asks
        shared = same_folder(self._folder, hello.folder)
        _log.info("making room", for_process=line.peer[0], mode=hello.mode)
        # Whoever calls from now on calls the other one.
        self._deaf()
        stopped = asyncio.create_task(hurry.wait())
        try:
            part(line, [each.fileno() for each in (self._occupancy, state)[: 1 + shared]])
            await _followed(line, leave, stopped)
        except KproxyError as failed:
            line.close()
            self._asks = None
            if not stopped.done():
                _log.warning("no other mode came about: serving on", why=failed)
                state.again()
                self._occupancy.again()
                self._listen()
                return Given.BROKEN_OFF, None
            given: tuple[Given, Line | None] = (Given.LEFT, None)
        else:
            self._asks = None
            given = (Given.SERVED, line)
        finally:
            stopped.cancel()
        if shared:
            state.give_away()
        self._occupancy.close()
        return given


async def _followed(line: Line, leave: Callable[[], int], stopped: asyncio.Task[bool]) -> None:
    """Do what the other one's words ask for, until it serves."""
    while True:
        word = asyncio.create_task(asyncio.to_thread(next_step, line))
        await asyncio.wait((word, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not word.done():
            line.hang_up()
        if isinstance(await word, Serving):
            return
        line.say(Left(await asyncio.to_thread(leave)))
