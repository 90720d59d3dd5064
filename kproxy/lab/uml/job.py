"""One command inside a machine: a child process, its pipes or its terminal, and their credit.

The child has a session of its own, so a signal for it reaches what it has started, too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import NoReturn

from kproxy.lab.uml import channel
from kproxy.lab.uml.channel import CHUNK, TERMINAL, WINDOW, Frame, Kind, Request

#: Where the child's descriptors wait until each has got its number: above all that it may ask for.
_ASIDE = 512

Send = Callable[[Frame], None]
#: Called with the job, a descriptor of it, and the poll(2) events that are awaited on it; 0: none.
Watch = Callable[["Job", int, int], None]


class _Output:
    """What the command writes: a pipe, or its terminal. ``left`` is how much there is still to be
    read once the command has ended; -1 while it runs."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.credit = WINDOW
        self.left = -1


class _Input:
    """What the command reads, as far as it has not taken it yet."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.waiting = bytearray()
        self.ended = False


class Job:
    """A command that was asked for. ``finished`` when its status has been sent, or nobody is left
    to hear it."""

    def __init__(self, number: int, request: Request, send: Send, watch: Watch) -> None:
        self.finished = False
        self._number = number
        self._send = send
        self._watch = watch
        self._outputs: dict[int, _Output] = {}
        self._inputs: dict[int, _Input] = {}
        self._status: int | None = None
        self._abandoned = False
        childs: dict[int, int] = {}
        for stream in request.inputs:
            childs[stream], mine = os.pipe2(os.O_CLOEXEC)
            self._inputs[stream] = _Input(mine)
        for stream in request.outputs:
            mine, childs[stream] = os.pipe2(os.O_CLOEXEC)
            self._outputs[stream] = _Output(mine)
        if request.terminals:
            mine, slave = pty.openpty()
            self._outputs[TERMINAL] = _Output(mine)
            # A descriptor of its own for each direction: they are watched, and end, by themselves.
            self._inputs[TERMINAL] = _Input(fcntl.fcntl(mine, fcntl.F_DUPFD_CLOEXEC, 3))
            _set_size(mine, request.rows, request.columns)
            if 0 not in request.terminals:
                # The client's terminal does what is to be done with line ends.
                _no_processing(slave)
            childs |= dict.fromkeys(request.terminals, slave)
        for fd in self.descriptors():
            os.set_blocking(fd, False)
        self.pid = os.fork()
        if self.pid == 0:
            _become(request, childs)
        for fd in set(childs.values()):
            os.close(fd)
        for output in self._outputs.values():
            watch(self, output.fd, select.POLLIN)

    def descriptors(self) -> tuple[int, ...]:
        """Ours of the command's pipes and terminal, as far as they are open."""
        ends: tuple[_Output | _Input, ...] = (*self._outputs.values(), *self._inputs.values())
        return tuple(end.fd for end in ends)

    # --- from the client ---------------------------------------------------------------------

    def hear(self, frame: Frame) -> None:
        """Take a frame of this request."""
        if frame.kind is Kind.DATA and frame.stream in self._inputs:
            self._inputs[frame.stream].waiting += frame.payload
            self._feed(frame.stream)
        elif frame.kind is Kind.END and frame.stream in self._inputs:
            self._inputs[frame.stream].ended = True
            self._feed(frame.stream)
        elif frame.kind is Kind.END and frame.stream in self._outputs:
            self._close_output(frame.stream)  # the client's reader is gone: so is the command's
            self._settle()
        elif frame.kind is Kind.CREDIT and frame.stream in self._outputs:
            self._outputs[frame.stream].credit += frame.number
            self._drain(frame.stream)
        elif frame.kind is Kind.SIGNAL:
            self.signal(frame.number)
        elif frame.kind is Kind.SIZE and TERMINAL in self._outputs:
            _set_size(self._outputs[TERMINAL].fd, *frame.size)
        elif frame.kind is Kind.GONE:
            self._abandoned = True
            self._close()

    def signal(self, number: int) -> None:
        """To the command and what it has started, as a terminal does."""
        if self._status is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    # --- from the command --------------------------------------------------------------------

    def ready(self, fd: int) -> None:
        """A descriptor that was watched can be read or written, or its other end is closed."""
        for stream, output in tuple(self._outputs.items()):
            if output.fd == fd:
                self._drain(stream)
        for stream, taker in tuple(self._inputs.items()):
            if taker.fd == fd:
                self._feed(stream)

    def ended(self, status: int) -> None:
        """The command has ended; ``status`` is negative for a signal. What it has written is still
        delivered; what children of it write from now on is not waited for."""
        self._status = status
        for stream in tuple(self._inputs):
            self._close_input(stream)
        for stream, output in tuple(self._outputs.items()):
            # A terminal's bytes may still be on their way through the kernel: it tells the end.
            output.left = sys.maxsize if stream == TERMINAL else _readable(output.fd)
            self._drain(stream)
        self._settle()

    def _settle(self) -> None:
        """Send the status when all is delivered."""
        if self._status is not None and not self._outputs and not self.finished:
            self.finished = True
            if not self._abandoned:
                self._send(channel.ended(self._number, self._status))

    def _drain(self, stream: int) -> None:
        output = self._outputs[stream]
        while output.credit and output.left:
            wanted = min(CHUNK, output.credit)
            try:
                data = os.read(output.fd, wanted if output.left < 0 else min(wanted, output.left))
            except BlockingIOError:
                if output.left > 0:
                    output.left = 0
                break
            except OSError as wrong:
                if wrong.errno != errno.EIO:  # a terminal that nobody has open any more
                    raise
                data = b""
            if not data:
                output.left = 0
                break
            output.credit -= len(data)
            self._send(Frame(Kind.DATA, self._number, stream, data))
            if output.left < 0:
                break  # one piece in turn: others write as well
            output.left -= len(data)
        if output.left == 0:
            self._close_output(stream)
            self._settle()
        else:
            self._watch(self, output.fd, select.POLLIN if output.credit else 0)

    def _feed(self, stream: int) -> None:
        taker = self._inputs[stream]
        try:
            while taker.waiting:
                count = os.write(taker.fd, taker.waiting)
                del taker.waiting[:count]
                self._send(channel.credit(self._number, stream, count))
        except BlockingIOError:
            self._watch(self, taker.fd, select.POLLOUT)
            return
        except OSError as wrong:
            if wrong.errno not in (errno.EPIPE, errno.EIO):
                raise
            # Nobody reads it any more. That is no fault: ``head`` does it all the time.
            self._close_input(stream)
            self._send(Frame(Kind.END, self._number, stream))
            return
        if taker.ended:
            self._close_input(stream)
        else:
            self._watch(self, taker.fd, 0)

    # --- ends --------------------------------------------------------------------------------

    def _close_output(self, stream: int) -> None:
        fd = self._outputs.pop(stream).fd
        self._watch(self, fd, 0)
        os.close(fd)

    def _close_input(self, stream: int) -> None:
        fd = self._inputs.pop(stream).fd
        self._watch(self, fd, 0)
        os.close(fd)

    def _close(self) -> None:
        for stream in tuple(self._inputs):
            self._close_input(stream)
        for stream in tuple(self._outputs):
            self._close_output(stream)
        self._settle()


def _readable(fd: int) -> int:
    """Bytes that wait in a pipe."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0])


def _set_size(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _no_processing(terminal: int) -> None:
    modes = termios.tcgetattr(terminal)
    modes[1] &= ~termios.OPOST
    termios.tcsetattr(terminal, termios.TCSANOW, modes)


# --- the child --------------------------------------------------------------------------------


def _become(request: Request, childs: Mapping[int, int]) -> NoReturn:
    """The child's part, between fork and exec: stand where the client stands."""
    try:
        os.setsid()
        _take(childs)
        if 0 in request.terminals:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        _default_signals()
        os.umask(request.umask)
        environment = dict(request.environment)
        try:
            os.chdir(request.directory)
        except OSError as wrong:
            os.chdir("/")
            _say(f"{os.fsdecode(request.directory)} is not in the machine ({wrong.strerror}): in /")
        try:
            os.execvpe(request.argv[0], list(request.argv), environment)
        except OSError as wrong:
            _say(f"cannot run {os.fsdecode(request.argv[0])!r} in the machine: {wrong.strerror}")
    finally:
        # Nothing of the parent's stack may run in the child.
        os._exit(126)


def _take(childs: Mapping[int, int]) -> None:
    """Give each descriptor its number; close all others."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    sources = {**dict.fromkeys((0, 1, 2), null), **childs}
    aside = {
        number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ASIDE) for number, fd in sources.items()
    }
    for number, fd in aside.items():
        os.dup2(fd, number)
    _close_all_but(aside)


def _close_all_but(kept: Iterable[int]) -> None:
    previous = -1
    for number in (*sorted(kept), os.sysconf("SC_OPEN_MAX")):
        if previous + 1 < number:  # of no descriptors at all, Python 3.11 makes all (close_range)
            os.closerange(previous + 1, number)
        previous = number


def _default_signals() -> None:
    """Python ignores SIGPIPE; process 1 may have handlers. None of that is for the command."""
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            with suppress(OSError):  # signals that the C library keeps for itself
                signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _say(line: str) -> None:
    os.write(2, f"kproxy: {line}\n".encode(errors="surrogateescape"))
