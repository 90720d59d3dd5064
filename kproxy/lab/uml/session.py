"""Ends what is left of a machine. A user-mode kernel is many processes of the host, and those of
them that run its programs go on when the kernel itself is killed."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from pathlib import Path


def end_session(leader: int, started: int) -> None:
    """Kill every process of the session that ``leader`` began, which itself has been ended; return
    when they have ended. Nothing happens when there is none.

    ``started`` is the leader's field 22 of /proc/PID/stat. A session keeps its leader's number from
    being given out again; so a leader that started at another time says that ours has no member.
    """
    fields = _fields(leader)
    if fields is not None and int(fields[19]) != started:
        return
    while found := _members(leader):
        for pid in found:
            _kill(pid, leader)


def _members(session: int) -> set[int]:
    """Processes of a session that have not ended."""
    return {
        int(name)
        for name in os.listdir("/proc")
        if name.isdigit() and _session_of(int(name)) == session
    }


def _session_of(pid: int) -> int | None:
    """The session of a process; None when it has ended."""
    fields = _fields(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[3])


def _fields(pid: int) -> list[str] | None:
    """/proc/PID/stat from its third field on; None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name is in parentheses and may hold spaces and parentheses itself: proc(5).
    return stat.rpartition(")")[2].split()


def _kill(pid: int, session: int) -> None:
    with suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            # Looked at again: from the opening on the descriptor can mean no other process.
            if _session_of(pid) == session:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                select.select([fd], [], [])
        finally:
            os.close(fd)
