"""Answers in many namespaces from one epoll loop; speaks the protocol of :mod:`.wire`.

A lab runs one in a process of its own (:meth:`Responder.serve`), the scenario runner one in a
thread (:meth:`Responder.start`). Listeners belong to an *owner* (a pod, an endpoint address), and
faults act on an owner: ``hang`` (connections are taken by the kernel, nothing is answered),
``refuse`` (nothing listens, everything open is reset), ``heal``.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from contextlib import suppress
from typing import Any, Self

from kproxy.core.objects import Family, Protocol, Value, family_of
from kproxy.errors import LabError
from kproxy.kernel.netns import entered
from kproxy.lab.traffic import sockets
from kproxy.lab.traffic.wire import Answer, join_host_port, next_request, reply

_ANY = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}

#: The option that sends small answers at once. SCTP_NODELAY is 3 (linux/sctp.h).
_AT_ONCE = {
    Protocol.TCP: (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    Protocol.SCTP: (socket.IPPROTO_SCTP, 3),
}

_BACKLOG = 1024
_READ = 65536

# linux/in.h; the socket module of 3.11 does not name them all.
_IP_PKTINFO = 8
_IPV6_FREEBIND = 78
_PKTINFO4 = struct.Struct("=I4s4s")
_PKTINFO6 = struct.Struct("=16sI")

#: Closing sends a reset and leaves no TIME_WAIT behind that would hold the port.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Listener(Value, frozen=True):
    """What answers where. ``address`` "" means every address of both families."""

    name: str
    port: int
    protocol: Protocol = Protocol.TCP
    address: str = ""


class _Connection:
    """One accepted connection."""

    def __init__(self, sock: socket.socket, listener: Listener, client: Any) -> None:
        self.sock = sock
        self.buffer = b""
        local = sock.getsockname()
        self._answer = Answer(
            listener.name,
            join_host_port(client[0], client[1]),
            join_host_port(local[0], local[1]),
            listener.protocol,
        )

    def ready(self) -> bool:
        """Serve what has come; False when the connection is over."""
        try:
            data = self.sock.recv(_READ)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        self.buffer += data
        try:
            while True:
                request, self.buffer = next_request(self.buffer)
                if request is None:
                    return True
                answer = Answer(
                    self._answer.name,
                    self._answer.client,
                    self._answer.local,
                    self._answer.proto,
                    request.text,
                )
                # Answers are far smaller than a socket buffer: a client that does not read them
                # for that long loses its connection.
                self.sock.sendall(reply(request, answer))
                if request.close:
                    self.sock.shutdown(socket.SHUT_WR)
        except (ValueError, OSError):
            return False


class _Accepting:
    """A listening socket of a protocol with connections."""

    def __init__(self, sock: socket.socket, listener: Listener) -> None:
        self.sock = sock
        self.listener = listener

    def accept(self) -> _Connection | None:
        try:
            sock, client = self.sock.accept()
        except OSError:
            return None
        sock.setblocking(False)
        sock.setsockopt(*_AT_ONCE[self.listener.protocol], 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        return _Connection(sock, self.listener, client)


class _Datagrams:
    """A UDP socket; answers leave from the address that was asked (IP_PKTINFO)."""

    def __init__(self, sock: socket.socket, listener: Listener) -> None:
        self.sock = sock
        self.name = listener.name
        self.port = listener.port
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            # Where a LOCAL route makes every address ours, no interface carries the one to answer
            # from; IPv4 asks the local table and is content.
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)

    def ready(self) -> None:
        while True:
            try:
                data, control, _, client = self.sock.recvmsg(_READ, 128)
            except OSError:
                # Nothing left, or an ICMP error about an earlier answer: neither is ours to mend.
                return
            local, back = self._arrived_at(control)
            answer = Answer(
                self.name,
                join_host_port(client[0], client[1]),
                join_host_port(local, self.port),
                Protocol.UDP,
                data.strip().decode(errors="replace"),
            )
            request, _ = next_request(data.strip() + b"\n")
            if request is not None:
                with suppress(OSError):
                    self.sock.sendmsg([reply(request, answer)], back, 0, client)

    def _arrived_at(self, control: list[Any]) -> tuple[str, list[Any]]:
        """The destination of the datagram, and the control message that answers from there."""
        for level, kind, data in control:
            if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
                _, _, destination = _PKTINFO4.unpack(data[: _PKTINFO4.size])
                back = _PKTINFO4.pack(0, destination, bytes(4))
                return socket.inet_ntop(socket.AF_INET, destination), [(level, kind, back)]
            if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                destination, _ = _PKTINFO6.unpack(data[: _PKTINFO6.size])
                back = _PKTINFO6.pack(destination, 0)
                return socket.inet_ntop(socket.AF_INET6, destination), [(level, kind, back)]
        return self.sock.getsockname()[0], []


_Handler = _Accepting | _Connection | _Datagrams


class _Owner:
    """All that one owner has: how to listen again, and what is open now."""

    def __init__(self) -> None:
        self.listeners: list[tuple[int, Listener]] = []
        self.open: dict[int, _Handler] = {}
        self.hung = False


class Responder:
    """Serves listeners of any number of namespaces; methods may be called from any thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._owners: dict[str, _Owner] = {}
        self._owner_of: dict[int, str] = {}
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._stopping = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def listen(self, owner: str, namespace: int | None, listener: Listener) -> None:
        """Start answering for ``owner`` in a namespace (a descriptor that stays open as long as
        the owner may be healed). OSError with EADDRINUSE when the port is taken."""
        with self._lock:
            state = self._owners.setdefault(owner, _Owner())
            self._open(owner, state, namespace, listener)
            state.listeners.append((-1 if namespace is None else namespace, listener))

    def _open(self, owner: str, state: _Owner, namespace: int | None, listener: Listener) -> None:
        families = (family_of(listener.address),) if listener.address else tuple(Family)
        with entered(namespace):
            sockets = [_listening(listener, family) for family in families]
        for sock in sockets:
            if listener.protocol is Protocol.UDP:
                self._watch(owner, state, sock, _Datagrams(sock, listener))
            else:
                self._watch(owner, state, sock, _Accepting(sock, listener))

    def _watch(self, owner: str, state: _Owner, sock: socket.socket, handler: _Handler) -> None:
        fd = sock.fileno()
        state.open[fd] = handler
        self._owner_of[fd] = owner
        if not state.hung:
            self._epoll.register(fd, select.EPOLLIN)

    def release(self, owner: str) -> None:
        """Stop answering for ``owner`` for good; fine when there is no such owner."""
        with self._lock:
            state = self._owners.pop(owner, None)
            if state is not None:
                self._shut(state)

    def _shut(self, state: _Owner) -> None:
        for fd, handler in list(state.open.items()):
            self._drop(state, fd, handler)

    def _drop(self, state: _Owner, fd: int, handler: _Handler) -> None:
        state.open.pop(fd, None)
        self._owner_of.pop(fd, None)
        handler.sock.close()

    def fault(self, owner: str, kind: str) -> None:
        """``hang``, ``refuse`` or ``heal``. LabError for an unknown owner or kind."""
        with self._lock:
            state = self._owners.get(owner)
            if state is None:
                raise LabError(f"nothing answers for {owner}", hint="name an endpoint address")
            action = {"hang": self._hang, "refuse": self._refuse, "heal": self._heal}.get(kind)
            if action is None:
                raise LabError(f"unknown fault {kind}", hint="hang, refuse, heal")
            action(owner, state)

    def _hang(self, owner: str, state: _Owner) -> None:
        if not state.hung:
            state.hung = True
            for fd in state.open:
                self._epoll.unregister(fd)

    def _refuse(self, owner: str, state: _Owner) -> None:
        self._shut(state)

    def _heal(self, owner: str, state: _Owner) -> None:
        if state.hung:
            state.hung = False
            for fd in state.open:
                self._epoll.register(fd, select.EPOLLIN)
        if not state.open:
            for namespace, listener in state.listeners:
                self._open(owner, state, None if namespace < 0 else namespace, listener)

    def start(self) -> None:
        """Serve in a thread of this process until :meth:`close`."""
        self._thread = threading.Thread(target=self.serve, name="responder", daemon=True)
        self._thread.start()

    def serve(self) -> None:
        """Serve until :meth:`close` is called (from a signal handler or another thread)."""
        while not self._stopping:
            for fd, _ in self._epoll.poll():
                if fd != self._wake:
                    self._dispatch(fd)

    def _dispatch(self, fd: int) -> None:
        with self._lock:
            owner = self._owner_of.get(fd)
            if owner is None:
                return
            state = self._owners[owner]
            handler = state.open[fd]
            match handler:
                case _Accepting():
                    while (connection := handler.accept()) is not None:
                        self._watch(owner, state, connection.sock, connection)
                case _Connection():
                    if not handler.ready():
                        self._drop(state, fd, handler)
                case _Datagrams():
                    handler.ready()

    def close(self) -> None:
        """Stop serving and close everything."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            for owner in list(self._owners):
                self.release(owner)
            if not self._epoll.closed:
                self._epoll.close()
                os.close(self._wake)


def _listening(listener: Listener, family: Family) -> socket.socket:
    sock = sockets.make(family, listener.protocol)
    try:
        sock.setblocking(False)
        if family is Family.IPV6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if listener.protocol in sockets.STREAMS:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((listener.address or _ANY[family], listener.port))
        if listener.protocol in sockets.STREAMS:
            sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
