"""The sockets of a responder: one that listens, its connections, one of datagrams.

A handler reads what has come and makes the answers; when they leave is its caller's affair: handed
a :data:`Later`, it gives each answer to it instead of sending it at once.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from kproxy.core.objects import Protocol, Value
from kproxy.lab.traffic.wire import Answer, join_host_port, next_request, reply

if TYPE_CHECKING:
    from kproxy.lab.traffic.grpc import Exchange

#: Takes what sends one answer; it is called when the answer is due.
Later = Callable[[Callable[[], None]], None]

#: The option that sends small answers at once. SCTP_NODELAY is 3 (linux/sctp.h).
_AT_ONCE = {
    Protocol.TCP: (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    Protocol.SCTP: (socket.IPPROTO_SCTP, 3),
}

_READ = 65536

#: The first line of HTTP/2; no method of HTTP/1.1, and no line that a person types.
_PREFACE = b"PRI * HTTP/2.0\r\n"

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


class Connection:
    """One accepted connection."""

    def __init__(self, sock: socket.socket, listener: Listener, client: Any) -> None:
        self.sock = sock
        self.buffer = b""
        #: The client sends no more: what is left to do is to answer.
        self.ended = False
        self._grpc: Exchange | None = None
        local = sock.getsockname()
        self._answer = Answer(
            listener.name,
            join_host_port(client[0], client[1]),
            join_host_port(local[0], local[1]),
            listener.protocol,
        )

    def ready(self, later: Later | None) -> bool:
        """Serve what has come; False when the connection is over."""
        try:
            data = self.sock.recv(_READ)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            self.ended = True
            return False
        self.buffer += data
        try:
            if self._grpc is not None or self.buffer.startswith(_PREFACE):
                self._converse(later)
                return True
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
                if later is None:
                    self._send(reply(request, answer), request.close)
                else:
                    later(partial(self._send, reply(request, answer), request.close))
        except (ValueError, OSError):
            return False

    def _converse(self, later: Later | None) -> None:
        """HTTP/2: what was said is the library's affair."""
        if self._grpc is None:
            from kproxy.lab.traffic.grpc import Exchange

            self._grpc = Exchange()
            self.sock.sendall(self._grpc.greeting)
        answer = self._grpc.heard(self.buffer)
        self.buffer = b""
        if later is None or not answer:
            self._send(answer, False)
        else:
            later(partial(self._send, answer, False))

    def _send(self, data: bytes, last: bool) -> None:
        # Answers are far smaller than a socket buffer: a client that does not read them for that
        # long loses its connection.
        self.sock.sendall(data)
        if last:
            self.sock.shutdown(socket.SHUT_WR)


class Accepting:
    """A listening socket of a protocol with connections."""

    def __init__(self, sock: socket.socket, listener: Listener) -> None:
        self.sock = sock
        self.listener = listener

    def accept(self) -> Connection | None:
        try:
            sock, client = self.sock.accept()
        except OSError:
            return None
        sock.setblocking(False)
        sock.setsockopt(*_AT_ONCE[self.listener.protocol], 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        return Connection(sock, self.listener, client)


class Datagrams:
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

    def ready(self, later: Later | None) -> None:
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
            if request is None:
                continue
            if later is None:
                self._send(reply(request, answer), back, client)
            else:
                later(partial(self._send, reply(request, answer), back, client))

    def _send(self, data: bytes, back: list[Any], client: Any) -> None:
        with suppress(OSError):
            self.sock.sendmsg([data], back, 0, client)

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


Handler = Accepting | Connection | Datagrams
