"""Runs a command in a lab's machine as if it ran here: its streams, its terminal, its signals and
its end are ours.

Where our standard streams are terminals, the command gets one as well. Ours is put into raw mode
only for a command that reads it; what is typed during any other stays for the shell that comes
after us. A command that does read gets its input ahead of need, a pipe full at most.
"""

from __future__ import annotations

import fcntl
import os
import re
import resource
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec

from kproxy.lab.uml import channel, resident
from kproxy.lab.uml.channel import CHUNK, TERMINAL, WINDOW, Decoder, Frame, Kind, Request

#: Signals that are the command's affair. Not those that stop and continue: they are the shell's.
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

#: A user who asks so often for the end gets it, whatever the command does.
_ENOUGH = 3

#: A file that was named by the shell: ``-f <(generate)``.
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/([0-9]+)$")

#: Bytes that a pipe which can be written takes without making us wait (PIPE_BUF).
_PIECE = 4096


class _Reader:
    """A descriptor of ours that feeds the command, as far as there is credit."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.credit = WINDOW


class _Writer:
    """A descriptor of ours that takes what the command writes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.waiting = bytearray()


class _Plan:
    """Which of our descriptors the command gets as what."""

    def __init__(self, argv: Sequence[str], *, feeds: bool, sinks: tuple[int, int]) -> None:
        ours = {0: 0, 1: sinks[0], 2: sinks[1]}
        screens = tuple(number for number in (1, 2) if os.isatty(ours[number]))
        self.raw = feeds and os.isatty(0) and 1 in screens and _in_foreground()
        self.terminals = (0, *screens) if self.raw else screens
        self.readers: dict[int, _Reader] = {}
        if self.raw:
            self.readers[TERMINAL] = _Reader(0)
        elif feeds and _readable(0):
            self.readers[0] = _Reader(0)
        for word in argv:
            found = _DESCRIPTOR.search(word)
            if found and int(found[1]) > 2 and _readable(int(found[1])):
                self.readers[int(found[1])] = _Reader(int(found[1]))
        self.writers = {number: _Writer(ours[number]) for number in (1, 2) if number not in screens}
        if screens:
            self.writers[TERMINAL] = _Writer(ours[screens[0]])

    def request(self, argv: Sequence[str], environment: Mapping[str, str]) -> Request:
        rows, columns = _size(self.writers[TERMINAL].fd) if self.terminals else (0, 0)
        mask = os.umask(0o077)
        os.umask(mask)
        return Request(
            tuple(map(os.fsencode, argv)),
            tuple((os.fsencode(name), os.fsencode(value)) for name, value in environment.items()),
            os.fsencode(Path.cwd()),
            mask,
            tuple(number for number in self.readers if number != TERMINAL),
            self.terminals,
            rows,
            columns,
        )


def _in_foreground() -> bool:
    """Whether the terminal's keys are for us: a background job that took it would be stopped."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:  # a terminal, but not ours
        return False


def _readable(fd: int) -> bool:
    try:
        return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY
    except OSError:  # not open
        return False


def _size(terminal: int) -> tuple[int, int]:
    columns, rows = os.get_terminal_size(terminal)
    return rows, columns


def run(
    lab: str,
    argv: Sequence[str],
    *,
    feeds: bool,
    sinks: tuple[int, int] = (1, 2),
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run ``argv`` in the machine of ``lab``; its exit status, negative for a signal.

    ``feeds``: it reads our standard input. ``sinks`` get its output and errors. LabError when the
    machine is gone, or ends before the command does. ``environment``: ours when not given. For the
    main thread.
    """
    plan = _Plan(argv, feeds=feeds, sinks=sinks)
    with _signals() as heard, resident.connect(lab) as line:
        decoder = Decoder()
        resident.wait_ready(line, lab, decoder)
        line.setblocking(False)
        talk = _Talk(lab, line.fileno(), decoder, plan, heard)
        request = plan.request(argv, os.environ if environment is None else environment)
        talk.say(Frame(Kind.START, payload=msgspec.msgpack.encode(request)))
        with _raw(plan.raw):
            return talk.until_the_end()


def ask(lab: str, argv: Sequence[str], environment: Mapping[str, str]) -> tuple[int, bytes, bytes]:
    """Run a command that reads nothing; its status, output and errors."""
    with (
        os.fdopen(os.memfd_create("output"), "w+b") as output,
        os.fdopen(os.memfd_create("errors"), "w+b") as errors,
    ):
        sinks = output.fileno(), errors.fileno()
        status = run(lab, argv, feeds=False, sinks=sinks, environment=environment)
        output.seek(0)
        errors.seek(0)
        return status, output.read(), errors.read()


def end_as(status: int) -> NoReturn:
    """End this process as the command has ended: whoever waits for us sees the same."""
    if status < 0:
        sys.stdout.flush()
        sys.stderr.flush()
        # The command may have left a core dump, inside; one of ours would tell nothing.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (-status,))
        os.kill(os.getpid(), -status)
        status = 128 - status
    sys.exit(status)


class _Heard:
    """Signals that have come: ``numbers`` to be passed on, and whether the window's size is new.
    ``alarm`` can be read when there is any."""

    def __init__(self, alarm: int) -> None:
        self.alarm = alarm
        self.numbers: list[int] = []
        self.resized = False

    def take(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGWINCH:
            self.resized = True
        else:
            self.numbers.append(number)


@contextmanager
def _signals() -> Iterator[_Heard]:
    alarm, ring = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    heard = _Heard(alarm)
    numbers = [n for n in _PASSED_ON if signal.getsignal(n) is not signal.SIG_IGN]
    before = {n: signal.signal(n, heard.take) for n in (*numbers, signal.SIGWINCH)}
    previous = signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
    try:
        yield heard
    finally:
        signal.set_wakeup_fd(previous)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(alarm)
        os.close(ring)


@contextmanager
def _raw(wanted: bool) -> Iterator[None]:
    """Our terminal hands over each key as it is pressed, Ctrl-C as well."""
    if not wanted:
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


class _Talk:
    """The exchange of one request's frames."""

    def __init__(self, lab: str, line: int, decoder: Decoder, plan: _Plan, heard: _Heard) -> None:
        self._lab = lab
        self._line = line
        self._decoder = decoder
        self._readers = plan.readers
        self._writers = plan.writers
        self._heard = heard
        self._waiting = bytearray()
        self._status: int | None = None
        self._interrupts = 0

    def say(self, frame: Frame) -> None:
        self._waiting += frame.encode()
        self._flush()

    def _flush(self) -> None:
        try:
            while self._waiting:
                del self._waiting[: os.write(self._line, self._waiting)]
        except BlockingIOError:
            pass
        except OSError:
            raise resident.gone(self._lab) from None

    def until_the_end(self) -> int:
        """Until the command has ended and all that it wrote is written; its status."""
        while True:
            writing = any(writer.waiting for writer in self._writers.values())
            if self._status is not None and not writing:
                return self._status
            for fd, events in self._poll():
                if fd == self._heard.alarm:
                    os.read(fd, 4096)
                elif fd == self._line:
                    self._at_line(events)
                else:
                    self._at_ours(fd)
            self._pass_on_signals()

    def _poll(self) -> list[tuple[int, int]]:
        poll = select.poll()
        poll.register(self._heard.alarm, select.POLLIN)
        wanted: dict[int, int] = {}
        for writer in self._writers.values():
            if writer.waiting:
                wanted[writer.fd] = select.POLLOUT
        if self._status is None:
            poll.register(self._line, select.POLLIN | (select.POLLOUT * bool(self._waiting)))
            for reader in self._readers.values():
                if reader.credit:
                    # One that is a terminal may be a writer as well.
                    wanted[reader.fd] = wanted.get(reader.fd, 0) | select.POLLIN
        for fd, events in wanted.items():
            poll.register(fd, events)
        return poll.poll()

    def _pass_on_signals(self) -> None:
        while self._heard.numbers:
            number = self._heard.numbers.pop(0)
            self._interrupts += number == signal.SIGINT
            if self._interrupts >= _ENOUGH:
                raise KeyboardInterrupt
            self.say(channel.signalled(number))
        if self._heard.resized and TERMINAL in self._writers:
            self.say(channel.sized(*_size(self._writers[TERMINAL].fd)))
        self._heard.resized = False

    # --- the machine's side ------------------------------------------------------------------

    def _at_line(self, events: int) -> None:
        if events & select.POLLOUT:
            self._flush()
        if not events & ~select.POLLOUT:
            return
        try:
            data = os.read(self._line, 65536)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            raise resident.gone(self._lab)
        for frame in self._decoder.feed(data):
            self._hear(frame)

    def _hear(self, frame: Frame) -> None:
        if frame.kind is Kind.DATA and frame.stream in self._writers:
            self._writers[frame.stream].waiting += frame.payload
        elif frame.kind is Kind.CREDIT and frame.stream in self._readers:
            self._readers[frame.stream].credit += frame.number
        elif frame.kind is Kind.END:
            self._readers.pop(frame.stream, None)  # the command reads no more of it
        elif frame.kind is Kind.STATUS:
            self._status = frame.status

    # --- our side ----------------------------------------------------------------------------

    def _at_ours(self, fd: int) -> None:
        for stream, writer in tuple(self._writers.items()):
            if writer.fd == fd and writer.waiting and _ready(fd, select.POLLOUT):
                self._write(stream, writer)
        for stream, reader in tuple(self._readers.items()):
            if reader.fd == fd and reader.credit and _ready(fd, select.POLLIN):
                self._read(stream, reader)

    def _write(self, stream: int, writer: _Writer) -> None:
        try:
            count = os.write(writer.fd, writer.waiting[:_PIECE])
        except BrokenPipeError:
            # Our reader has gone: so has the command's, and it gets the signal for that.
            del self._writers[stream]
            self.say(Frame(Kind.END, stream=stream))
            return
        del writer.waiting[:count]
        self.say(channel.credit(0, stream, count))

    def _read(self, stream: int, reader: _Reader) -> None:
        try:
            data = os.read(reader.fd, min(CHUNK, reader.credit))
        except BlockingIOError:
            return
        reader.credit -= len(data)
        if data:
            self.say(Frame(Kind.DATA, stream=stream, payload=data))
        else:
            del self._readers[stream]
            self.say(Frame(Kind.END, stream=stream))


def _ready(fd: int, events: int) -> bool:
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(0))
