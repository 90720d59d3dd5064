"""Connections given to the kernel: entries of conntrack with their translation, made from outside.

What was carried by something else goes on as if a DNAT rule had translated its first packet. Two
entries of before, one on each side of whoever carried it, make room for the new one.

Messages as in :mod:`kproxy.kernel.ctnetlink`; their numbers are those of linux/netfilter/
nfnetlink_conntrack.h. A socket acts in the network namespace of the thread that opens it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

from kproxy.core.objects import Family
from kproxy.errors import NetlinkError
from kproxy.kernel.ctnetlink import (
    ACK,
    BODY,
    CT_DELETE,
    CT_GET,
    CT_NEW,
    HEADER,
    REQUEST,
    TUPLE_ORIG,
    TUPLE_REPLY,
    answers,
    attribute,
    contents,
    error_of,
    message,
)

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _NETLINK_CAP_ACK = 270, 10
_CREATE, _EXCLUSIVE = 0x400, 0x200

_NESTED = 0x8000
_STATUS, _PROTOINFO, _NAT_SRC, _TIMEOUT, _NAT_DST = 3, 4, 6, 7, 13
_IP, _PROTO = 1, 2
_NAT_PROTO, _PORT_MIN, _PORT_MAX = 3, 1, 2

#: family -> AF_INET…, types of source and destination in a tuple, of the least and greatest address
#: of a translation.
_FAMILIES = {
    Family.IPV4: (socket.AF_INET, 1, 2, 1, 2),
    Family.IPV6: (socket.AF_INET6, 3, 4, 4, 5),
}

#: IPS_SEEN_REPLY, IPS_ASSURED, IPS_CONFIRMED
_SETTLED = struct.pack("!I", 2 | 4 | 8)

_TCP, _UDP = 6, 17

#: Seconds without a packet: Linux' defaults for connections that both sides have spoken on. From
#: the next packet on the kernel's own count.
_PATIENCE = {_TCP: 432_000, _UDP: 120}

#: TCP_CONNTRACK_ESTABLISHED; and sequence numbers that were never seen are not judged
#: (IP_CT_TCP_FLAG_BE_LIBERAL, flags and mask).
_ESTABLISHED = attribute(
    _PROTOINFO | _NESTED,
    attribute(
        1 | _NESTED,
        attribute(1, b"\x03") + attribute(4, b"\x08\x08") + attribute(5, b"\x08\x08"),
    ),
)

#: Flows a send: 80 kB in IPv6. Answers come for what did not work only.
_BATCH = 150
_BUFFER = 1 << 20

#: How often a flow is given whose place a packet on its way has taken in between.
_TRIES = 3

#: Address and port, as they stand in a packet.
Place = tuple[bytes, bytes]


class Gift(NamedTuple):
    """A connection from ``client`` to ``asked``, which ``endpoint`` serves and sees coming from
    ``seen``."""

    protocol: int
    client: Place
    asked: Place
    endpoint: Place
    seen: Place


class ConntrackGifts:
    """One family's table. A context manager; use it in one thread."""

    def __init__(self, family: Family) -> None:
        self._code, self._source, self._destination, *self._range = _FAMILIES[family]
        self._sequence = 0
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
            )
        except OSError as error:
            code = error.errno or 0
            raise NetlinkError(f"no access to conntrack: {error.strerror}", code) from error
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        self._socket.bind((0, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def seen(self, protocol: int, client: Place, asked: Place) -> Place | None:
        """Where answers of a connection go: the client, or behind whom it is hidden. None: the
        table does not know the connection. NetlinkError when the kernel refuses."""
        self._send(self._message(CT_GET, 0, self._tuple(TUPLE_ORIG, protocol, client, asked)))
        while True:
            buffer = self._socket.recv(1 << 16)
            length, kind, _, answered, _ = HEADER.unpack_from(buffer)
            if answered != self._sequence:
                continue
            if kind == CT_NEW:
                return self._reply_to(buffer, length)
            code = error_of(buffer, 0, length)
            if code == errno.ENOENT:
                return None
            raise NetlinkError(f"cannot ask conntrack: {os.strerror(code)}", code)

    def _reply_to(self, buffer: bytes, end: int) -> Place:
        """Destination of a message's CTA_TUPLE_REPLY."""
        parts = {kind: (start, stop) for kind, start, stop in contents(buffer, BODY, end)}
        found = {
            (kind, inner): buffer[first:past]
            for kind, start, stop in contents(buffer, *parts[TUPLE_REPLY])
            if kind in (_IP, _PROTO)
            for inner, first, past in contents(buffer, start, stop)
        }
        return found[_IP, self._destination], found[_PROTO, 3]

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise NetlinkError(f"conntrack: {error.strerror}", error.errno or 0) from error

    def give(self, gifts: Iterable[Gift]) -> int:
        """How many are the kernel's now. NetlinkError when it takes none for what they are."""
        waiting, given = [gift for gift in gifts if gift.protocol in _PATIENCE], 0
        for _ in range(_TRIES):
            again = []
            for start in range(0, len(waiting), _BATCH):
                part = waiting[start : start + _BATCH]
                left = self._give(part)
                given += len(part) - len(left)
                again += left
            waiting = again
        return given

    def _give(self, gifts: Sequence[Gift]) -> list[Gift]:
        """One send. Those whose place is taken."""
        pieces, made = [], {}
        for gift in gifts:
            for client, asked in ((gift.client, gift.asked), (gift.seen, gift.endpoint)):
                pieces.append(self._message(CT_DELETE, 0, self._tuple(TUPLE_ORIG, gift.protocol,
                                                                      client, asked)))  # fmt: skip
            pieces.append(self._message(CT_NEW, _CREATE | _EXCLUSIVE, self._entry(gift)))
            made[self._sequence] = gift
        # Answered in any case: what is there to read has an end.
        nothing = self._tuple(TUPLE_ORIG, _UDP, gifts[0].client, (gifts[0].asked[0], b"\0\0"))
        pieces.append(self._message(CT_DELETE, ACK, nothing))
        last = self._sequence
        taken: list[Gift] = []
        try:
            self._socket.send(b"".join(pieces))
            while True:
                for sequence, code in answers(self._socket.recv(1 << 16, socket.MSG_DONTWAIT)):
                    if sequence == last:
                        return taken
                    if sequence in made and code == errno.EEXIST:
                        taken.append(made[sequence])
                    elif sequence in made and code:
                        raise NetlinkError(f"cannot give conntrack a connection: "
                                           f"{os.strerror(code)}", code)  # fmt: skip
        except OSError as error:
            raise NetlinkError(f"conntrack: {error.strerror}", error.errno or 0) from error

    def _message(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        return message(kind, REQUEST | flags, self._sequence, self._code, body)

    def _entry(self, gift: Gift) -> bytes:
        # Both tuples as they were before any translation: the kernel turns the second one.
        body = self._tuple(TUPLE_ORIG, gift.protocol, gift.client, gift.asked)
        body += self._tuple(TUPLE_REPLY, gift.protocol, gift.asked, gift.client)
        body += self._to(_NAT_DST, gift.endpoint)
        if gift.seen != gift.client:
            body += self._to(_NAT_SRC, gift.seen)
        if gift.protocol == _TCP:
            body += _ESTABLISHED
        body += attribute(_TIMEOUT, struct.pack("!I", _PATIENCE[gift.protocol]))
        return body + attribute(_STATUS, _SETTLED)

    def _tuple(self, kind: int, protocol: int, source: Place, destination: Place) -> bytes:
        ip = attribute(self._source, source[0]) + attribute(self._destination, destination[0])
        ports = attribute(1, bytes((protocol,)))
        ports += attribute(2, source[1]) + attribute(3, destination[1])
        inner = attribute(_IP | _NESTED, ip) + attribute(_PROTO | _NESTED, ports)
        return attribute(kind | _NESTED, inner)

    def _to(self, kind: int, place: Place) -> bytes:
        address, port = place
        inner = b"".join(attribute(bound, address) for bound in self._range)
        ports = attribute(_PORT_MIN, port) + attribute(_PORT_MAX, port)
        return attribute(kind | _NESTED, inner + attribute(_NAT_PROTO | _NESTED, ports))
