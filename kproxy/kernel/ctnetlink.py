"""ctnetlink's messages, packed and unpacked: what :mod:`kproxy.kernel.conntrack` speaks. Pure.

A flow stands at fixed offsets as long as all lengths and types before it are what they should be;
:class:`Layout` has a mask of those to hold a message against. One that does not fit (a zone inside
a tuple, a kernel with more to say) is walked attribute by attribute.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator

from kproxy.core.objects import Family
from kproxy.core.stale_flows import Flow
from kproxy.errors import NetlinkError

# linux/netlink.h
NLMSG_ERROR, NLMSG_DONE = 2, 3
REQUEST, ACK, DUMP_INTERRUPTED, DUMP = 0x1, 0x4, 0x10, 0x300
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF
# linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h
CT_NEW, CT_GET, CT_DELETE = 0x100, 0x101, 0x102
TUPLE_ORIG, TUPLE_REPLY, ID, ZONE, _FILTER = 1, 2, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO, _TUPLE_ZONE = 1, 2, 3
_PROTO_NUM, _SRC_PORT, _DST_PORT = 1, 2, 3
_FILTER_ORIG_FLAGS = 1
_FILTER_DST, _FILTER_PROTO, _FILTER_DST_PORT = 1 << 1, 1 << 3, 1 << 5

_UDP = 17

#: family -> (AF_INET…, bytes of an address, types of source and destination address)
_FAMILIES = {Family.IPV4: (socket.AF_INET, 4, 1, 2), Family.IPV6: (socket.AF_INET6, 16, 3, 4)}

HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
#: nlmsghdr and nfgenmsg.
BODY = 20


class Layout:
    """Where things stand in one family's messages, counted from the first attribute.

    ::

        CTA_TUPLE_ORIG                 CTA_TUPLE_REPLY
          CTA_TUPLE_IP                   the same
            source, destination
          CTA_TUPLE_PROTO
            number, source port, destination port
    """

    def __init__(self, family: Family) -> None:
        self.code, self.size, self._source, self._destination = _FAMILIES[family]
        # 4 bytes each before: the tuple, its addresses, each address, the protocol and its number
        # (5 bytes, padded), each port (6 bytes, padded).
        size = self.size
        tuple_ = "12x{}4x{}8x4x4x{}2x4x{}2x".format
        form = tuple_(f"{size}s", f"{size}s", "2x", "2s") + tuple_(
            f"{size}s", f"{size}s", "2s", "2x"
        )
        layout = struct.Struct(f"={form}")
        self.span = layout.size
        #: source, destination, port; then reply source, reply destination, reply source port
        self.unpack: Callable[[bytes], Flow] = layout.unpack
        none, all_ = bytes(size), b"\xff" * size
        blank = self.tuple_(TUPLE_ORIG, none, none, bytes(2), bytes(2))
        blank += self.tuple_(TUPLE_REPLY, none, none, bytes(2), bytes(2))
        full = self.tuple_(TUPLE_ORIG, all_, all_, b"\xff\xff", b"\xff\xff")
        full += self.tuple_(TUPLE_REPLY, all_, all_, b"\xff\xff", b"\xff\xff")
        self.skeleton = int.from_bytes(blank, "little")
        #: Ones wherever a message of a UDP flow is the same for all of them.
        self.mask = ~(self.skeleton ^ int.from_bytes(full, "little")) & (1 << 8 * self.span) - 1

    def tuple_(self, kind: int, source: bytes, destination: bytes, sport: bytes, dport: bytes
               ) -> bytes:  # fmt: skip
        """CTA_TUPLE_ORIG or CTA_TUPLE_REPLY of a UDP flow; parts that are b"" are left out."""
        ip = b"".join(
            attribute(number, part)
            for number, part in ((self._source, source), (self._destination, destination))
            if part
        )
        proto = attribute(_PROTO_NUM, bytes((_UDP,)))
        proto += b"".join(
            attribute(number, part)
            for number, part in ((_SRC_PORT, sport), (_DST_PORT, dport))
            if part
        )
        inner = attribute(_TUPLE_IP | _NESTED, ip) if ip else b""
        return attribute(kind | _NESTED, inner + attribute(_TUPLE_PROTO | _NESTED, proto))

    def filter(self, address: bytes, port: bytes) -> bytes:
        """Attributes of a listing: UDP only, with this original destination where it is given."""
        flags = _FILTER_PROTO
        flags |= (_FILTER_DST if address else 0) | (_FILTER_DST_PORT if port else 0)
        orig_flags = attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", flags))
        return self.tuple_(TUPLE_ORIG, b"", address, b"", port) + attribute(
            _FILTER | _NESTED, orig_flags
        )

    def walk(self, buffer: bytes, at: int, end: int) -> Flow | None:
        """The slow way to a flow: None when it is not of UDP, or lacks something."""
        parts = {kind: (start, stop) for kind, start, stop in contents(buffer, at, end)}
        try:
            orig, reply = (self._walk_tuple(buffer, *parts[kind]) for kind in _TUPLES)
            if orig[_PROTO_NUM, 1] != bytes((_UDP,)):
                return None
            return (
                orig[self._source, 0], orig[self._destination, 0], orig[_DST_PORT, 1],
                reply[self._source, 0], reply[self._destination, 0], reply[_SRC_PORT, 1],
            )  # fmt: skip
        except KeyError:
            return None

    def _walk_tuple(self, buffer: bytes, at: int, end: int) -> dict[tuple[int, int], bytes]:
        """(type, 0 for addresses and 1 for the protocol) -> value."""
        found = {}
        for kind, start, stop in contents(buffer, at, end):
            if kind in (_TUPLE_IP, _TUPLE_PROTO):
                for inner, first, past in contents(buffer, start, stop):
                    found[inner, int(kind == _TUPLE_PROTO)] = buffer[first:past]
        return found


_TUPLES = (TUPLE_ORIG, TUPLE_REPLY)


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def contents(buffer: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(type, start, end) of the value of each attribute. NetlinkError when one is cut off."""
    while at + ATTRIBUTE.size <= end:
        length, kind = ATTRIBUTE.unpack_from(buffer, at)
        if length < ATTRIBUTE.size or at + length > end:
            raise NetlinkError("an attribute of a netlink message is cut off", errno.EBADMSG)
        yield kind & _TYPE_MASK, at + ATTRIBUTE.size, at + length
        at += length + 3 & ~3


def message(kind: int, flags: int, sequence: int, family: int, body: bytes) -> bytes:
    """nlmsghdr and nfgenmsg (version 0, resource 0), then the attributes."""
    return HEADER.pack(BODY + len(body), kind, flags, sequence, 0) + bytes((family, 0, 0, 0)) + body


def answers(buffer: bytes) -> Iterator[tuple[int, int]]:
    """(sequence, errno) of each acknowledgement or error in a datagram."""
    at = 0
    while at + HEADER.size <= len(buffer):
        length, kind, _, sequence, _ = HEADER.unpack_from(buffer, at)
        if length < HEADER.size:
            raise NetlinkError("a netlink message is cut off", errno.EBADMSG)
        if kind == NLMSG_ERROR:
            yield sequence, error_of(buffer, at, length)
        at += length + 3 & ~3


def error_of(buffer: bytes, at: int, length: int) -> int:
    """errno in an answer, 0 in an acknowledgement; NLMSG_DONE has one too."""
    if length < HEADER.size + 4:
        return 0
    return -int(struct.unpack_from("=i", buffer, at + HEADER.size)[0])


LAYOUTS = {family: Layout(family) for family in Family}
