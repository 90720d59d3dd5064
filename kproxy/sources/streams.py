"""Manifests from a pipe, a terminal or standard input: documents as they arrive.

Nothing here waits for the end of the input: a document is taken when the line that ends it is
there (``---`` or ``...``), when it is a whole JSON value, or at the end. A later version of an
object replaces an earlier one; nothing in a stream deletes.
"""

from __future__ import annotations

import os
import select
import stat
import time
from collections.abc import Callable

from kproxy.errors import SourceError
from kproxy.sources.text import Contents, Splitter, join, read_piece

_CHUNK = 1 << 16
#: A pause this long, in ms, after something has arrived means that the writer is done for now.
_QUIET_MS = 100
#: A writer that never pauses is not waited for longer than this many seconds.
_LONGEST = 30.0

#: Bytes of one document at most: seven times a list of 5,000 services with 10 endpoints each. What
#: never ends would be collected until memory is full.
MAX_DOCUMENT = 256 << 20


class Stream:
    """One descriptor. ``name`` stands for it in messages; ``ended`` after its last byte.

    The descriptor is never set non-blocking: that flag belongs to the open file, which standard
    input shares with the shell that started us. Reading only what ``poll`` announced never blocks.
    """

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.descriptor = descriptor
        self.ended = False
        #: True once something was read whole: a document, or the end.
        self.known = False
        self._splitter = Splitter()

    def read_some(self) -> Contents:
        """What the bytes that are waiting complete. Call it when the descriptor is readable.

        SourceError when a document is too long.
        """
        try:
            data = os.read(self.descriptor, _CHUNK)
        except BlockingIOError:
            return Contents()
        pieces = self._splitter.feed(data) if data else self._splitter.close()
        if self._splitter.waiting > MAX_DOCUMENT:
            raise SourceError(
                f"a document has no end within {MAX_DOCUMENT >> 20} MiB",
                where=self.name,
                hint="end each document with a line of ---",
            )
        self.ended = not data
        self.known = self.known or self.ended or bool(pieces)
        return join(read_piece(piece, self.name) for piece in pieces)

    def read_first(self, patience: float, clock: Callable[[], float] = time.monotonic) -> Contents:
        """What is there at the start: up to the end, or to the first pause of the writer.

        ``patience`` is how many seconds a pipe's writer has for its first document. A terminal
        gets none: nobody has typed anything yet.
        """
        if stat.S_ISREG(os.fstat(self.descriptor).st_mode):
            return self.read_all()
        parts: list[Contents] = []
        poller = self._poller()
        wait_ms = 0 if os.isatty(self.descriptor) else int(patience * 1000)
        until = clock() + patience
        while not self.ended and clock() < until + _LONGEST and poller.poll(wait_ms):
            parts.append(self.read_some())
            # Half a document arrived: its writer has the rest of the patience to finish it.
            left_ms = int((until - clock()) * 1000)
            wait_ms = _QUIET_MS if self.known else max(left_ms, 0)
        return _together(parts)

    def read_all(self) -> Contents:
        """Everything up to the end, however long its writer takes."""
        parts: list[Contents] = []
        poller = self._poller()
        while not self.ended:
            poller.poll()
            parts.append(self.read_some())
        return _together(parts)

    def _poller(self) -> select.poll:
        poller = select.poll()
        poller.register(self.descriptor, select.POLLIN | select.POLLHUP)
        return poller


def _together(parts: list[Contents]) -> Contents:
    return Contents(
        tuple(item for part in parts for item in part.items),
        tuple(notice for part in parts for notice in part.notices),
    )
