"""A netlink socket that takes orders by the thousand, and answers to questions.

Messages go in batches and only the last one of a batch is acknowledged; what the kernel refuses is
answered all the same (linux/netlink.h), with the number of the message, so that the order is known.
The kernel works a whole batch off before send(2) returns, whatever it refuses of it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Self, TypeVar

from kproxy.errors import NetlinkError
from kproxy.kernel.ctnetlink import (
    ACK,
    DUMP,
    DUMP_INTERRUPTED,
    HEADER,
    NLMSG_DONE,
    NLMSG_ERROR,
    REQUEST,
    answers,
    error_of,
)

_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_GET_STRICT_CHK = 270, 10, 12
_SO_RCVBUFFORCE = 33

#: Bytes a send: any socket takes that much (212,992 less what the kernel keeps for itself).
BATCH = 60_000
#: The kernel writes a listing in datagrams of at most 32 KiB, whatever is offered.
_RECEIVE = 1 << 16

#: Should every order of a batch be refused, its answers have to fit: 768 bytes of memory each, on
#: 64 bits, and room to spare.
_ROOM, _ANSWER = 1 << 20, 1280

#: nlmsg_flags in a message.
_FLAGS, _FLAGS_AT = struct.Struct("=H"), 6

#: How often a listing that broke off is tried.
_TRIES = 3

_Order = TypeVar("_Order")

#: (kind, datagram, start, end) of what follows a message's header.
Message = tuple[int, bytes, int, int]


class Channel:
    """In the network namespace of the thread that makes it, for life. ``what`` names it in errors.

    A context manager; use it in one thread at a time.
    """

    def __init__(self, protocol: int, what: str) -> None:
        self._what = what
        self._sequence = 0
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
            )
        except OSError as error:
            raise NetlinkError(f"no access to {what}: {error.strerror}", error.errno or 0) from None
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        with suppress(OSError):  # before 4.20: the caller sifts what it gets
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        with suppress(PermissionError):  # smaller batches, then
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        room = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        self._most = max(1, room // _ANSWER)
        self._socket.bind((0, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def carry_out(
        self, orders: Iterable[_Order], pack: Callable[[list[_Order], int], list[bytes]], size: int
    ) -> list[tuple[_Order, int]]:
        """Send all orders, in their order; (order, errno) of those that were refused.

        ``pack`` makes messages of some, each of at most ``size`` bytes, with REQUEST as their
        flag and numbers from the one given upwards.
        """
        refused = []
        waiting = iter(orders)
        most = min(self.most, BATCH // size)
        while some := list(islice(waiting, most)):
            first = self.number(len(some))
            messages = pack(some, first)
            last_at = sum(map(len, messages)) - len(messages[-1])
            answered = self.deliver(bytearray().join(messages), last_at)
            refused += [(some[number - first], code) for number, code in answered]
        return refused

    @property
    def most(self) -> int:
        """Messages of a batch, so that its answers fit should all of them be refused."""
        return self._most

    def number(self, count: int) -> int:
        """The first of the numbers that the next ``count`` messages are to have."""
        first = self._sequence + 1
        self._sequence += count
        return first

    def deliver(self, batch: bytearray, last_at: int) -> list[tuple[int, int]]:
        """Send messages of together at most BATCH bytes, numbered by :meth:`number`, of which the
        last begins at ``last_at``; (number, errno) of those that were refused."""
        (flags,) = _FLAGS.unpack_from(batch, last_at + _FLAGS_AT)
        _FLAGS.pack_into(batch, last_at + _FLAGS_AT, flags | ACK)
        self._send(batch)
        return list(self._refusals(self._sequence))

    def _refusals(self, last: int) -> Iterator[tuple[int, int]]:
        """(number, errno) of each message up to ``last`` that was refused."""
        while True:
            for number, code in answers(self._receive()):
                if code:
                    yield number, code
                if number == last:
                    return

    def order(self, kind: int, flags: int, body: bytes) -> int:
        """One message; its errno, 0 when it was carried out."""
        self._sequence += 1
        self._send(message(kind, REQUEST | ACK | flags, self._sequence, body))
        return next((code for _, code in self._refusals(self._sequence)), 0)

    def ask(self, kind: int, body: bytes, flags: int = ACK) -> list[Message]:
        """The messages of an answer. NetlinkError with the kernel's errno when it has none."""
        found, _ = self._ask(kind, body, flags)
        return found

    def dump(self, kind: int, body: bytes) -> list[Message]:
        """The messages of a listing. NetlinkError too when it changes during each try."""
        for _ in range(_TRIES):
            found, interrupted = self._ask(kind, body, DUMP)
            if not interrupted:
                return found
        raise NetlinkError(
            f"{self._what} changed during each of {_TRIES} listings", errno.EINTR, hint="try again"
        )

    def _ask(self, kind: int, body: bytes, flags: int) -> tuple[list[Message], bool]:
        sequence = self._sequence = self._sequence + 1
        self._send(message(kind, REQUEST | flags, sequence, body))
        found: list[Message] = []
        interrupted = False
        while True:
            buffer = self._receive()
            at, end = 0, len(buffer)
            while at + HEADER.size <= end:
                length, kind, marks, number, _ = HEADER.unpack_from(buffer, at)
                if length < HEADER.size or at + length > end:
                    raise NetlinkError(f"a message about {self._what} is cut off", errno.EBADMSG)
                if number == sequence:
                    interrupted = interrupted or bool(marks & DUMP_INTERRUPTED)
                    if kind in (NLMSG_DONE, NLMSG_ERROR):
                        code = error_of(buffer, at, length)
                        if code:
                            why = os.strerror(code)
                            raise NetlinkError(f"cannot look at {self._what}: {why}", code)
                        return found, interrupted
                    found.append((kind, buffer, at + HEADER.size, at + length))
                at += length + 3 & ~3

    def _send(self, data: bytes | bytearray) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise self._failed(error) from error

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_RECEIVE)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> NetlinkError:
        return NetlinkError(f"{self._what}: {error.strerror}", error.errno or 0)


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A header, and what follows it."""
    return HEADER.pack(HEADER.size + len(body), kind, flags, sequence, 0) + body
