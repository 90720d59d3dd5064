"""Scenarios in user-mode Linux, beside whatever this process does on the host meanwhile.

The machine runs the same command with ``--kernel host --stream`` and says each result as one line
of JSON as soon as there is one.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Self

import msgspec

from kproxy.errors import KproxyError, LabError, MachineError
from kproxy.lab.scenario.report import Progress
from kproxy.lab.uml.boot import Boot

#: Exit statuses of ``kproxy scenario run`` after which all results have been said.
_COMPLETE = (0, 1, 2)


def kproxy(*words: str) -> list[str]:
    """A kproxy command line that means the same inside, whatever is in PATH there."""
    return [sys.executable, "-P", "-m", "kproxy", *words]


class Beside:
    """Runs one command in a machine of its own from ``with`` on; leaving the block ends it.

    ``argv`` prints a :class:`Progress` a line; what it writes to standard error is ours in the end.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = argv
        self._boot = Boot()
        #: What has come; the end as None or as the error that it was.
        self._come: queue.SimpleQueue[Progress | KproxyError | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._live, name="user-mode Linux")
        self._pending = b""
        self._words = b""
        self._ended = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._boot.abandon()
        self._thread.join()

    def results(self, *, wait: bool) -> Iterator[Progress]:
        """What has come since the last call; ``wait``: everything until the command has ended.

        MachineError when this host cannot run a machine, LabError when it ended too early.
        """
        while not self._ended:
            try:
                one = self._come.get(block=wait)
            except queue.Empty:
                return
            if isinstance(one, Progress):
                yield one
                continue
            self._ended = True
            if one is not None:
                raise one

    def _live(self) -> None:
        try:
            with self._boot:
                status = self._boot.run(self._argv, take=self._take)
            if status not in _COMPLETE:
                raise self._broken_off(status)
            os.write(2, self._words)
        except KproxyError as error:
            self._come.put(error)
        except OSError as error:
            self._come.put(LabError(f"user-mode Linux: {error}"))
        else:
            self._come.put(None)

    def _broken_off(self, status: int) -> KproxyError:
        """The error that the command ended with, which its last line tells."""
        lines = self._words.decode(errors="replace").splitlines()
        why = lines.pop().removeprefix("kproxy: ") if lines else f"ended with status {status}"
        os.write(2, "".join(f"{line}\n" for line in lines).encode())
        kind = MachineError if status == MachineError.exit_status else LabError
        return kind(f"in user-mode Linux: {why}")

    def _take(self, stream: int, data: bytes) -> None:
        if stream != 1:
            self._words += data
            return
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._come.put(msgspec.json.decode(line, type=Progress))
