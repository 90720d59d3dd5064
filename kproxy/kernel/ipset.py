"""Sets of (address, protocol, port) that rules may ask about: made, filled, listed and taken away.

Own packed messages on a netlink socket, because a set has fifty thousand members and a tool takes
one system call for each. Messages go in batches and only the last one is acknowledged; what the
kernel refuses is answered all the same (linux/netlink.h), with the number of the message, so that
the member is known. Source of the format: linux/netfilter/ipset/ip_set.h.

A member is packed: address (4 or 16 bytes), port (2, network order), protocol number (1).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Self

from kproxy.core.objects import Family
from kproxy.errors import NetlinkError
from kproxy.kernel.ctnetlink import (
    ACK,
    BODY,
    DUMP,
    HEADER,
    NLMSG_DONE,
    NLMSG_ERROR,
    REQUEST,
    answers,
    attribute,
    contents,
    error_of,
    message,
)

_NETLINK_NETFILTER, _SUBSYSTEM = 12, 6 << 8
_SOL_NETLINK, _NETLINK_CAP_ACK = 270, 10

_CREATE, _DESTROY, _FLUSH, _SWAP, _LIST, _ADD, _DEL, _TYPE = 2, 3, 4, 6, 7, 9, 10, 13

#: Version 6 of the protocol: every kernel since 2.6.39 takes it, and nothing newer is needed.
_VERSION = 6
_PROTOCOL, _NAME, _TYPE_NAME, _REVISION, _FAMILY, _DATA, _ADT = 1, 2, 3, 4, 5, 7, 8
_NAME2 = 3
# Of a set, and of a member.
_TIMEOUT, _CADT_FLAGS, _HASH_SIZE, _MAX_MEMBERS = 6, 8, 18, 19
_IP, _PORT, _PROTO = 1, 4, 7
_NESTED, _NET_ORDER = 0x8000, 0x4000

_KIND = b"hash:ip,port\0"

#: Members at most; memory is taken for those that are there.
MAX_MEMBERS = 1 << 20
#: Where the table begins: it doubles by itself when it fills, which costs a walk each time.
_BUCKETS = 4096

#: The kernel's limit for names, without the closing zero.
MAX_NAME = 31

#: Bytes a send, and a receive: any socket takes that much.
_SEND, _RECEIVE = 60_000, 1 << 16

#: What ipset says beside the usual errors.
BUSY, TYPE_MISMATCH = 4100, 4102
_WORDS = {
    4097: "it speaks another version of ipset",
    4098: "the kernel has no such type of set",
    4099: "there are too many sets",
    BUSY: "the set is in use",
    TYPE_MISMATCH: "the sets are of different types",
    4106: "the type has no such family",
    4108: "the set is in use",
    4352: "the set is full",
    4354: "there is no such protocol",
}
#: How a destroyed set says that a rule uses it: by version of the kernel.
_IN_USE = (BUSY, 4108, errno.EBUSY)

#: How a kernel says that it has no ipset, or not this type of set.
_ABSENT = (errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP, 4098)

_CODES = {Family.IPV4: (socket.AF_INET, 4, 1), Family.IPV6: (socket.AF_INET6, 16, 2)}


class IpSets:
    """Sets of type ``hash:ip,port`` of one family, in the network namespace of the thread that
    makes it. NetlinkError when the kernel refuses, naming set and member."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._code, self._size, kind = _CODES[family]
        size = self._size
        place = 4 + 4 + size
        self._address = struct.pack("=HHHH", place, _IP | _NESTED, 4 + size, kind | _NET_ORDER)
        # In answers the address itself is not marked as being in network order.
        answered = struct.pack("=HHHH", place, _IP | _NESTED, 4 + size, kind)
        data = 4 + place + 8 + 8
        self._data = struct.pack("=HH", data, _DATA | _NESTED)
        self._member = struct.Struct(f"=12s{size}s4s2s2x4s1s3x")
        self._listed = (self._data + answered, _PORT_HEAD, _PROTO_HEAD)
        self._sequence = 0
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        )
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.bind((0, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    # --- sets ----------------------------------------------------------------------------------

    def revision(self) -> int | None:
        """The newest revision of the type that this kernel has; None when it has no ipset."""
        body = attribute(_TYPE_NAME, _KIND) + attribute(_FAMILY, bytes((self._code,)))
        try:
            for buffer, at, end in self._ask(_TYPE, body):
                for kind, start, _ in contents(buffer, at, end):
                    if kind == _REVISION:
                        return buffer[start]
        except NetlinkError as refused:
            if refused.errno not in _ABSENT:
                raise
        return None

    def create(self, name: str) -> None:
        """Make a set. Fine when there is the very same; another one of this name and type gives
        way to an empty one, in one step for the rules that use it."""
        try:
            self._create(name)
        except NetlinkError as refused:
            if refused.errno != errno.EEXIST:
                raise
            self._replace(name)

    def destroy(self, name: str) -> bool:
        """Whether there is no such set now: a rule that uses it keeps it."""
        try:
            self._order(_DESTROY, name)
        except NetlinkError as refused:
            if refused.errno in _IN_USE:
                return False
            if refused.errno not in _ABSENT:
                raise
        return True

    def flush(self, name: str) -> None:
        self._order(_FLUSH, name)

    def swap(self, name: str, other: str) -> None:
        """Each gets the other's members, and the rules that use it."""
        self._order(_SWAP, name, attribute(_NAME2, _text(other)))

    def _create(self, name: str) -> None:
        revision = self.revision()
        if revision is None:
            raise NetlinkError(
                f"cannot make set {name}: this kernel has no sets of addresses and ports",
                errno.EOPNOTSUPP,
                hint="try: modprobe -a ip_set_hash_ipport xt_set",
            )
        data = _number(_HASH_SIZE, _BUCKETS) + _number(_MAX_MEMBERS, MAX_MEMBERS)
        body = attribute(_TYPE_NAME, _KIND) + attribute(_REVISION, bytes((revision,)))
        body += attribute(_FAMILY, bytes((self._code,))) + attribute(_DATA | _NESTED, data)
        self._order(_CREATE, name, body)

    def _replace(self, name: str) -> None:
        spare = f"{name[: MAX_NAME - 4]}-NEW"
        self.destroy(spare)
        self._create(spare)
        try:
            self.swap(name, spare)
        except NetlinkError as refused:
            raise NetlinkError(
                f"set {name} is another program's: {refused.what}",
                refused.errno,
                hint=f"try: ipset destroy {name}",
            ) from refused
        finally:
            self.destroy(spare)

    # --- members -------------------------------------------------------------------------------

    def add(self, name: str, members: Iterable[bytes]) -> None:
        """Put members in; those that are there already are fine."""
        self._send_members(_ADD, name, members)

    def remove(self, name: str, members: Iterable[bytes]) -> None:
        """Take members out; those that are gone already are fine."""
        self._send_members(_DEL, name, members)

    def members(self, name: str) -> set[bytes] | None:
        """All members; None when there is no such set as :meth:`create` makes."""
        found: set[bytes] = set()
        ours = False
        try:
            for buffer, at, end in self._ask(_LIST, attribute(_NAME, _text(name)), DUMP):
                for kind, start, stop in contents(buffer, at, end):
                    if kind == _DATA:
                        ours = self._is_ours(buffer, at, end, start, stop)
                    elif kind == _ADT and ours:
                        self._take(buffer, start, stop, found)
        except NetlinkError as refused:
            if refused.errno not in _ABSENT:
                raise
        return found if ours else None

    def _is_ours(self, buffer: bytes, at: int, end: int, start: int, stop: int) -> bool:
        """Whether the head of a listing is that of a set made here."""
        head = {kind: buffer[a:b] for kind, a, b in contents(buffer, at, end)}
        data = {kind: buffer[a:b] for kind, a, b in contents(buffer, start, stop)}
        return (
            head.get(_TYPE_NAME) == _KIND
            and head.get(_FAMILY) == bytes((self._code,))
            and data.get(_MAX_MEMBERS) == struct.pack(">I", MAX_MEMBERS)
            and not data.keys() & {_TIMEOUT, _CADT_FLAGS}
        )

    def _take(self, buffer: bytes, start: int, stop: int, found: set[bytes]) -> None:
        """The members of one message: alike in a set of ours, byte for byte."""
        first, second, third = self._listed
        if (stop - start) % self._member.size:
            raise NetlinkError("a listing of a set has members of another form", errno.EBADMSG)
        for a, address, b, port, c, protocol in self._member.iter_unpack(buffer[start:stop]):
            if a != first or b != second or c != third:
                raise NetlinkError("a listing of a set has members of another form", errno.EBADMSG)
            found.add(address + port + protocol)

    def _send_members(self, command: int, name: str, members: Iterable[bytes]) -> None:
        size = self._size
        head = bytes((self._code, 0, 0, 0)) + _version() + attribute(_NAME, _text(name))
        shape = struct.Struct(f"=IHHII{len(head) + 12}s{size}s4s2s2x4s1s3x")
        head += self._data + self._address
        pack, kind, length = shape.pack, _SUBSYSTEM | command, shape.size
        waiting = iter(members)
        while some := list(islice(waiting, _SEND // length)):
            first = self._sequence + 1
            self._sequence = last = self._sequence + len(some)
            parts = [
                pack(length, kind, REQUEST | ACK if number == last else REQUEST, number, 0, head,
                     one[:size], _PORT_HEAD, one[size:-1], _PROTO_HEAD, one[-1:])
                for number, one in enumerate(some, first)
            ]  # fmt: skip
            self._send(b"".join(parts))
            refused = self._refusal(first, last)
            if refused is not None:
                number, code = refused
                verb = "add" if command == _ADD else "remove"
                what = f"{verb} {self.told(some[number - first])}: set {name}"
                raise _error(what, code)

    def told(self, member: bytes) -> str:
        """A member as people write it."""
        address = socket.inet_ntop(self._code, member[: self._size])
        port = int.from_bytes(member[self._size : -1], "big")
        protocol = {6: "tcp", 17: "udp", 132: "sctp"}.get(member[-1], str(member[-1]))
        return f"{address},{protocol}:{port}"

    # --- messages ------------------------------------------------------------------------------

    def _order(self, command: int, name: str, more: bytes = b"") -> None:
        """One message that is acknowledged."""
        self._sequence += 1
        body = _version() + attribute(_NAME, _text(name)) + more
        kind = _SUBSYSTEM | command
        self._send(message(kind, REQUEST | ACK, self._sequence, self._code, body))
        refused = self._refusal(self._sequence, self._sequence)
        if refused is not None:
            raise _error(f"{_VERBS[command]} set {name}", refused[1])

    def _refusal(self, first: int, last: int) -> tuple[int, int] | None:
        """(number of the message, errno) of the first one of a batch that was refused. Read until
        the last one is answered: the kernel has worked all of them off by then."""
        found = None
        while True:
            for number, code in answers(self._receive()):
                if code and number >= first and found is None:
                    found = number, code
                if number == last:
                    return found

    def _ask(self, command: int, body: bytes, flags: int = ACK) -> Iterator[tuple[bytes, int, int]]:
        """(datagram, start, end of the attributes) of each message of an answer."""
        self._sequence = sequence = self._sequence + 1
        kind = _SUBSYSTEM | command
        self._send(message(kind, REQUEST | flags, sequence, self._code, _version() + body))
        while True:
            buffer = self._receive()
            at = 0
            while at + HEADER.size <= len(buffer):
                length, kind, _, number, _ = HEADER.unpack_from(buffer, at)
                if length < HEADER.size or at + length > len(buffer):
                    raise NetlinkError("a message about sets is cut off", errno.EBADMSG)
                if number == sequence:
                    if kind in (NLMSG_DONE, NLMSG_ERROR):
                        code = error_of(buffer, at, length)
                        if code:
                            raise _error("look at sets", code)
                        return
                    yield buffer, at + BODY, at + length
                at += length + 3 & ~3

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise NetlinkError(f"ipset: {error.strerror}", error.errno or 0) from error

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_RECEIVE)
        except OSError as error:
            raise NetlinkError(f"ipset: {error.strerror}", error.errno or 0) from error


_PORT_HEAD = struct.pack("=HH", 6, _PORT | _NET_ORDER)
_PROTO_HEAD = struct.pack("=HH", 5, _PROTO)

_VERBS = {_CREATE: "make", _DESTROY: "destroy", _FLUSH: "empty", _SWAP: "swap"}


def _version() -> bytes:
    return attribute(_PROTOCOL, bytes((_VERSION,)))


def _text(name: str) -> bytes:
    return name.encode() + b"\0"


def _number(kind: int, value: int) -> bytes:
    return attribute(kind | _NET_ORDER, struct.pack(">I", value))


def _error(what: str, code: int) -> NetlinkError:
    return NetlinkError(f"cannot {what}: {_WORDS.get(code) or os.strerror(code)}", code)
