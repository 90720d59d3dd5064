"""Ends what is left of a machine. A user-mode kernel is many processes of the host, and those of
them that run its programs go on when the kernel itself is killed."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from pathlib import Path


def end_session(leader: int) -> None:
    """Kill every process of the session that ``leader`` began, but for itself and the caller;
    return when they have ended. Nothing happens when there is none."""
    spared = {leader, os.getpid()}
    while found := _members(leader) - spared:
        for pid in found:
            _kill(pid, leader)


def _members(session: int) -> set[int]:
    """Processes of a session that have not ended."""
    return {
        int(entry.name)
        for entry in os.scandir("/proc")
        if entry.name.isdigit() and _session_of(int(entry.name)) == session
    }


def _session_of(pid: int) -> int | None:
    """Field 6 of /proc/PID/stat; None for a process that has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[3])


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
        with suppress(ChildProcessError):  # not our child: init takes its status
            os.waitpid(pid, os.WNOHANG)
