"""The host's process that owns a machine: boots it, relays requests to it, sees to its end.

``python -m kproxy.lab.uml.broker LAB DESCRIPTOR MEMORY``, started by
:mod:`kproxy.lab.uml.resident` in a session of its own; DESCRIPTOR is the socket that it listens on.
It ends when the machine has ended. SIGTERM ends the machine in good order, and by force when that
takes too long. The machine does not outlive it, even when it is killed.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress

from kproxy.errors import KproxyError
from kproxy.lab import state
from kproxy.lab.uml import init, resident
from kproxy.lab.uml.channel import LINE_WINDOW, Decoder, Frame, Kind
from kproxy.lab.uml.machine import Machine
from kproxy.lab.undo import Process, UndoLog, start_time

#: Seconds that a machine has to end by itself: its processes get SIGTERM and time to act on it.
#: Less than what :func:`kproxy.lab.daemons.stop` leaves ourselves.
_HALT = 2.5

#: Bytes that may wait for the line before clients are no longer listened to.
_CROWD = 1 << 20


class _Peer:
    """A socket that never makes us wait: what it does not take at once is kept."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.decoder = Decoder()
        self.waiting = bytearray()
        sock.setblocking(False)

    def send(self, frame: Frame) -> None:
        self.waiting += frame.encode()
        self.flush()

    def flush(self) -> None:
        with suppress(BlockingIOError):
            while self.waiting:
                del self.waiting[: self.sock.send(self.waiting)]

    def receive(self) -> bytes | None:
        """What has come, b"" when it is closed, None when nothing has come."""
        try:
            return self.sock.recv(65536)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""

    def events(self, *, listen: bool = True) -> int:
        return (select.POLLIN if listen else 0) | (select.POLLOUT if self.waiting else 0)


class _Line(_Peer):
    """The machine's: takes no more than the machine can hold."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._room = LINE_WINDOW

    def flush(self) -> None:
        with suppress(BlockingIOError):
            while self.waiting and self._room:
                count = self.sock.send(self.waiting[: self._room])
                del self.waiting[:count]
                self._room -= count

    def heard(self, count: int) -> None:
        """The machine has read so many bytes."""
        self._room += count
        self.flush()

    def events(self, *, listen: bool = True) -> int:
        return (select.POLLIN if listen else 0) | (
            select.POLLOUT if self.waiting and self._room else 0
        )


class Broker:
    """Relays between the machine's line and any number of clients, each with one request."""

    def __init__(self, machine: Machine, listening: socket.socket) -> None:
        self._line = _Line(machine.line)
        self._listening = listening
        self._machine = machine.fileno()
        self._clients: dict[int, _Peer] = {}
        self._count = 0
        self._ready: Frame | None = None
        #: What clients said before the machine could hear it.
        self._early: list[Frame] = []
        self._alarm, alarm = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._told_to_end = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)

    def _end(self, number: int, frame: object) -> None:
        self._told_to_end = True

    def serve(self) -> bool:
        """Return when the machine has ended, or did not in time after it was told to. Whether it
        has been of use: it was up, or was told to end before."""
        deadline: float | None = None
        while True:
            if self._told_to_end and deadline is None:
                deadline = time.monotonic() + (_HALT if self._ready else 0)
                self._line.send(Frame(Kind.HALT))
            patience = None if deadline is None else max(0, deadline - time.monotonic())
            if patience == 0:
                return True
            for fd, events in self._wait(patience):
                if fd == self._machine:
                    return self._told_to_end or self._ready is not None
                if fd == self._alarm:
                    os.read(self._alarm, 4096)
                elif fd == self._listening.fileno():
                    self._accept()
                elif fd == self._line.sock.fileno():
                    self._from_machine(events)
                else:
                    self._from_client(fd, events)

    def _wait(self, patience: float | None) -> list[tuple[int, int]]:
        poll = select.poll()
        for fd in (self._machine, self._alarm, self._listening.fileno()):
            poll.register(fd, select.POLLIN)
        poll.register(self._line.sock, self._line.events())
        crowded = len(self._line.waiting) > _CROWD
        for client in self._clients.values():
            poll.register(client.sock, client.events(listen=not crowded))
        return poll.poll(None if patience is None else patience * 1000)

    def _accept(self) -> None:
        sock, _ = self._listening.accept()
        # The folder is its owner's alone; whoever gets here must be the owner, or root.
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        if struct.unpack("iII", credentials)[1] not in (0, os.geteuid()):
            sock.close()
            return
        self._count += 1
        self._clients[self._count] = _Peer(sock)
        if self._ready is not None:
            self._clients[self._count].send(self._ready)

    def _from_machine(self, events: int) -> None:
        if events & select.POLLOUT:
            self._line.flush()
        if not events & ~select.POLLOUT:
            return
        for frame in self._line.decoder.feed(self._line.receive() or b""):
            if frame.kind is Kind.READY:
                self._begin(frame)
                continue
            if frame.kind is Kind.HEARD:
                self._line.heard(frame.number)
                continue
            client = self._clients.get(frame.request)
            if client is None:
                continue  # it has gone, and the machine does not know yet
            with suppress(ConnectionError):  # it goes at this moment: it will be seen to be gone
                client.send(frame._replace(request=0))

    def _begin(self, ready: Frame) -> None:
        self._ready = ready
        for client in self._clients.values():
            with suppress(ConnectionError):
                client.send(ready)
        for frame in self._early:
            self._line.send(frame)
        self._early.clear()

    def _from_client(self, fd: int, events: int) -> None:
        number, client = next(
            (number, client)
            for number, client in self._clients.items()
            if client.sock.fileno() == fd
        )
        data: bytes | None = None
        try:
            if events & select.POLLOUT:
                client.flush()
            if events & ~select.POLLOUT:
                data = client.receive()
            for frame in client.decoder.feed(data or b""):
                self._tell(frame._replace(request=number))
        except (ConnectionError, ValueError):  # ValueError: these are no frames
            data = b""
        if data == b"":
            client.sock.close()
            del self._clients[number]
            self._tell(Frame(Kind.GONE, number))

    def _tell(self, frame: Frame) -> None:
        # Before the line is set to raw the machine would mangle it.
        if self._ready is None:
            self._early.append(frame)
        else:
            self._line.send(frame)


def _script(lab: str) -> str:
    """The first program of a lab's machine."""
    live = init.live_folders(
        entry.name for entry in os.scandir("/") if entry.is_dir(follow_symlinks=False)
    )
    state.private_dir(state.kept_dir(lab))
    return init.script(
        lab,
        live=live,
        kept=state.ROOTS_KEPT_DIR / lab,
        kept_on_host=state.kept_dir(lab),
        python=sys.executable,
    )


def main() -> int:
    lab, listening_fd, memory = sys.argv[1:]
    home = resident.home(lab)
    state.private_dir(home)
    with socket.socket(fileno=int(listening_fd)) as listening:
        try:
            with Machine(home, _script(lab), memory=memory) as machine:
                started = start_time(machine.pid)
                if started is not None:
                    kernel = Process(machine.pid, started, resident.ROLE_KERNEL)
                    UndoLog(lab).process(kernel)
                if not Broker(machine, listening).serve():
                    machine.line.setblocking(True)
                    machine.wait_ready()  # says why it never was
        except (KproxyError, OSError) as error:
            # Our log's last line is what the user is told.
            sys.stderr.write(f"{error}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
