"""One user-mode Linux as a process of this host: started, waited for, ended, and never left behind.

::

    we ── socket pair ── serial line (ttyS0) ── kproxy.lab.uml.agent, process 1 inside
     │
     └─ home/   init (the first program's script), console (what its kernel says), uml/ (its own)

The kernel is an ordinary program and needs no root: it holds its memory in an unlinked file and
runs what is inside as traced processes. All of them are one process group, which is killed in the
end. Should we be killed ourselves, the kernel gets SIGTERM (it then ends its processes), and the
agent sees its line closed: each of the two is enough.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

from kproxy.errors import LabError, MachineError
from kproxy.kernel import command
from kproxy.lab.uml.channel import LINE_WINDOW, Decoder, Frame, Kind

KERNEL = "linux.uml"

#: Where Debian's package has the kernel's modules, a folder for each version.
MODULES = Path("/usr/lib/uml/modules")

#: Of a scenario suite and of a lab of 50 pods; 5,000 services with 10 endpoints each need 70 MB.
#: Only what is touched is taken from the host.
MEMORY = "1G"

#: Seconds from the start to the agent's first word: about 2 on an idle machine.
PATIENCE = 90.0

#: Seconds that a machine has to power itself off.
_GRACE = 10.0

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

#: What a kernel that gave up says, and what to do about it.
_REMEDIES = (
    (r"ptrace", "a container that forbids ptrace(2) cannot run it; allow CAP_SYS_PTRACE"),
    (r"noexec|PROT_EXEC", "set TMPDIR to a folder on a file system without noexec"),
    (r"No space left|Bus error|out of memory", "free memory, or set TMPDIR to a folder with room"),
)

#: Its kernel's words on every start, which tell nothing.
_CHATTER = re.compile(r"SELinux: |mmapper_init|ubd device 0|reboot: |Halting|^\s*$")

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def lacking() -> MachineError | None:
    """Why this host cannot run a machine, or None; nothing is started."""
    needs = (KERNEL, "modprobe", "setpriv")
    missing = [tool for tool in needs if command.find(tool) is None]
    try:
        if missing:
            command.require(missing[0])
        _modules()
        memory_folder(_bytes(MEMORY))
    except MachineError as error:
        return error
    return None


def _modules() -> Path:
    """The folder of the kernel's modules."""
    folders = sorted(MODULES.glob("*/modules.dep")) if MODULES.is_dir() else []
    if not folders:
        raise MachineError(
            f"{KERNEL} has no modules in {MODULES}", hint="try: apt-get install user-mode-linux"
        )
    return folders[-1].parent


def memory_folder(size: int) -> str:
    """Where the machine's memory of ``size`` bytes goes: an unlinked file, mapped with PROT_EXEC.

    /dev/shm if it can be that: containers often have it small and noexec. MachineError when nothing
    can.
    """
    refused = []
    for folder in dict.fromkeys(("/dev/shm", tempfile.gettempdir(), "/var/tmp")):  # noqa: S108
        fault = _fault(folder, size)
        if not fault:
            return folder
        refused.append(f"{folder} {fault}")
    raise MachineError(
        f"no place for a machine's memory of {size >> 20} MB: {', '.join(refused)}",
        hint="mount a tmpfs on /dev/shm, or set TMPDIR to a folder with room",
    )


def _fault(folder: str, size: int) -> str:
    """Why a folder cannot hold the memory; "" if it can."""
    try:
        about = os.statvfs(folder)
    except OSError as error:
        return f"({error.strerror})"
    if not os.access(folder, os.W_OK | os.X_OK) or about.f_flag & os.ST_RDONLY:
        return "is not writable"
    if about.f_flag & os.ST_NOEXEC:
        return "is mounted noexec"
    # Size 0: a tmpfs without a limit.
    if about.f_blocks and about.f_bavail * about.f_frsize < size:
        return "has too little room"
    return ""


def _bytes(memory: str) -> int:
    """``512M`` in bytes."""
    if not re.fullmatch(r"[1-9][0-9]*[KMG]", memory):
        raise MachineError(f"no size of a memory: {memory!r}", hint="like 512M or 2G")
    return int(memory[:-1]) * _UNITS[memory[-1]]


class Machine:
    """A machine that has been started. ``home`` is a private directory (mode 0700) of its own;
    whoever made it removes it.

    The thread that makes it has to live as long: the kernel sends SIGTERM at its end.
    """

    def __init__(self, home: Path, script: str, *, memory: str = MEMORY) -> None:
        if re.search(r'["\n]', str(home)):
            # Kernel arguments know no escapes.
            raise MachineError(f"a machine cannot be kept in {str(home)!r}", hint="set TMPDIR")
        _modules()
        self.home = home
        self._console = home / "console"
        self._decoder = Decoder()
        #: What waits for the line, and how many bytes it may take now.
        self._waiting = bytearray()
        self._room = LINE_WINDOW
        first = home / "init"
        first.write_text(script)
        first.chmod(0o700)
        (home / "uml").mkdir(mode=0o700, exist_ok=True)
        environment = {
            name: value for name, value in os.environ.items() if name not in ("TMP", "TEMP")
        }
        environment["TMPDIR"] = memory_folder(_bytes(memory))
        self.line, theirs = socket.socketpair()
        console = os.open(
            self._console, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
        )
        try:
            self._process = subprocess.Popen(
                [
                    command.require("setpriv"),
                    *("--pdeathsig", "TERM"),
                    command.require(KERNEL),
                    f"mem={memory}",
                    *("quiet", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw"),
                    f'init="{first}"',
                    f"uml_dir={home / 'uml'}/",
                    *("con=null", "con0=null,fd:1", "ssl=null", f"ssl0=fd:{theirs.fileno()}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                pass_fds=[theirs.fileno()],
                env=environment,
                # A Ctrl-C on the terminal is for us, not for the machine.
                start_new_session=True,
            )
        except BaseException:
            self.line.close()
            raise
        finally:
            theirs.close()
            os.close(console)
        self._pidfd = os.pidfd_open(self._process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        # Not poll(): that would free the process id, which is the name of the group to be killed.
        return self._pidfd >= 0 and not select.select([self._pidfd], [], [], 0)[0]

    def fileno(self) -> int:
        """Readable when the machine has ended."""
        return self._pidfd

    # --- its line ----------------------------------------------------------------------------

    def send(self, frame: Frame) -> None:
        """Now, or while :meth:`frames` is listened to. LabError when the machine is gone."""
        self._waiting += frame.encode()
        self._flush()

    def _flush(self) -> None:
        count = min(self._room, len(self._waiting))
        try:
            self.line.sendall(self._waiting[:count])
        except OSError:
            raise self.gone("it ended") from None
        del self._waiting[:count]
        self._room -= count

    def frames(self, deadline: float | None = None) -> Iterator[Frame]:
        """What the agent says, until the machine is gone (LabError) or ``deadline`` has passed
        (monotonic seconds; the iteration ends)."""
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self.line], [], [], left)[0]:
                return
            try:
                data = self.line.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise self.gone("it ended")
            for frame in self._decoder.feed(data):
                if frame.kind is Kind.HEARD:
                    self._room += frame.number
                    self._flush()
                else:
                    yield frame

    def wait_ready(self, patience: float = PATIENCE) -> str:
        """Until the agent speaks; the version of the machine's kernel.

        MachineError with the console's last words when it ends before or says nothing in time.
        """
        try:
            for frame in self.frames(time.monotonic() + patience):
                if frame.kind is Kind.READY:
                    return frame.payload.decode()
        except LabError:
            raise self._stillborn("did not start") from None
        raise self._stillborn(f"was not up within {patience:g} s")

    def gone(self, how: str) -> LabError:
        """What to raise when the machine ended by itself."""
        return LabError(f"user-mode Linux: {how}{self._said()}", hint="run again")

    def _stillborn(self, how: str) -> MachineError:
        self.kill()
        said = self._said()
        hints = [hint for pattern, hint in _REMEDIES if re.search(pattern, said, re.IGNORECASE)]
        return MachineError(f"user-mode Linux {how}{said}", hint=hints[0] if hints else "run again")

    def _said(self) -> str:
        words = self.last_words()
        return f"; its console's last words: {' | '.join(words)}" if words else ""

    def last_words(self, count: int = 4) -> list[str]:
        """The last lines of its console that tell something."""
        try:
            text = self._console.read_text(errors="replace")
        except FileNotFoundError:
            return []
        lines = [_ESCAPES.sub("", line).strip() for line in text.splitlines()]
        panics = [number for number, line in enumerate(lines) if "Kernel panic" in line]
        if panics:  # registers and a trace follow, which tell a user nothing
            del lines[panics[0] + 1 :]
        return [line for line in lines if not _CHATTER.search(line)][-count:]

    # --- its end -----------------------------------------------------------------------------

    def halt(self) -> None:
        """Let it power itself off, so that files are written back; kill it if it does not."""
        with suppress(LabError):
            self.send(Frame(Kind.HALT))
            select.select([self._pidfd], [], [], _GRACE)
        self.kill()

    def hang_up(self) -> None:
        """Close the line, from any thread: the agent ends the machine, and whoever listens here
        hears that it is gone."""
        with suppress(OSError):
            self.line.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        """End all its processes at once; fine when it has ended."""
        if self._pidfd < 0:
            return
        with suppress(ProcessLookupError):
            # Helpers of a kernel that was killed outlive it: the group, not the process.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._pidfd)
        self._pidfd = -1
        self.line.close()
        shutil.rmtree(self.home / "uml", ignore_errors=True)
