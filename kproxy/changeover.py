"""From a daemon in one mode to a daemon in another, without a moment in which neither serves.

Spoken over the socket that is the lock of the network namespace (:mod:`kproxy.occupancy`)::

    new                                   old
    Hello ------------------------------> ends its sync, writes nothing from here on
          <-------------------- Parting   (the locks; what it carries, it goes on carrying)
    first sync: both modes stand
    InForce ----------------------------> what it carries itself no longer needs its rules
          <----------------------- Left
    sweeps the old one's rules away
    Serving ----------------------------> ends; what it relays ends by itself
          <----------------------- Done   (its servers' ports are free)

Until it hears Serving the old process keeps copies of the locks. When the new one breaks off before
that, the old one reads the kernel, mends what it finds and serves on in its own mode.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from msgspec.msgpack import Decoder

from kproxy.backends.userspace.wire import HungUp, Line
from kproxy.core.objects import Value
from kproxy.errors import KernelError, OccupiedError
from kproxy.occupancy import called

#: Another one means that the two cannot understand each other; new fields with defaults are none.
VERSION = 1

#: Seconds for a caller to say what he wants: most of them only look who is here.
_GREETING = 2.0

#: Seconds for the old process to end a sync that runs.
_SYNC_PATIENCE = 120.0

#: Seconds for the old process to bring 100,000 connections into the kernel's table.
_LEAVING_PATIENCE = 30.0


class Hello(Value, frozen=True, tag=True):
    """Somebody wants to serve here in another mode, with this state directory."""

    version: int
    mode: str
    folder: str


class Refused(Value, frozen=True, tag=True):
    """Why not."""

    why: str


class Parting(Value, frozen=True, tag=True):
    """The lock of the network namespace comes with it; then that of the state directory, if the
    new one has the same."""


class InForce(Value, frozen=True, tag=True):
    """The new mode's rules stand beside the old one's."""


class Left(Value, frozen=True, tag=True):
    """Nothing that the old process carries needs rules of its mode. ``flows`` were brought into the
    kernel's table of connections."""

    flows: int = 0


class Serving(Value, frozen=True, tag=True):
    """The new one serves, and what was left of the old mode is swept away."""


class Done(Value, frozen=True, tag=True):
    """Everything that two cannot have is free."""


_FIRST = Decoder(Hello)
_PARTING: Decoder[Parting | Refused] = Decoder(Parting | Refused)
_STEPS: Decoder[InForce | Serving] = Decoder(InForce | Serving)
_LEFT, _DONE = Decoder(Left), Decoder(Done)


# --- the old process ----------------------------------------------------------------------------


def greet(connected: socket.socket) -> tuple[Line, Hello] | None:
    """What a caller wants; None when he only looks who is here, or says nothing of use."""
    line = Line(connected, patience=_GREETING)
    try:
        hello = line.heard(_FIRST)
    except KernelError:
        line.close()
        return None
    if hello.version != VERSION:
        refuse(line, f"it speaks version {VERSION} of the changeover, not {hello.version}")
        return None
    return line, hello


def refuse(line: Line, why: str) -> None:
    """Send a caller away."""
    with suppress(KernelError):
        line.say(Refused(why))
    line.close()


def part(line: Line, locks: Sequence[int]) -> None:
    """Give the new one the locks; copies stay ours."""
    # It has all the time it needs for its first sync; when it ends, the line breaks.
    line.patience(None)
    line.say(Parting(), locks)


def next_step(line: Line) -> InForce | Serving:
    """Wait for the new one's next word. KernelError when it breaks off."""
    return line.heard(_STEPS)


# --- the new process ----------------------------------------------------------------------------


class Standing:
    """The proxy that serves here in another mode, to be taken over from step by step."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        #: From :meth:`locks` on: who says nothing for long is not listened to.
        self._line: Line | None = None

    @property
    def line(self) -> Line:
        if self._line is None:
            raise HungUp(f"process {self.pid} is not spoken to")
        return self._line

    def locks(self, mode: str, folder: Path, patience: float = _SYNC_PATIENCE) -> tuple[int, ...]:
        """The locks, see :class:`Parting`; it writes no rules any more, and we may. () when it has
        ended meanwhile, OccupiedError when it gives none."""
        connected = called()
        if connected is None:
            return ()
        self._line = Line(connected)
        self.pid, _ = self._line.peer
        try:
            self.line.say(Hello(VERSION, mode, str(folder.absolute())))
            self.line.patience(patience)
            said, fds = self.line.hear(_PARTING)
        except HungUp as gone:
            raise OccupiedError(
                f"process {self.pid} is the proxy of this network namespace, and makes no room",
                hint=f"stop it first (kill {self.pid}), or start this one again",
            ) from gone
        if isinstance(said, Refused):
            raise OccupiedError(
                f"process {self.pid} makes no room: {said.why}", hint=f"kill {self.pid}"
            )
        return fds

    def in_force(self) -> int:
        """Our rules stand. Returns when the old ones may go, with the number of connections that it
        has brought into the kernel's table; KernelError when it is gone."""
        self.line.patience(_LEAVING_PATIENCE)
        self.line.say(InForce())
        return self.line.heard(_LEFT).flows

    def serving(self) -> None:
        """We serve alone. KernelError when it does not say that all is free; it ends anyway."""
        try:
            self.line.say(Serving())
            self.line.heard(_DONE)
        finally:
            self.close()

    def close(self) -> None:
        """Break off: it serves on."""
        if self._line is not None:
            self._line.close()


def done(line: Line) -> None:
    """Tell the new one that all is free. It finds out by itself if it does not hear it."""
    try:
        line.say(Done())
    finally:
        line.close()


def same_folder(one: Path, other: str) -> bool:
    """Whether two daemons mean one state directory."""
    return os.path.realpath(one) == os.path.realpath(other)
