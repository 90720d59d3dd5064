"""One proxy per network namespace: the lock that keeps a second one out, and who holds it.

Two daemons in one network namespace would each take the other's rules for somebody's mistake and
mend them for ever. A state directory is no protection, since the other may have one of its own; an
abstract unix socket is, as each network namespace has names of its own, and the kernel lets go of
them with the process. A second socket says in its name in which mode and with which state directory
its owner serves, so that nobody has to be asked, and a process that hangs is named as well.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import closing, suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote

from kproxy import logs
from kproxy.core.objects import Value
from kproxy.errors import KernelError, OccupiedError

_log = logs.get("daemon")

#: The lock; never said to anybody but through the kernel.
_LOCK = "\0kproxy"

#: Names that say who is there: /<process>/<mode>/<state directory>.
_CARD = "kproxy/"

#: Bytes of an abstract name (sun_path, less the leading zero).
_LONGEST = 107

#: Who asks while a daemon is busy waits in its queue, though he has his answer.
_BACKLOG = 128

#: Seconds until one who does not answer is given up.
_CALL = 10.0

#: Stands for the beginning of a directory too long to be told.
_CUT = "..."


class Occupant(Value, frozen=True):
    """A process that is a network namespace's proxy. ``pid`` 0: of another process namespace;
    ``mode`` and ``folder`` (its state directory) are "" when it does not say."""

    pid: int
    mode: str = ""
    folder: str = ""

    def __str__(self) -> str:
        process = f"process {self.pid}" if self.pid else "a process that cannot be seen from here"
        told = ", ".join(
            text
            for text in (
                f"{self.mode} mode" if self.mode else "",
                f"--state-dir {self.folder}" if self.folder else "",
            )
            if text
        )
        return f"{process} ({told})" if told else process

    @property
    def to_stop(self) -> str:
        """What to do about it."""
        return f"kill {self.pid}" if self.pid else "stop the other one"


class Occupancy:
    """The calling thread's network namespace is ours, until closed or the process ends.

    ``given`` is the lock's descriptor where it comes from a predecessor, and is owned from then on:
    so it goes from one to the other without a moment in which a third could take it.
    """

    def __init__(self, mode: str, folder: Path, given: int | None = None) -> None:
        self._lock = _taken() if given is None else socket.socket(fileno=given)
        # Once more where it was given: this is what makes us the one whom SO_PEERCRED names.
        self._lock.listen(_BACKLOG)
        self._lock.setblocking(False)
        self._card = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._card.bind(f"\0{card(os.getpid(), mode, folder)}")
        except OSError as failed:
            # Only words are missing then.
            _log.detail("not told who serves here", why=failed)

    @classmethod
    def take(cls, mode: str, folder: Path) -> Self | None:
        """OccupiedError when another proxy is here. None, and a word of warning, when the name is
        taken by somebody who can be none: then there is no protection, but service."""
        try:
            return cls(mode, folder)
        except _Squatted as why:
            _log.warning("no protection from a second proxy in this network namespace", why=why)
            return None

    @property
    def closed(self) -> bool:
        return self._lock.fileno() < 0

    def fileno(self) -> int:
        """The lock's descriptor, to be handed to a successor."""
        return self._lock.fileno()

    def hear(self) -> None:
        """Let those go who asked who is here; they have been told by the kernel. To be called when
        the descriptor is readable, lest its queue fill up."""
        for caller in self.callers():
            caller.close()

    def callers(self) -> list[socket.socket]:
        """The same, but for those who may be our successor: connections of users who could be, who
        may want no more than to know who is here."""
        found = []
        with suppress(BlockingIOError, ConnectionAbortedError):
            while True:
                caller, _ = self._lock.accept()
                if _peer(caller)[1] in (0, os.geteuid()):
                    found.append(caller)
                else:
                    caller.close()
        return found

    def again(self) -> None:
        """No successor came about: it is us again whom SO_PEERCRED names."""
        self._lock.listen(_BACKLOG)

    def close(self) -> None:
        """Nothing of it is held here any more; a successor's copy is another's."""
        self._lock.close()
        self._card.close()


class _Squatted(KernelError):
    """Somebody without the rights of a proxy has its name."""


def _taken() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # The holder may end at the very moment at which he is looked for.
        for _ in range(3):
            try:
                made.bind(_LOCK)
            except OSError as failed:
                if failed.errno != errno.EADDRINUSE:
                    raise
            else:
                return made
            if (found := _holder()) is not None:
                _refuse(*found)
        raise OccupiedError(
            "another proxy of this network namespace comes and goes",
            hint="see who it is with: ss -xlp src @kproxy",
        )
    except BaseException:
        made.close()
        raise


def _refuse(found: Occupant, user: int) -> None:
    if user not in (0, os.geteuid()):
        raise _Squatted(f"{found} of user {user} has its name")
    raise OccupiedError(
        f"{found} is the proxy of this network namespace already",
        hint=f"stop it first ({found.to_stop}): two would undo each other's rules",
    )


def occupant() -> Occupant | None:
    """The proxy of the calling thread's network namespace, if one runs."""
    found = _holder()
    if found is None or found[1] not in (0, os.geteuid()):
        return None
    return found[0]


def _holder() -> tuple[Occupant, int] | None:
    """Who holds the lock, and as which user."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)) as asks:
        # With its queue full, whoever asks would wait for one that hangs.
        asks.setblocking(False)
        try:
            asks.connect(_LOCK)
        except ConnectionRefusedError:
            # Nobody, or one that is between its bind and its listen.
            return None
        except BlockingIOError:
            return _told(None), 0
        pid, user = _peer(asks)
    return _told(pid), user


def _peer(connected: socket.socket) -> tuple[int, int]:
    """Process and user of the other side."""
    found = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, user, _ = struct.unpack("iII", found)
    return pid, user


def called() -> socket.socket | None:
    """A connection to the proxy of the calling thread's network namespace; None when there is
    none, or one of a user without the rights of a proxy."""
    calls = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    # One that hangs, with its queue full, is told of as one that does not answer.
    calls.settimeout(_CALL)
    try:
        calls.connect(_LOCK)
        if _peer(calls)[1] in (0, os.geteuid()):
            return calls
    except ConnectionRefusedError:
        pass
    except TimeoutError as silent:
        calls.close()
        raise OccupiedError(
            "the proxy of this network namespace does not answer",
            hint="see who it is with: ss -xlp src @kproxy",
        ) from silent
    except BaseException:
        calls.close()
        raise
    calls.close()
    return None


def card(pid: int, mode: str, folder: Path) -> str:
    """The name by which a process says who it is, as long as an abstract name may be."""
    head, where = f"{_CARD}{pid}/{mode}/", quote(str(folder.absolute()))
    if len(head) + len(where) > _LONGEST:
        where = _CUT + where[len(head) + len(where) + len(_CUT) - _LONGEST :]
    return head + where


def _told(pid: int | None) -> Occupant:
    """A process and what it tells of itself. None: the kernel was not asked for its number, 0: it
    has none for one of another process namespace; then the only one that tells is taken for it."""
    cards: dict[int, Occupant] = {}
    # Not /proc/net: that is the namespace of the process, and this may be another thread.
    with suppress(OSError), open("/proc/thread-self/net/unix", errors="replace") as table:
        for line in table:
            name = line.rstrip("\n").partition(f"@{_CARD}")[2]
            number, _, told = name.partition("/")
            mode, _, folder = told.partition("/")
            if number.isdigit():
                own = int(number)
                cards[own] = Occupant(own if pid is None else pid, mode, unquote(folder))
    if pid in cards:
        return cards[pid]
    return next(iter(cards.values())) if not pid and len(cards) == 1 else Occupant(pid or 0)
