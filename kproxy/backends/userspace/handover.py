"""A new process takes over from the one that serves: sockets, clients' endpoints, then the rules.

::

    new                                   old
    Hello ------------------------------> stops syncing
          <------- Part … Part, Complete  (sockets; it serves on)
    gets ready: services, endpoints
    Ready ------------------------------> takes nothing more of one service after the other
          <-------- LastWords … LastWords (who is bound to what: from here on the new one serves it)
          <---------------------- Parting (the lock of the state directory)
    Serving ----------------------------> lets go of everything but its flows
          <------------------------ Done  (its servers' ports are free)

Until it has heard Serving the old process can go on as if nothing had been, and does so when the
new one breaks off. A new process that does not hear Done ends, unless the old one has.

The sockets never close, so nobody is refused at any point; new connections of a service wait for
the time that its last words take.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from msgspec.structs import replace as _replace

from kproxy.backends.userspace.bequest import Lender, close_all
from kproxy.backends.userspace.door import RelayDoor
from kproxy.backends.userspace.estate import Estate, Figures, Lent, LentPort, Words
from kproxy.backends.userspace.messages import (
    DONE,
    FIRST,
    LAST,
    PARTS,
    READY,
    SERVING,
    TOLD,
    VERSION,
    Ask,
    Complete,
    Done,
    Hello,
    LastWords,
    Part,
    Parting,
    Ready,
    Refused,
    Serving,
)
from kproxy.backends.userspace.wire import MOST_FDS, PATIENCE, HungUp, Line
from kproxy.core.objects import Family
from kproxy.errors import KernelError, OccupiedError, UsageError

SOCKET = "handover.sock"

#: Service ports in one message, lest it grow without bound.
_MOST_SERVICES = 500

#: Seconds for the old process to end a sync that runs.
_SYNC_PATIENCE = 120.0

#: Seconds for figures: somebody looks at a screen.
_ASK_PATIENCE = 2.0

#: Seconds that a process has to end after its last word was not heard.
_END_PATIENCE = 2.0


# --- the old process ----------------------------------------------------------------------------


def listen(folder: Path) -> socket.socket:
    """The socket at which successors knock; only this user can (mode 0600, folder 0700). The
    caller holds the folder's lock: what lies there is of one who has ended."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path = folder / SOCKET
        path.unlink(missing_ok=True)
        with _short(folder) as short:
            made.bind(short)
        path.chmod(0o600)
        made.listen(8)
    except OSError as failed:
        made.close()
        raise KernelError(
            f"cannot listen: {failed.strerror}",
            where=str(folder / SOCKET),
            hint="a successor could not take over; give --state-dir another directory",
        ) from failed
    made.setblocking(False)
    return made


def greet(line: Line) -> Hello | Ask | None:
    """What a caller wants; None when it only looked who is here. KernelError when it may not, or
    speaks another language."""
    _, uid = line.peer
    if uid != os.geteuid():
        raise KernelError(f"a process of user {uid} is not spoken to")
    try:
        first = line.heard(FIRST)
    except HungUp:
        return None
    if isinstance(first, Hello) and first.version != VERSION:
        why = f"it speaks version {first.version} of the hand-over, this process {VERSION}"
        line.say(Refused(why))
        raise KernelError(why)
    return first


def hand_over(line: Line, doors: Sequence[RelayDoor], locks: Sequence[int]) -> None:
    """Give a successor everything. On KproxyError it has nothing, and the doors serve on.

    ``locks`` are the descriptors of :class:`Parting`. Afterwards only flows are left here;
    :func:`done` is to be called when the rest is free.
    """
    lenders = [Lender(door) for door in doors]
    try:
        for lender in lenders:
            for part in parts(lender.lend()):
                line.say(Part(part), part.fds)
        line.say(Complete())
        line.heard(READY)
        for lender in lenders:
            for words in lender.quiet():
                line.say(LastWords(lender.family, words))
        line.say(Parting(), locks)
        line.heard(SERVING)
    except BaseException:
        for lender in lenders:
            lender.resume()
        raise
    for lender in lenders:
        lender.give_up()


def done(line: Line) -> None:
    """Tell the successor that all is free. It finds out by itself if it does not hear it."""
    try:
        line.say(Done())
    finally:
        line.close()


def parts(estate: Estate) -> Iterator[Estate]:
    """The same in parts, each with no more descriptors than go into one message."""
    services: list[Lent] = []
    ports: list[LentPort] = []
    count = 0

    def full(more: int) -> bool:
        return count + more > MOST_FDS or len(services) >= _MOST_SERVICES

    for lent in estate.services:
        more = sum(len(front.fds) for front in lent.fronts)
        if full(more):
            yield Estate(estate.family, tuple(services), ())
            services, count = [], 0
        services.append(lent)
        count += more
    for held in estate.node_ports:
        if full(len(held.fds)):
            yield Estate(estate.family, tuple(services), tuple(ports))
            services, ports, count = [], [], 0
        ports.append(held)
        count += len(held.fds)
    if services or ports:
        yield Estate(estate.family, tuple(services), tuple(ports))


# --- the new process ----------------------------------------------------------------------------


class Predecessor:
    """A process that serves with our state directory, to be taken over from, step by step."""

    def __init__(self, line: Line, folder: Path) -> None:
        self._line = line
        self._folder = folder
        self._where = str(folder / SOCKET)
        self.pid, _ = line.peer

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        """The one that serves with this directory; None when none does."""
        line = _called(folder)
        return None if line is None else cls(line, folder)

    def estates(self) -> dict[Family, Estate]:
        """All that it has; the descriptors are ours, and it serves on. OccupiedError when it has
        a successor already."""
        found: dict[Family, list[Estate]] = {}
        try:
            self._estates(found)
        except HungUp as gone:
            for parts_ in found.values():
                close_all(fd for part in parts_ for fd in part.fds)
            now = serving(self._folder)
            if now in (0, self.pid):
                raise KernelError(
                    f"process {self.pid} has hung up: it ends, or another one takes over from it",
                    where=self._where,
                    hint="start this one again",
                ) from gone
            raise taken_over(self.pid, now) from gone
        return {family: _joined(each) for family, each in found.items()}

    def _estates(self, found: dict[Family, list[Estate]]) -> None:
        self._line.say(Hello(VERSION))
        self._line.patience(_SYNC_PATIENCE)
        while True:
            said, fds = self._line.hear(PARTS)
            self._line.patience(PATIENCE)
            if isinstance(said, Part):
                part = with_fds(said.estate, fds)
                found.setdefault(part.family, []).append(part)
            elif isinstance(said, Complete):
                return
            elif said.by:
                raise taken_over(self.pid, said.by)
            else:
                raise UsageError(
                    f"process {self.pid} cannot be taken over from: {said.why}",
                    where=self._where,
                    hint="stop it first",
                )

    def parting(self, take: Callable[[Family, Words], None]) -> tuple[int, ...]:
        """We are ready: ``take`` is called with its last words of each service, which is ours to
        serve then. Returns the locks of :class:`Parting`."""
        self._line.say(Ready())
        while True:
            said, fds = self._line.hear(LAST)
            if isinstance(said, LastWords):
                take(said.family, said.words)
            elif fds:
                return fds
            else:
                raise KernelError("the lock of the state directory did not come", where=self._where)

    def serving(self) -> None:
        """We serve. KernelError when it has not heard that, and serves on itself."""
        self._line.say(Serving())
        try:
            self._line.heard(DONE)
        except KernelError:
            # It resumes when it does not hear from us; two must not serve. If it has ended there
            # is only one.
            if not _ended(self.pid):
                raise
        finally:
            self._line.close()

    def close(self) -> None:
        """Break off: it serves on."""
        self._line.close()


def serving(folder: Path) -> int:
    """The process that serves with this directory; 0 when none does."""
    line = _called(folder)
    if line is None:
        return 0
    pid, _ = line.peer
    line.close()
    return pid


def taken_over(before: int, by: int) -> OccupiedError:
    """Two processes started at once, and the other one was faster."""
    return OccupiedError(
        f"process {by} takes over from process {before} already, so this one does not",
        hint="leave it to that one, or start this one again to take over from it",
    )


def ask(folder: Path, *, endpoints: bool = False) -> tuple[Figures, ...] | None:
    """What the relays of the process that serves with this directory have counted, on demand of
    each endpoint as well; None when none serves. A process that does not know of endpoints tells
    none."""
    line = _called(folder)
    if line is None:
        return None
    line.patience(_ASK_PATIENCE)
    try:
        line.say(Ask(endpoints))
        return line.heard(TOLD).relays
    finally:
        line.close()


def with_fds(estate: Estate, fds: Sequence[int]) -> Estate:
    """The same with our numbers of the descriptors. KernelError when their number differs."""
    if len(fds) != len(estate.fds):
        close_all(fds)
        raise KernelError(f"{len(fds)} descriptors came instead of {len(estate.fds)}")
    given = iter(fds)

    def ours(theirs: Sequence[int]) -> tuple[int, ...]:
        return tuple([next(given) for _ in theirs])

    services = [
        Lent(lent.service, tuple([_replace(front, fds=ours(front.fds)) for front in lent.fronts]))
        for lent in estate.services
    ]
    ports = [LentPort(held.port, ours(held.fds)) for held in estate.node_ports]
    return Estate(estate.family, tuple(services), tuple(ports))


def _joined(parts: Sequence[Estate]) -> Estate:
    services = [lent for part in parts for lent in part.services]
    ports = [held for part in parts for held in part.node_ports]
    return Estate(parts[0].family, tuple(services), tuple(ports))


def _called(folder: Path) -> Line | None:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with _short(folder) as short:
            made.connect(short)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError, PermissionError):
        made.close()
        return None
    return Line(made)


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """A path of the socket that is short enough: addresses hold 107 bytes, paths may be longer."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET}"
    finally:
        os.close(fd)


def _ended(pid: int) -> bool:
    """Whether a process has ended, or does within a moment."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], _END_PATIENCE)[0])
    finally:
        os.close(fd)
