"""Counters that rules count packets with: made, read and taken away.

Objects of the kernel's accounting (``-m nfacct``), shared by all tables, families and variants of a
network namespace. A handful of them, so each order is a message of its own. Source of the format:
linux/netfilter/nfnetlink_acct.h.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from typing import Self

from kproxy.core.objects import Value
from kproxy.errors import NetlinkError
from kproxy.kernel.ctnetlink import (
    ACK,
    BODY,
    DUMP,
    HEADER,
    NLMSG_DONE,
    NLMSG_ERROR,
    REQUEST,
    attribute,
    contents,
    error_of,
    message,
)

_NETLINK_NETFILTER, _SUBSYSTEM = 12, 7 << 8
_NEW, _GET, _DEL = 0, 1, 3
_NAME, _PACKETS, _USE = 1, 2, 4
_EXCLUSIVE, _CREATE = 0x200, 0x400

#: The kernel's limit for names, without the closing zero.
MAX_NAME = 31
_RECEIVE = 1 << 16

#: How a kernel says that it has no such part of netlink.
_ABSENT = (errno.EINVAL, errno.EOPNOTSUPP)


class Counted(Value, frozen=True):
    """``packets`` since the counter was made, and how many ``rules`` count with it now."""

    packets: int
    rules: int


class Counters:
    """The counters of the network namespace of the thread that makes it. NetlinkError when the
    kernel refuses, or has none."""

    def __init__(self) -> None:
        self._sequence = 0
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        )
        self._socket.bind((0, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ensure(self, name: str) -> None:
        """Make a counter; one that is there counts on."""
        try:
            self._order(_NEW, _CREATE | _EXCLUSIVE, name, "make")
        except NetlinkError as refused:
            if refused.errno != errno.EEXIST:
                raise

    def remove(self, name: str) -> bool:
        """Whether there is no such counter now: a rule that counts with it keeps it."""
        try:
            self._order(_DEL, 0, name, "remove")
        except NetlinkError as refused:
            if refused.errno == errno.EBUSY:
                return False
            if refused.errno != errno.ENOENT:
                raise
        return True

    def all(self) -> dict[str, Counted]:
        """Every counter by its name, other people's too; none where the kernel has no such part."""
        found = {}
        try:
            for buffer, at, end in self._answers(_GET, DUMP, b"", "list counters"):
                parts = {kind: buffer[a:b] for kind, a, b in contents(buffer, at, end)}
                name = parts.get(_NAME, b"").rstrip(b"\0").decode(errors="replace")
                packets = int.from_bytes(parts.get(_PACKETS, b""), "big")
                # The list of counters itself holds one use.
                found[name] = Counted(packets, int.from_bytes(parts.get(_USE, b""), "big") - 1)
        except NetlinkError as refused:
            if refused.errno not in _ABSENT:
                raise
        return found

    def _order(self, command: int, flags: int, name: str, verb: str) -> None:
        body = attribute(_NAME, name.encode() + b"\0")
        for _ in self._answers(command, flags | ACK, body, f"{verb} counter {name}"):
            pass

    def _answers(
        self, command: int, flags: int, body: bytes, what: str
    ) -> Iterator[tuple[bytes, int, int]]:
        """(datagram, start, end of the attributes) of each message of an answer."""
        self._sequence = sequence = self._sequence + 1
        try:
            self._socket.send(message(_SUBSYSTEM | command, REQUEST | flags, sequence, 0, body))
            while True:
                buffer = self._socket.recv(_RECEIVE)
                at = 0
                while at + HEADER.size <= len(buffer):
                    length, kind, _, number, _ = HEADER.unpack_from(buffer, at)
                    if length < HEADER.size or at + length > len(buffer):
                        raise NetlinkError(f"cannot {what}: the answer is cut off", errno.EBADMSG)
                    if number == sequence and kind in (NLMSG_DONE, NLMSG_ERROR):
                        _check(what, error_of(buffer, at, length))
                        return
                    if number == sequence:
                        yield buffer, at + BODY, at + length
                    at += length + 3 & ~3
        except OSError as error:
            raise NetlinkError(f"cannot {what}: {error.strerror}", error.errno or 0) from error


def _check(what: str, code: int) -> None:
    if code:
        raise NetlinkError(f"cannot {what}: {os.strerror(code)}", code)
