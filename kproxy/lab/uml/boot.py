"""Boot user-mode Linux, run commands in it as on this host, and end it.

Inside is a kernel with IPVS, ipset, SCTP and netem, and a copy-on-write view of this host's whole
file system: the same paths, programs and working directory, and root's rights, whoever runs it.
Nothing that is written inside reaches the host, but in the folder that is shared. /run is the
machine's own.

Standard output and error of a command are two streams, byte for byte, as they come.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn, Self

import msgspec

from kproxy.errors import LabError
from kproxy.lab.scenario.workspace import Workspace
from kproxy.lab.uml import channel, init
from kproxy.lab.uml.channel import Frame, Kind, Request
from kproxy.lab.uml.homes import private_root
from kproxy.lab.uml.machine import MEMORY, PATIENCE, Machine

#: Called with 1 or 2 (standard output, error) and what was written there.
Take = Callable[[int, bytes], None]

#: Where a machine without a shared folder has one that goes away with it.
_NOTHING_SHARED = Path("/run/kproxy/shared")

_ENDING = (signal.SIGTERM, signal.SIGHUP)


class Boot:
    """A machine that is up from ``with`` on; whatever ends the block ends it.

    ``shared`` is a folder of the host in which the machine's writes arrive. All but :meth:`abandon`
    is for one thread, which has to live as long as the machine. MachineError when this host cannot
    run one, or it is not up within ``patience`` seconds.
    """

    def __init__(
        self, *, memory: str = MEMORY, shared: Path | None = None, patience: float = PATIENCE
    ) -> None:
        self._memory = memory
        self._shared = shared.resolve() if shared is not None else None
        self._patience = patience
        self._serial = 0
        self._abandoned = threading.Event()
        self._starting = threading.Lock()
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            _, home = undo.enter_context(Workspace(private_root())).next()
            (home / "shared").mkdir(mode=0o700)
            script = init.script(
                "uml",
                live=(),
                kept=self._shared or _NOTHING_SHARED,
                kept_on_host=self._shared or home / "shared",
                python=sys.executable,
            )
            with self._starting:
                if self._abandoned.is_set():
                    raise LabError("user-mode Linux: given up before it started")
                self.machine = undo.enter_context(Machine(home, script, memory=self._memory))
            self.version = self.machine.wait_ready(self._patience)
            if self._shared is not None:
                # What was written there is on its way: a kill would lose it.
                undo.callback(self.machine.halt)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def abandon(self) -> None:
        """End the machine at once: what waits for it gets a LabError. From any thread."""
        with self._starting:
            self._abandoned.set()
            if hasattr(self, "machine"):
                self.machine.hang_up()

    def run(
        self,
        argv: Sequence[str],
        *,
        take: Take | None = None,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Run a command to its end; its exit status, 128 and the signal's number for a signal.

        ``take`` gets its output (default: it becomes ours). It starts in ``directory`` (default:
        where we are) with ``environment`` (default: ours), its standard input is empty. LabError
        when the machine ends before the command does.
        """
        take = take or _pass_on
        self._serial += 1
        number = self._serial
        variables = os.environ if environment is None else environment
        request = Request(
            tuple(os.fsencode(word) for word in argv),
            tuple((os.fsencode(name), os.fsencode(value)) for name, value in variables.items()),
            os.fsencode(directory or Path.cwd()),
            _umask(),
        )
        self.machine.send(Frame(Kind.START, number, payload=msgspec.msgpack.encode(request)))
        for frame in self.machine.frames():
            if frame.request != number:
                continue  # of a command that was given up
            if frame.kind is Kind.DATA:
                take(frame.stream, frame.payload)
                self.machine.send(channel.credit(number, frame.stream, len(frame.payload)))
            elif frame.kind is Kind.STATUS:
                return 128 - frame.status if frame.status < 0 else frame.status
        raise self.machine.gone("its line was closed")


def _pass_on(stream: int, data: bytes) -> None:
    while data:
        data = data[os.write(stream, data) :]


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind the stack, as SIGINT does: a machine is then ended and its
    directory removed. For the main thread; SystemExit carries 128 and the signal's number."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
