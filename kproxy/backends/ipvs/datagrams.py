"""Carries UDP of loopback clients to service addresses: one thread, one socket per client socket.

The kernel says nowhere with a datagram where it was sent to before translation (SO_ORIGINAL_DST is
of TCP and SCTP only), but conntrack knows: it is asked once for each client, and again when the
client comes back after a pause, since it may mean somebody else by then.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from ipaddress import IPv4Address
from typing import NamedTuple

from kproxy import logs
from kproxy.core.objects import Family
from kproxy.core.stale_flows import Flow
from kproxy.errors import NetlinkError
from kproxy.kernel.conntrack import Conntrack

_log = logs.get("ipvs")

#: (address, port)
Place = tuple[str, int]

#: Seconds without a datagram after which a client is forgotten.
IDLE = 120.0

#: Seconds without a datagram after which conntrack is asked anew. It forgets a flow that was not
#: answered after 30 (net.netfilter.nf_conntrack_udp_timeout) and one that was after 120, and the
#: client's next datagram may go elsewhere.
PAUSE = 10.0

#: Clients at most: each has a descriptor. The one that was quiet longest makes room.
MOST = 1024

#: Datagrams that one socket may bring before others have their turn.
_TURN = 64

_WHOLE = 1 << 16

#: Errors that cost a datagram and nothing else: refused, unreachable, forbidden by a rule, too
#: long, or no room for it or for one more socket.
_LOSSES = frozenset(
    {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPERM, errno.EACCES,
     errno.EMSGSIZE, errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN,
     errno.EMFILE, errno.ENFILE}
)  # fmt: skip


class _Client(NamedTuple):
    """Where a client's datagrams go; ``socket`` is connected to it."""

    place: Place
    destination: Place
    socket: socket.socket


class Datagrams:
    """Serves ``front``, a bound socket, in the network namespace of the thread that makes it.

    ``instead`` is the address that is asked in place of one in 127.0.0.0/8.
    """

    def __init__(self, front: socket.socket) -> None:
        self.instead = ""
        self._front = front
        self._place: Place = front.getsockname()
        front.setblocking(False)
        self._conntrack = Conntrack(Family.IPV4)
        #: By place, the one that was quiet longest first; and by descriptor.
        self._clients: dict[Place, tuple[_Client, float]] = {}
        self._by_fd: dict[int, _Client] = {}
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(front, select.EPOLLIN)
        self._epoll.register(self._end, select.EPOLLIN)
        self._thread = threading.Thread(target=self._live, name="loopback-udp", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Nobody is served any more. May be called twice."""
        if self._end < 0:
            return
        os.eventfd_write(self._end, 1)
        self._thread.join()
        os.close(self._end)
        self._end = -1

    # --- the thread ----------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            self._serve()
        except Exception as fault:  # noqa: BLE001
            # Rules still lead here: who is not served is refused, and the log says why.
            _log.fault("UDP from loopback addresses is no longer served", fault)
        finally:
            for client, _ in self._clients.values():
                client.socket.close()
            self._front.close()
            self._conntrack.close()
            self._epoll.close()

    def _serve(self) -> None:
        while True:
            for fd, _ in self._epoll.poll(self._patience()):
                if fd == self._end:
                    return
                if fd == self._front.fileno():
                    self._from_clients()
                elif fd in self._by_fd:
                    self._from_service(self._by_fd[fd])
            self._forget_idle()

    def _patience(self) -> float | None:
        """Seconds to the next client that is to be forgotten."""
        first = next(iter(self._clients.values()), None)
        return None if first is None else max(0.0, first[1] + IDLE - time.monotonic())

    def _forget_idle(self) -> None:
        past = time.monotonic() - IDLE
        while self._clients:
            client, last = next(iter(self._clients.values()))
            if last > past:
                return
            self._forget(client)

    def _from_clients(self) -> None:
        for _ in range(_TURN):
            try:
                data, place = self._front.recvfrom(_WHOLE)
            except OSError as error:
                if error.errno in _LOSSES:
                    return
                raise
            client = self._client(place)
            if client is not None and not _sent(client.socket, data):
                _sent(client.socket, data)

    def _from_service(self, client: _Client) -> None:
        for _ in range(_TURN):
            try:
                data = client.socket.recv(_WHOLE)
            except OSError as error:
                if error.errno in _LOSSES:
                    return
                raise
            self._touch(client)
            try:
                self._front.sendto(data, client.place)
            except OSError as error:
                if error.errno not in _LOSSES:
                    raise

    # --- clients -------------------------------------------------------------------------------

    def _client(self, place: Place) -> _Client | None:
        """Who sends, None when it is unknown where to."""
        known = self._clients.get(place)
        if known is not None and time.monotonic() - known[1] < PAUSE:
            self._touch(known[0])
            return known[0]
        destination = self._destination(place)
        if known is not None:
            if known[0].destination == destination:
                self._touch(known[0])
                return known[0]
            self._forget(known[0])
        return None if destination is None else self._meet(place, destination)

    def _meet(self, place: Place, destination: Place) -> _Client | None:
        if len(self._clients) >= MOST:
            self._forget(next(iter(self._clients.values()))[0])
        try:
            back = _connected(destination)
        except OSError as error:
            if error.errno in _LOSSES:
                return None
            raise
        client = _Client(place, destination, back)
        self._by_fd[back.fileno()] = client
        self._epoll.register(back, select.EPOLLIN)
        self._touch(client)
        return client

    def _touch(self, client: _Client) -> None:
        self._clients.pop(client.place, None)
        self._clients[client.place] = client, time.monotonic()

    def _forget(self, client: _Client) -> None:
        del self._clients[client.place]
        del self._by_fd[client.socket.fileno()]
        client.socket.close()

    def _destination(self, place: Place) -> Place | None:
        """Where a client sent to before it was brought here; None for one that sent here itself."""
        try:
            flow = self._conntrack.udp_by_reply(_packed(self._place), _packed(place))
        except NetlinkError as refused:
            _log.warning("a datagram from loopback is lost", why=refused)
            return None
        return None if flow is None else self._meant(flow)

    def _meant(self, flow: Flow) -> Place | None:
        _, address, port, *_ = flow
        found = str(IPv4Address(address)), int.from_bytes(port, "big")
        if found == self._place:
            return None
        if not IPv4Address(address).is_loopback:
            return found
        return (self.instead, found[1]) if self.instead else None


def _packed(place: Place) -> tuple[bytes, bytes]:
    return IPv4Address(place[0]).packed, place[1].to_bytes(2, "big")


def _connected(destination: Place) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        made.connect(destination)
    except OSError:
        made.close()
        raise
    return made


def _sent(back: socket.socket, data: bytes) -> bool:
    """False when it was not taken: the kernel tells of an earlier loss, and forgets it by that."""
    try:
        back.send(data)
    except OSError as error:
        if error.errno not in _LOSSES:
            raise
        return False
    return True
