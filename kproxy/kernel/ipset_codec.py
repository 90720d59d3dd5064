"""ipset's messages, packed and unpacked: what :mod:`kproxy.kernel.ipset` speaks. Pure.

All members of a set look alike on the wire but for their own bytes, so messages are made and read
by columns: the first byte of all members is one slice with a stride, and so is the second. That
costs a few dozen slices for a thousand members where packing them one by one costs a call each:
55,000 messages take 2 ms, not 13. Source of the format: linux/netfilter/ipset/ip_set.h.

::

    IPSET_ATTR_DATA                     a member, in a listing and in an order
      IPSET_ATTR_IP    { IPADDR }
      IPSET_ATTR_IP2   { IPADDR }       the kernel lists it before the port; packed it comes later
      IPSET_ATTR_PORT
      IPSET_ATTR_CIDR2, or IPSET_ATTR_CIDR
      IPSET_ATTR_PROTO
"""

from __future__ import annotations

import errno
import socket
import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from operator import itemgetter
from typing import NamedTuple

from kproxy.core.members import KINDS, LAYOUTS, MAX_MEMBERS, Part, size_of
from kproxy.core.objects import Family
from kproxy.errors import NetlinkError
from kproxy.kernel.ctnetlink import HEADER, REQUEST, attribute, contents

SUBSYSTEM = 6 << 8
CREATE, DESTROY, SWAP, LIST, ADD, DEL, TYPE = 2, 3, 6, 7, 9, 10, 13

#: Version 6 of the protocol: every kernel since 2.6.39 takes it, and nothing newer is needed.
_VERSION = 6
_PROTOCOL, NAME, TYPE_NAME, REVISION, FAMILY, FLAGS, DATA, ADT = 1, 2, 3, 4, 5, 6, 7, 8
NAME2 = 3
# Of a set.
PORT_TO, TIMEOUT, CADT_FLAGS, BITMASK = 5, 6, 8, 12
HASH_SIZE, MAX_ELEMENTS, NETMASK, ELEMENTS = 18, 19, 20, 24
# Of a member.
_IP, _CIDR, PORT, _PROTO, _IP2, _CIDR2 = 1, 3, 4, 7, 20, 21
NESTED, NET_ORDER = 0x8000, 0x4000

#: Bytes of nfgenmsg, before the attributes.
HEAD = 4

#: Of a listing: the sets without their members.
LIST_HEADERS = 1 << 2

#: family -> (AF_INET…, type of an address attribute)
_CODES = {Family.IPV4: (socket.AF_INET, 1), Family.IPV6: (socket.AF_INET6, 2)}

#: Parts in the order of the wire -> (type of the attribute, nested in another one, byte order
#: marked). A protocol and a prefix have one byte, which has no order.
_WIRE = {
    Part.ADDRESS: (_IP, True, True),
    Part.OTHER: (_IP2, True, True),
    Part.PORT: (PORT, False, True),
    Part.PREFIX: (_CIDR2, False, False),
    Part.LENGTH: (_CIDR, False, False),
    Part.PROTOCOL: (_PROTO, False, False),
}
_PARTS = {number: part for part, (number, _, _) in _WIRE.items()}


class Head(NamedTuple):
    """A set without its members, of which there are ``elements``. ``ours``: made as
    :class:`kproxy.kernel.ipset.IpSets` makes it, in every respect that its members or a rule could
    feel. ``family``: it is of the family that was asked for, so that its members have our form."""

    kind: str
    elements: int
    ours: bool
    family: bool = True


class Form:
    """One member of one kind and family on the wire.

    ``size`` bytes packed; ``listed`` and ``ordered`` are a member all zeros as the kernel lists it
    and as it is sent; ``places`` tells of each packed byte where it stands in both.
    """

    def __init__(self, kind: str, family: Family) -> None:
        self.kind = kind
        self._family = family
        layout = LAYOUTS[kind]
        _, address = _CODES[family]
        starts, at = {}, 0
        for part in layout:
            starts[part] = at
            at += size_of(part, family)
        self.size = at
        self._sizes = {part: size_of(part, family) for part in layout}
        self._split = [(part, starts[part], starts[part] + self._sizes[part]) for part in layout]
        listed = ordered = b""
        places = [0] * self.size
        for part, (number, nested, marked) in _WIRE.items():
            if part not in starts:
                continue
            size = self._sizes[part]
            for index in range(size):
                # Behind the head of all, of the attribute, and of the address in it.
                places[starts[part] + index] = 4 + len(listed) + 4 + 4 * nested + index
            mark = NET_ORDER if marked else 0
            zeros = bytes(size)
            if nested:
                # In a listing the byte order of an address is not marked; in an order it must be.
                listed += attribute(number | NESTED, attribute(address, zeros))
                ordered += attribute(number | NESTED, attribute(address | mark, zeros))
            else:
                listed += attribute(number | mark, zeros)
                ordered += attribute(number | mark, zeros)
        self.listed = attribute(DATA | NESTED, listed)
        self.ordered = attribute(DATA | NESTED, ordered)
        self.places = tuple(places)
        padding = _padding(self._sizes, self.listed)
        self._alike = [
            (index, bytes((value,)))
            for index, value in enumerate(self.listed)
            if index not in places and index not in padding
        ]
        self._each = struct.Struct(f"{self.size}s")

    def unpack(self, data: bytes) -> Iterable[bytes]:
        """The members in the listing ``data``, packed.

        One that says more than we write (``nomatch``, by somebody's hand) has a byte more, so that
        it never equals one that is wanted. NetlinkError when one is of another form altogether.
        """
        unit, size = len(self.listed), self.size
        count, rest = divmod(len(data), unit)
        if rest or any(data[at::unit] != value * count for at, value in self._alike):
            return [self._walk(data, at, end) for kind, at, end in contents(data, 0, len(data))
                    if kind == DATA]  # fmt: skip
        packed = bytearray(count * size)
        for index, at in enumerate(self.places):
            packed[index::size] = data[at::unit]
        return map(itemgetter(0), self._each.iter_unpack(packed))

    def _walk(self, data: bytes, at: int, end: int) -> bytes:
        """The slow way to a member."""
        found, more = {}, b""
        for number, start, past in contents(data, at, end):
            part = _PARTS.get(number)
            if part in self._sizes:
                found[part] = data[start + 4 * _WIRE[part][1] : past]
            else:
                more = b"\1"
        if found.keys() != self._sizes.keys():
            what = f"a listing of a set of type {self.kind} has members of another form"
            raise NetlinkError(what, errno.EBADMSG)
        return b"".join(found[part] for part, _, _ in self._split) + more

    def orders(self, command: int, name: str, members: Sequence[bytes], first: int) -> bytearray:
        """A message for each member, numbered from ``first``; none asks for an answer."""
        size, count = self.size, len(members)
        packed = b"".join(members)
        body = head(self._family) + named(name) + self.ordered
        template = HEADER.pack(HEADER.size + len(body), SUBSYSTEM | command, REQUEST, 0, 0) + body
        unit, begin = len(template), len(template) - len(self.ordered)
        made = bytearray(template * count)
        numbers = array("I", range(first, first + count)).tobytes()
        for index in range(4):
            made[_NUMBER_AT + index :: unit] = numbers[index::4]
        for index, at in enumerate(self.places):
            made[begin + at :: unit] = packed[index::size]
        return made

    def unit(self, name: str) -> int:
        """Bytes of one message."""
        return HEADER.size + HEAD + len(named(name)) + len(self.ordered)


#: Where the number of a message stands in its header.
_NUMBER_AT = 8


def _padding(sizes: Mapping[Part, int], listed: bytes) -> frozenset[int]:
    """Bytes that fill attributes up to four: the kernel does not say what is in them."""
    found: set[int] = set()
    for number, _, past in contents(listed, 4, len(listed)):
        size = sizes[_PARTS[number]]
        found.update(range(past, past + -size % 4))
    return frozenset(found)


@cache
def form(kind: str, family: Family) -> Form:
    return Form(kind, family)


def family_code(kind: str, family: Family) -> int:
    """The family that a set of this kind has: one of ports is for both, and says neither."""
    return _CODES[family][0] if Part.ADDRESS in LAYOUTS[kind] else socket.AF_UNSPEC


def options(kind: str) -> bytes:
    """What a set is made with, as attributes."""
    buckets = KINDS[kind].buckets
    if buckets:
        return number(HASH_SIZE, buckets) + number(MAX_ELEMENTS, MAX_MEMBERS)
    return _port(PORT, 0) + _port(PORT_TO, 0xFFFF)


def head_of(buffer: bytes, at: int, end: int, family: Family) -> tuple[str, Head] | None:
    """(name, head) of the set that a message of a listing begins; None when it goes on with one."""
    head = {kind: buffer[a:b] for kind, a, b in contents(buffer, at, end)}
    if DATA not in head:
        return None
    made = head[DATA]
    data = {kind: made[a:b] for kind, a, b in contents(made, 0, len(made))}
    kind = _string(head.get(TYPE_NAME, b""))
    elements = int.from_bytes(data.get(ELEMENTS, b""), "big")
    same = kind in KINDS and head.get(FAMILY) == bytes((family_code(kind, family),))
    ours = same and _is_plain(kind, data)
    return _string(head.get(NAME, b"")), Head(kind, elements, ours, same)


def _is_plain(kind: str, data: Mapping[int, bytes]) -> bool:
    """Whether a set has our options and no others."""
    if data.keys() & {TIMEOUT, CADT_FLAGS, NETMASK, BITMASK}:
        return False
    if not KINDS[kind].buckets:
        return data.get(PORT) == b"\0\0" and data.get(PORT_TO) == b"\xff\xff"
    return data.get(MAX_ELEMENTS) == struct.pack(">I", MAX_MEMBERS)


def head(family: Family) -> bytes:
    """nfgenmsg: family, version 0, resource 0."""
    return bytes((_CODES[family][0], 0, 0, 0))


def version() -> bytes:
    return attribute(_PROTOCOL, bytes((_VERSION,)))


def named(name: str) -> bytes:
    """The attributes that nearly every message begins with."""
    return version() + attribute(NAME, text(name))


def text(name: str) -> bytes:
    return name.encode() + b"\0"


def _string(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def number(kind: int, value: int) -> bytes:
    return attribute(kind | NET_ORDER, struct.pack(">I", value))


def _port(kind: int, value: int) -> bytes:
    return attribute(kind | NET_ORDER, struct.pack(">H", value))
