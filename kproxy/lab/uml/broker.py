"""The host's process that owns a machine: boots it, relays requests to it, sees to its end.

``python -m kproxy.lab.uml.broker LAB DESCRIPTOR MEMORY``, started by
:mod:`kproxy.lab.uml.resident` in a session of its own; DESCRIPTOR is the socket that it listens on.
It ends when the machine has ended. SIGTERM ends the machine in good order, and by force when that
takes too long. Nothing of user-mode Linux outlives it: killed itself, it takes the machine along.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress

from kproxy.kernel.command import find
from kproxy.lab import state
from kproxy.lab.uml import init
from kproxy.lab.uml.channel import Decoder, Frame, Kind
from kproxy.lab.uml.session import end_session

#: Seconds that a machine has to end by itself: its processes get SIGTERM and time to act on it.
_HALT = 2.5

#: Bytes that may wait for the line before clients are no longer listened to.
_CROWD = 1 << 20

#: linux/prctl.h
_PDEATHSIG, _SUBREAPER = 1, 36

_libc = ctypes.CDLL(None, use_errno=True)


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


class Broker:
    """Relays between the machine's line and any number of clients, each with one request."""

    def __init__(self, line: socket.socket, listening: socket.socket, machine: int) -> None:
        self._line = _Peer(line)
        self._listening = listening
        self._machine = machine
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

    def serve(self) -> None:
        """Return when the machine has ended, or did not in time after it was told to."""
        deadline: float | None = None
        while True:
            if self._told_to_end and deadline is None:
                deadline = time.monotonic() + (_HALT if self._ready else 0)
                self._line.send(Frame(Kind.HALT))
            patience = None if deadline is None else max(0, deadline - time.monotonic())
            if patience == 0:
                return
            for fd, events in self._wait(patience):
                if fd == self._machine:
                    return
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


def _boot(lab: str, line: socket.socket, memory: str) -> subprocess.Popen[bytes]:
    """Start the machine; its console is our standard error, which is its log."""
    folder = state.lab_dir(lab)
    live = init.live_folders(
        entry.name for entry in os.scandir("/") if entry.is_dir(follow_symlinks=False)
    )
    kept = state.kept_dir(lab)
    state.private_dir(kept)
    first = folder / "init"
    text = init.script(lab, live=live, kept=kept, python=sys.executable)
    state.write_atomically(first, text.encode())
    first.chmod(0o700)
    argv = [find("linux.uml") or "linux.uml", "quiet", f"mem={memory}"]
    argv += ["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", f"init={first}"]
    # Its own folder of sockets would be ~/.uml, and stay there.
    argv += [f"uml_dir={folder}", "umid=uml", "con=null", "con0=null,fd:1"]
    argv += [f"ssl0=fd:{line.fileno()}"]

    def childs_part() -> None:
        _libc.prctl(_PDEATHSIG, signal.SIGTERM)

    return subprocess.Popen(
        argv,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(folder)},
        stdin=subprocess.DEVNULL,
        pass_fds=[line.fileno()],
        preexec_fn=childs_part,  # noqa: PLW1509: this process has one thread
    )


def main() -> None:
    lab, listening_fd, memory = sys.argv[1:]
    # What the machine leaves behind when it is killed becomes our child, and is found.
    _libc.prctl(_SUBREAPER, 1)
    line, machines = socket.socketpair()
    with socket.socket(fileno=int(listening_fd)) as listening, line:
        with machines:
            machine = _boot(lab, machines, memory)
        ended = os.pidfd_open(machine.pid)
        try:
            Broker(line, listening, ended).serve()
        finally:
            end_session(os.getpid())
            machine.wait()


if __name__ == "__main__":
    main()
