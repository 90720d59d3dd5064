"""Process 1 of a machine that stays up: runs what the host asks for, until it is told to end.

Started by :mod:`kproxy.lab.uml.init` as ``python -m kproxy.lab.uml.agent``. Its one way to the
outside is a serial line; when that is closed, the broker has died, and the machine ends itself.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
import traceback
import tty
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec

from kproxy.lab.uml import channel, init
from kproxy.lab.uml.channel import Decoder, Frame, Kind, Request
from kproxy.lab.uml.job import Job

#: Seconds that a command has between the signals that end it: its client is gone, or the machine
#: ends.
_GRACE = 2.0

#: Bytes of the line after which its writer is told that they were read.
_TELL_HEARD = channel.LINE_WINDOW // 3

#: linux/reboot.h
_POWER_OFF = 0x4321FEDC


class Agent:
    """Serves one line until it is closed or says HALT. ``live``: a folder that a command stands in
    is the host's own, else all of the host is copied on write."""

    def __init__(self, line: int, *, live: bool) -> None:
        self._line = line
        self._live = live
        self._decoder = Decoder()
        self._heard = 0
        self._poll = select.poll()
        self._jobs: dict[int, Job] = {}
        #: Descriptors that are watched -> the job that they are of.
        self._owners: dict[int, Job] = {}
        #: Commands whose client is gone -> when they are killed.
        self._doomed: dict[Job, float] = {}
        self._shown: set[Path] = set()
        self._alarm, alarm = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
        self._poll.register(self._alarm, select.POLLIN)
        self._poll.register(line, select.POLLIN)

    def serve(self) -> None:
        self._send(Frame(Kind.READY, payload=os.uname().release.encode()))
        going_on = True
        while going_on:
            for fd, _ in self._poll.poll(self._patience()):
                if fd == self._line:
                    going_on = self._listen()
                elif fd == self._alarm:
                    os.read(self._alarm, 4096)
                elif fd in self._owners:  # not closed by what came before it in this round
                    self._owners[fd].ready(fd)
            self._reap()
            self._kill_the_late()

    def _send(self, frame: Frame) -> None:
        rest = memoryview(frame.encode())
        while rest:
            rest = rest[os.write(self._line, rest) :]

    # --- requests ----------------------------------------------------------------------------

    def _listen(self) -> bool:
        """Take what has come; False when the line is closed or the machine is to end."""
        try:
            data = os.read(self._line, 65536)
        except OSError:  # EIO: hung up
            return False
        self._heard += len(data)
        if self._heard >= _TELL_HEARD:
            self._send(channel.heard(self._heard))
            self._heard = 0
        for frame in self._decoder.feed(data):
            if frame.kind is Kind.HALT:
                return False
            self._hear(frame)
        return bool(data)

    def _hear(self, frame: Frame) -> None:
        if frame.kind is Kind.START:
            self._start(frame)
            return
        job = self._jobs.get(frame.request)
        if job is None:
            return  # it ended while this was on its way
        job.hear(frame)
        if frame.kind is Kind.GONE:
            job.signal(signal.SIGHUP)
            job.signal(signal.SIGCONT)
            self._doomed[job] = time.monotonic() + _GRACE

    def _start(self, frame: Frame) -> None:
        number = frame.request
        try:
            request = msgspec.msgpack.decode(frame.payload, type=Request)
            self._show(Path(os.fsdecode(request.directory)))
            self._jobs[number] = Job(number, request, self._send, self._watch)
        except (OSError, subprocess.CalledProcessError) as wrong:
            # No memory, no process, no descriptor left: this request's trouble, not the machine's.
            words = f"kproxy: the machine cannot run it: {wrong}\n".encode()
            self._send(Frame(Kind.DATA, number, 2, words))
            self._send(channel.ended(number, 126))

    def _watch(self, job: Job, fd: int, events: int) -> None:
        if events:
            self._owners[fd] = job
            self._poll.register(fd, events)
        elif self._owners.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _show(self, directory: Path) -> None:
        """Make a folder that a command stands in the host's own, where it is not already."""
        known = not self._shown.isdisjoint((directory, *directory.parents))
        if known or not self._live or not init.to_be_shown(directory):
            return
        hosts = init.HOST_ROOT / directory.relative_to("/")
        if hosts.is_dir() and directory.is_dir():
            subprocess.run(["mount", "--bind", hosts, directory], check=True)
            self._shown.add(directory)

    # --- ends --------------------------------------------------------------------------------

    def _patience(self) -> float | None:
        """Milliseconds until somebody is late; None when nobody can be."""
        if not self._doomed:
            return None
        return max(0.0, min(self._doomed.values()) - time.monotonic()) * 1000

    def _reap(self) -> None:
        """Take the status of every child that has ended, orphans of others as well."""
        by_pid = {job.pid: job for job in self._jobs.values()}
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid in by_pid:
                    by_pid[pid].ended(os.waitstatus_to_exitcode(status))
        for number in [number for number, job in self._jobs.items() if job.finished]:
            self._doomed.pop(self._jobs.pop(number), None)

    def _kill_the_late(self) -> None:
        now = time.monotonic()
        for job, deadline in self._doomed.items():
            if deadline <= now:
                job.signal(signal.SIGKILL)
        self._doomed = {job: late for job, late in self._doomed.items() if late > now}


def _end_all() -> None:
    """End every other process, and put on disk what they have written."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(-1, number)
        deadline = time.monotonic() + _GRACE
        with suppress(ChildProcessError):
            while time.monotonic() < deadline:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    select.select([], [], [], 0.01)
    os.sync()


def main() -> NoReturn:
    """Serve; then power off, whatever has happened: nobody else could."""
    try:
        line = os.open(init.LINE, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        # Bytes as they are, in both directions: no echo, no line ends, no signals.
        tty.setraw(line)
        Agent(line, live="live" in sys.argv[1:]).serve()
        _end_all()
    except BaseException:  # noqa: BLE001  (process 1 may not end, and the log is all that is left)
        traceback.print_exc()
    finally:
        ctypes.CDLL(None).reboot(ctypes.c_int(_POWER_OFF))
    raise SystemExit("the machine did not end")


if __name__ == "__main__":
    main()
