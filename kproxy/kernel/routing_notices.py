"""Word of changes to devices, addresses, routes and rules, in the calling thread's namespace."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

from kproxy.core.objects import Value
from kproxy.errors import NetlinkError
from kproxy.kernel.ctnetlink import HEADER, contents
from kproxy.kernel.rtnetlink import (
    ADDRESS_HEAD,
    DEL_ADDRESS,
    DEL_LINK,
    DEL_ROUTE,
    LINK_HEAD,
    NEW_ADDRESS,
    NEW_LINK,
    NEW_ROUTE,
    ROUTE_HEAD,
)

NEW_RULE, DEL_RULE = 32, 33

#: linux/rtnetlink.h: numbers of multicast groups.
_GROUPS = {"link": 1, "address4": 5, "route4": 7, "rule4": 8, "address6": 9, "route6": 11}
_RULE6 = 19
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1

_U32 = struct.Struct("=I")

_IFLA_NAME, _RTA_TABLE, _FRA_PRIORITY, _FRA_TABLE = 3, 15, 6, 15

_VERSIONS = {socket.AF_INET: 4, socket.AF_INET6: 6}


class Notice(Value, frozen=True):
    """One change. ``kind`` is the message's; ``family`` 4 or 6, 0 for a device. ``device`` is a
    device's name, ``index`` its number, ``up`` whether it is; ``table`` of a route or a rule, and
    ``preference`` of a rule."""

    kind: int
    family: int = 0
    device: str = ""
    index: int = 0
    up: bool = False
    table: int = 0
    preference: int = 0


class RoutingNotices:
    """A socket that becomes readable when something was changed. For an event loop."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            socket.NETLINK_ROUTE,
        )
        self._socket.bind((0, 0))
        for group in (*_GROUPS.values(), _RULE6):
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> tuple[list[Notice], bool]:
        """Every notice that waits, and whether the kernel had to leave some out."""
        found: list[Notice] = []
        lost = False
        while True:
            try:
                found += notices(self._socket.recv(1 << 16))
            except BlockingIOError:
                return found, lost
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise NetlinkError(
                        f"no word of routes any more: {error.strerror}", error.errno or 0
                    ) from error
                lost = True

    def close(self) -> None:
        self._socket.close()


def notices(datagram: bytes) -> Iterator[Notice]:
    """What a datagram says; other messages are passed over. Pure."""
    at = 0
    while at + HEADER.size <= len(datagram):
        length, kind = HEADER.unpack_from(datagram, at)[:2]
        if length < HEADER.size:
            return
        body, end = at + HEADER.size, min(at + length, len(datagram))
        if kind in (NEW_LINK, DEL_LINK):
            yield _of_link(kind, datagram, body, end)
        elif kind in (NEW_ADDRESS, DEL_ADDRESS):
            family, _, _, _, index = ADDRESS_HEAD.unpack_from(datagram, body)
            yield Notice(kind, _VERSIONS.get(family, 0), index=index)
        elif kind in (NEW_ROUTE, DEL_ROUTE, NEW_RULE, DEL_RULE):
            yield _of_route(kind, datagram, body, end)
        at += length + 3 & ~3


def _of_link(kind: int, datagram: bytes, body: int, end: int) -> Notice:
    _, _, index, flags, _ = LINK_HEAD.unpack_from(datagram, body)
    name = ""
    for which, start, stop in contents(datagram, body + LINK_HEAD.size, end):
        if which == _IFLA_NAME:
            name = datagram[start:stop].rstrip(b"\0").decode(errors="replace")
    return Notice(kind, device=name, index=index, up=bool(flags & 1))


def _of_route(kind: int, datagram: bytes, body: int, end: int) -> Notice:
    family, _, _, _, table, *_ = ROUTE_HEAD.unpack_from(datagram, body)
    preference = 0
    for which, start, _ in contents(datagram, body + ROUTE_HEAD.size, end):
        # RTA_TABLE and FRA_TABLE have the same number.
        if which in (_RTA_TABLE, _FRA_TABLE):
            (table,) = _U32.unpack_from(datagram, start)
        elif which == _FRA_PRIORITY and kind in (NEW_RULE, DEL_RULE):
            (preference,) = _U32.unpack_from(datagram, start)
    return Notice(kind, _VERSIONS.get(family, 0), table=table, preference=preference)
