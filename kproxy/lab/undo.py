"""The undo log of a lab: what must be taken down, one line for each thing that was made.

A namespace is written down *before* it is made and a process before it may go on, so a crash at any
point leaves a log that names everything. Only what it names is ever removed, and a process only if
it is still the one that was started.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from kproxy.core.objects import Value
from kproxy.errors import LabError
from kproxy.lab import state


class Process(Value, frozen=True):
    """A process of ours. ``started`` is field 22 of /proc/PID/stat (clock ticks since boot): with
    it a recycled pid is told from the process that we started. ``role`` is ``kproxy`` or ``pods``;
    of a machine that a lab runs on ``broker`` or ``kernel``.
    """

    pid: int
    started: int
    role: str
    host: str = ""

    def alive(self) -> bool:
        """Whether this very process still runs (a zombie has ended)."""
        return start_time(self.pid) == self.started


class Undo(Value, frozen=True):
    """What a lab's undo log says is there, in the order in which it was made."""

    namespaces: tuple[str, ...] = ()
    processes: tuple[Process, ...] = ()


class _Entry(Value, frozen=True, omit_defaults=True):
    """One line of the log: something was made, or (``gone``) taken away."""

    namespace: str = ""
    process: Process | None = None
    gone: bool = False


def start_time(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None when it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name is in parentheses and may hold spaces and parentheses itself: proc(5).
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


class UndoLog:
    """The undo log of one lab. Every note is in the file when the method returns."""

    def __init__(self, lab: str) -> None:
        self._path = state.lab_dir(lab) / "undo.jsonl"

    def begin(self) -> None:
        """Make the log, so that the lab counts as begun. LabError if it is there already."""
        state.private_dir(self._path.parent)
        try:
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            raise LabError("the lab is there already", where=str(self._path)) from None

    def namespace(self, name: str) -> None:
        self._note(_Entry(namespace=name))

    def namespace_gone(self, name: str) -> None:
        self._note(_Entry(namespace=name, gone=True))

    def process(self, process: Process) -> None:
        self._note(_Entry(process=process))

    def process_gone(self, process: Process) -> None:
        self._note(_Entry(process=process, gone=True))

    def _note(self, entry: _Entry) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(fd, msgspec.json.encode(entry) + b"\n")
        finally:
            os.close(fd)

    def exists(self) -> bool:
        return self._path.exists()

    def read(self) -> Undo:
        """What is there according to the log; a line that a crash cut short counts as absent."""
        there: dict[str | Process, None] = {}
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return Undo()
        for line in lines[:-1]:
            entry = msgspec.json.decode(line, type=_Entry)
            thing = entry.process or entry.namespace
            if entry.gone:
                there.pop(thing, None)
            else:
                there[thing] = None
        return Undo(
            tuple(thing for thing in there if isinstance(thing, str)),
            tuple(thing for thing in there if isinstance(thing, Process)),
        )
