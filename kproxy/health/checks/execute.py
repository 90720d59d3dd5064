"""Exec: a program on the node ends with status 0.

No shell, no input, output read up to a limit and the rest thrown away. The program has a process
group of its own, all of which is killed when its time is over, and also when it has ended and left
something behind.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from contextlib import suppress

from kproxy.core.health.values import Exec, Target
from kproxy.health.checks.outcome import Outcome, bad, own
from kproxy.health.checks.tasks import Progress
from kproxy.health.checks.text import quoted

#: Bytes of output that are kept, for the reason.
_MOST_OUTPUT = 4096
_READ = 65536
#: Bytes read in one go before other work gets its turn.
_MOST_AT_ONCE = 16


class ExecProber:
    """A :class:`~kproxy.health.checks.tasks.TaskProber`.

    The kernel tells by a pidfd when the program has ended (Linux 5.3), so no thread waits for it.
    """

    async def probe(self, target: Target, progress: Progress) -> Outcome:
        its = target.check.probe
        assert isinstance(its, Exec)
        progress.lacks = "still running"
        try:
            program = _Program(its.command, _environment(target))
        except (FileNotFoundError, NotADirectoryError):
            return own(f"no program {quoted(its.command[0])} on this node")
        except PermissionError:
            return own(f"this node may not run {quoted(its.command[0])}")
        try:
            await program.ended.wait()
        finally:
            program.end()
        status = program.status()
        if status == 0:
            return Outcome(True, "exit status 0")
        return bad(_said(status, program.output))

    async def close(self) -> None:
        """Nothing is kept between tries."""


class _Program:
    """A running program; :meth:`end` always. OSError when it cannot be started."""

    def __init__(self, command: tuple[str, ...], environment: dict[str, str]) -> None:
        self.ended = asyncio.Event()
        self.output = bytearray()
        self._loop = asyncio.get_running_loop()
        self._out, inner = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.set_blocking(inner, True)
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=inner,
                stderr=inner,
                env=environment,
                start_new_session=True,
            )
        except BaseException:
            os.close(self._out)
            raise
        finally:
            os.close(inner)
        try:
            self._pidfd = os.pidfd_open(self._process.pid)
        except BaseException:
            os.close(self._out)
            self._kill()
            self._process.wait()
            raise
        self._loop.add_reader(self._out, self._read)
        self._loop.add_reader(self._pidfd, self.ended.set)

    def end(self) -> None:
        """Kill what is left of its group and let go of it; nothing here waits."""
        self._loop.remove_reader(self._pidfd)
        self._read()
        self._loop.remove_reader(self._out)
        os.close(self._out)
        self._kill()
        if self._process.poll() is None:
            # Killed just now: it is collected when it is gone, be that late.
            self._loop.add_reader(self._pidfd, _collect, self._loop, self._process, self._pidfd)
        else:
            os.close(self._pidfd)

    def status(self) -> int:
        """Of a program that has ended: its exit status, negative: the signal."""
        return self._process.wait()

    def _kill(self) -> None:
        # Not collected yet, so its number and its group's are nobody else's.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _read(self) -> None:
        for _ in range(_MOST_AT_ONCE):
            try:
                piece = os.read(self._out, _READ)
            except BlockingIOError:
                return
            if not piece:
                # All who held the other end are gone, or closed it: the pidfd tells which.
                self._loop.remove_reader(self._out)
                return
            self.output += piece[: _MOST_OUTPUT - len(self.output)]


def _collect(loop: asyncio.AbstractEventLoop, process: subprocess.Popen[bytes], pidfd: int) -> None:
    loop.remove_reader(pidfd)
    os.close(pidfd)
    process.wait()


def _environment(target: Target) -> dict[str, str]:
    """What a program gets: where to find tools, and whom it is to check."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "KPROXY_CHECK_IP": target.ip,
        "KPROXY_CHECK_PORT": str(target.port),
    }


def _said(status: int, output: bytearray) -> str:
    """``exit status 1: "no leader"``: with the last line that it wrote, if any."""
    lines = bytes(output).split(b"\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), b"")
    how = f"exit status {status}" if status >= 0 else f"ended by {_signal(-status)}"
    return f"{how}: {quoted(last)}" if last else how


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
