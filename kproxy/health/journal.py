"""What became of endpoints, kept for people: ``events.jsonl`` in the daemon's state directory.

One JSON object a line (:class:`Event`), appended in the order in which things happened; mode 0600.
When the file has grown to its limit it becomes ``events.jsonl.1``, in place of the one before, and
a new one is begun: both together are bounded, and there are always some events to look back on.

There is one writer at a time: who holds the lock of the state directory
(:class:`kproxy.status.StateDir`), which goes from a daemon to its successor without a moment in
between, and within a daemon the thread of its event loop. So neither lines nor rotations need a
lock of their own. :mod:`kproxy.health.tail` reads; readers need no lock either, for a line that
has its end is whole.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Self

import msgspec

from kproxy import logs
from kproxy.core.objects import Family, PortName, Value

_log = logs.get("journal")

FILE, ROTATED = "events.jsonl", "events.jsonl.1"

#: Bytes of one file: 15,000 events or so. There are two files, and the default directory is in
#: memory.
LIMIT = 4 << 20

#: Letters of a reason that are kept: it may quote what a stranger's server has answered.
_LONGEST = 300


#: Bytes at the end of a file in which a whole line ends.
_TAIL = 64 << 10


class Kind(StrEnum):
    """What happened. The first four are about one endpoint, the others about a service port."""

    UP = "up"
    DOWN = "down"
    EJECTED = "ejected"
    READMITTED = "readmitted"
    #: Too few endpoints are up: all that the cluster calls usable are used.
    PANIC = "panic"
    #: Enough are up again.
    CALM = "calm"


class Event(Value, frozen=True):
    """One event. ``time`` is in UTC; ``family`` 4 or 6; ``service`` is ``namespace/name``, ``port``
    the service port's name ("" when it has none), ``endpoint`` ``ip:port`` (IPv6 in brackets), ""
    for what concerns the whole service port."""

    time: datetime
    node: str
    family: int
    kind: Kind
    service: str
    port: str
    protocol: str
    endpoint: str
    reason: str

    @classmethod
    def of(
        cls,
        kind: Kind,
        name: PortName,
        family: Family,
        reason: str,
        *,
        node: str,
        at: float,
        endpoint: str = "",
    ) -> Self:
        """``at`` is in seconds since the epoch."""
        return cls(
            time=datetime.fromtimestamp(at, UTC),
            node=node,
            family=int(family),
            kind=kind,
            service=str(name.service),
            port=name.port,
            protocol=name.protocol.value,
            endpoint=endpoint,
            reason=reason[:_LONGEST],
        )


class Journal:
    """The writing end, made by the holder of the state directory ``folder``."""

    def __init__(self, folder: str | Path, *, limit: int = LIMIT) -> None:
        self._folder = Path(folder)
        self._limit = limit
        self._file: int | None = None
        self._size = 0
        self._trouble = ""

    def add(self, events: Iterable[Event]) -> None:
        """Append them, with one system call for all of an ordinary sync. What cannot be written is
        told in the log, once: a full disk ends no node's proxy."""
        trouble = ""
        try:
            for piece in self._pieces(events):
                self._append(piece)
        except OSError as failed:
            trouble = f"{failed.strerror} ({self._folder / FILE})"
            if trouble != self._trouble:
                _log.error("events are not kept", why=trouble)
        self._trouble = trouble

    def close(self) -> None:
        """Give the file up: a successor writes from now on. The next event would open it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _pieces(self, events: Iterable[Event]) -> Iterator[bytes]:
        """Whole lines, none longer than a file may be."""
        piece = bytearray()
        for event in events:
            line = msgspec.json.encode(event) + b"\n"
            if piece and len(piece) + len(line) > self._limit:
                yield bytes(piece)
                piece.clear()
            piece += line
        if piece:
            yield bytes(piece)

    def _append(self, piece: bytes) -> None:
        file = self._opened()
        if self._size and self._size + len(piece) > self._limit:
            (self._folder / FILE).rename(self._folder / ROTATED)
            self.close()
            file = self._opened()
        written = os.write(file, piece)
        if written < len(piece):
            os.ftruncate(file, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += written

    def _opened(self) -> int:
        """The file, which is made when there is none, or when somebody has removed it."""
        if self._file is not None and os.fstat(self._file).st_nlink:
            return self._file
        self.close()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self._folder / FILE, flags, 0o600)
        self._size = _whole_lines(self._file)
        return self._file


def _whole_lines(file: int) -> int:
    """Cut off what a writer that was killed in the middle of a line has left; the size then."""
    size = os.fstat(file).st_size
    tail = os.pread(file, _TAIL, max(0, size - _TAIL))
    torn = len(tail) - tail.rfind(b"\n") - 1
    if torn:
        size -= torn
        os.ftruncate(file, size)
    return size
