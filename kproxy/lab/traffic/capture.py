"""Watches interfaces of namespaces through AF_PACKET: what passed where, and when."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Self

from kproxy.core.objects import Value
from kproxy.kernel.netns import entered

_ETH_P_ALL = 0x0003
_IP_TYPES = (0x0800, 0x86DD)
_SNAP = 65535

#: asm-generic/socket.h; read in the order of sockets, packets are only ordered by their stamps.
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@ll")
_CONTROL = 64


class Sighting(Value, frozen=True):
    """One packet at one interface. ``data`` begins at the IP header; ``when`` is the kernel's time
    of it in seconds since the epoch; ``outgoing``: it left the namespace there."""

    place: str
    interface: str
    outgoing: bool
    when: float
    data: bytes


class Capture:
    """Sees every IP packet of all interfaces of some namespaces while it is open.

    ``places`` are (name, namespace descriptor). Cooked sockets: no link-layer header.
    """

    def __init__(self, places: Iterable[tuple[str, int]]) -> None:
        self._sockets: dict[int, tuple[str, socket.socket]] = {}
        self._poll = select.poll()
        try:
            for name, namespace in places:
                with entered(namespace):
                    sock = socket.socket(
                        socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL)
                    )
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
                self._sockets[sock.fileno()] = (name, sock)
                self._poll.register(sock, select.POLLIN)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def wait(self, timeout: float) -> list[Sighting]:
        """What has come, waiting up to ``timeout`` seconds for the first; [] when nothing did."""
        found: list[Sighting] = []
        for fd, _ in self._poll.poll(max(0.0, timeout) * 1000):
            name, sock = self._sockets[fd]
            found += _read(name, sock)
        return found

    def close(self) -> None:
        for _, sock in self._sockets.values():
            sock.close()
        self._sockets.clear()


def _read(place: str, sock: socket.socket) -> Iterator[Sighting]:
    while True:
        try:
            data, control, _, (interface, protocol, kind, *_) = sock.recvmsg(_SNAP, _CONTROL)
        except OSError:
            return  # nothing left, or the interface went down
        if protocol in _IP_TYPES:
            when = next((_TIMESPEC.unpack(value) for *_, value in control), (0, 0))
            outgoing = kind == socket.PACKET_OUTGOING
            yield Sighting(place, interface, outgoing, when[0] + when[1] / 1e9, data)
