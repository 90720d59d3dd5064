"""Reads a journal (:mod:`kproxy.health.journal`) while it is written, through its rotations.

Nothing is locked: a line that has its end is whole. A file that is held open keeps its inode, so a
file of another inode under the same name is another file.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

import msgspec

from kproxy.health.journal import FILE, ROTATED, Event

_decoder = msgspec.json.Decoder(Event)


class Tail:
    """One journal from the oldest event that it still has. ``folder`` is a state directory.

    ``unreadable`` counts lines that are no event as this version knows them.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.unreadable = 0
        self._file: int | None = None
        self._offset = 0

    def read(self) -> list[Event]:
        """What was added since the last call, oldest first; nothing where there is no journal."""
        if self._file is None:
            self._file = self._open(ROTATED)
        if self._file is None:
            self._file = self._open(FILE)
        events: list[Event] = []
        while self._file is not None:
            events += self._rest(self._file)
            following = self._next(self._file)
            if following is None:
                break
            # It has been rotated away, or removed: what was added before that comes first.
            events += self._rest(self._file)
            self.close()
            self._file = following
        return events

    def close(self) -> None:
        """Read from the beginning again the next time."""
        if self._file is not None:
            os.close(self._file)
        self._file, self._offset = None, 0

    def _open(self, name: str) -> int | None:
        path = self.folder / name
        with suppress(FileNotFoundError):
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if stat.S_ISDIR(os.fstat(file).st_mode):
                os.close(file)
                # Reading would say so as well, but not where.
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            return file
        return None

    def _next(self, file: int) -> int | None:
        """The file that follows the one at hand, open; None while that is the last one."""
        # In this order: had there been two rotations since, the older one would not be ours.
        newest, older = self._open(FILE), self._open(ROTATED)
        if newest is None or os.path.sameopenfile(newest, file):
            chosen, other = None, (newest, older)
        elif older is None or os.path.sameopenfile(older, file):
            chosen, other = newest, (older, None)
        else:
            chosen, other = older, (newest, None)
        for each in other:
            if each is not None:
                os.close(each)
        return chosen

    def _rest(self, file: int) -> list[Event]:
        size = os.fstat(file).st_size
        # The writer takes back a line that did not fit on the disk.
        self._offset = min(self._offset, size)
        data = os.pread(file, size - self._offset, self._offset)
        end = data.rfind(b"\n") + 1
        self._offset += end
        return [event for line in data[:end].splitlines() if (event := self._decode(line))]

    def _decode(self, line: bytes) -> Event | None:
        try:
            return _decoder.decode(line)
        except msgspec.MsgspecError:
            self.unreadable += 1
            return None
