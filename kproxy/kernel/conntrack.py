"""The kernel's table of tracked UDP flows: listed in bulk, and entries of it deleted.

Own packed messages on a netlink socket, because a table has a hundred thousand entries and is read
while a service waits: :mod:`kproxy.kernel.ctnetlink` has the messages.

A socket acts in the network namespace of the thread that opens it, for life.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple, Self

from kproxy.core.objects import Family
from kproxy.core.stale_flows import Flow
from kproxy.errors import NetlinkError
from kproxy.kernel.ctnetlink import (
    ACK,
    ATTRIBUTE,
    BODY,
    CT_DELETE,
    CT_GET,
    CT_NEW,
    DUMP,
    DUMP_INTERRUPTED,
    HEADER,
    ID,
    LAYOUTS,
    NLMSG_DONE,
    NLMSG_ERROR,
    REQUEST,
    TUPLE_ORIG,
    TUPLE_REPLY,
    ZONE,
    answers,
    contents,
    error_of,
    message,
)

# linux/netlink.h
_NETLINK_NETFILTER = 12
_SOL_NETLINK, _NETLINK_CAP_ACK = 270, 10

#: The kernel writes a dump in datagrams of at most 32 KiB, whatever is offered.
_RECEIVE = 1 << 16

#: A dump is answered at once; this ends the wait for one whose end got lost (struct timeval).
_PATIENCE = struct.pack("@ll", 10, 0)

#: Deletions a send: 35 kB in IPv6, which fits any send buffer. Should every entry be gone already,
#: each is answered, and 300 answers of 0.8 kB fit the buffer that Linux allows by default.
_DELETIONS = 300
_RECEIVE_BUFFER = 212_992

#: How often a dump that broke off is tried.
_TRIES = 3

#: Errors by which a kernel says that it does not know this filter.
_NO_FILTER = (errno.EOPNOTSUPP, errno.EINVAL)


class Deleted(NamedTuple):
    """Of the entries that were to be deleted, those that were, and those that had gone before."""

    entries: int
    gone: int


class Batch:
    """Some flows of the table, and what is needed to delete them."""

    __slots__ = ("_buffer", "_places", "flows")

    def __init__(self, buffer: bytes, places: list[tuple[int, int]], flows: list[Flow]) -> None:
        self.flows = flows
        self._buffer = buffer
        self._places = places

    def handle(self, index: int) -> bytes:
        """Names the entry of one flow to :meth:`Conntrack.delete`: attributes of its message.

        The id goes with the tuple: an entry that a client's next packet has made in the meantime
        has the same tuple but another id, and is left alone. (The id is a hash over the entry's
        place in memory, ``nf_ct_get_id``: one made in the very same place is taken for the old
        one. It costs that client's UDP flow a new choice of endpoint, nothing else.)
        """
        start, end = self._places[index]
        kept = [
            self._buffer[at - ATTRIBUTE.size : past + 3 & ~3]
            for kind, at, past in contents(self._buffer, start + BODY, end)
            if kind in (TUPLE_ORIG, ZONE, ID)
        ]
        return b"".join(kept)


class Conntrack:
    """One family's table. A context manager; use it in one thread."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._layout = LAYOUTS[family]
        self._sequence = 0
        #: Whether the kernel restricts the dump itself; without that it sends every protocol.
        self._filters = True
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
            )
        except OSError as error:
            raise _refused("no access to conntrack", error) from error
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
        self._socket.bind((0, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def udp(self, address: bytes = b"", port: bytes = b"") -> Iterator[Batch]:
        """UDP flows with this original destination, packed; b"" is any.

        Others may come as well (:meth:`coarse`), and a flow may come twice. Read it to the end.
        NetlinkError when the kernel refuses, or breaks off each time.
        """
        for _ in range(_TRIES):
            try:
                if not (yield from self._dump(address, port)):
                    return
            except NetlinkError as refused:
                if not self._filters or refused.errno not in _NO_FILTER:
                    raise
                self._filters = False  # it says so before it lists anything
        raise NetlinkError(
            f"the conntrack table changed during each of {_TRIES} listings", errno.EINTR
        )

    def coarse(self, address: bytes, port: bytes) -> tuple[bytes, bytes]:
        """The part of the table that is listed when this one is asked for.

        In IPv6 it is all of a port: Linux compares IPv6 addresses of a filter the wrong way round
        (ctnetlink_filter_match_tuple, 5.8 to 6.18 at least) and gives every flow but those asked
        for.
        """
        return (b"" if self.family is Family.IPV6 else address), port

    def udp_by_reply(self, source: tuple[bytes, bytes], to: tuple[bytes, bytes]) -> Flow | None:
        """The UDP flow whose replies go from address and port ``source`` to those of ``to``,
        packed; None when there is none. NetlinkError when the kernel refuses."""
        self._sequence = sequence = self._sequence + 1
        asked = self._layout.tuple_(TUPLE_REPLY, source[0], to[0], source[1], to[1])
        self._send(message(CT_GET, REQUEST, sequence, self._layout.code, asked))
        while True:
            buffer = self._receive()
            if buffer is None:
                raise NetlinkError("the answer of conntrack was lost", errno.ENOBUFS)
            length, kind, _, answered, _ = HEADER.unpack_from(buffer)
            if answered != sequence:
                continue
            if kind == CT_NEW:
                return self._layout.walk(buffer, BODY, length)
            code = error_of(buffer, 0, length)
            if code == errno.ENOENT:
                return None
            raise NetlinkError(f"cannot ask conntrack: {os.strerror(code)}", code)

    def delete(self, handles: Iterable[bytes]) -> Deleted:
        """Take entries away, in batches. An entry that is gone already is fine."""
        todo = list(handles)
        gone = 0
        for start in range(0, len(todo), _DELETIONS):
            gone += self._delete(todo[start : start + _DELETIONS])
        return Deleted(len(todo) - gone, gone)

    # --- listing -------------------------------------------------------------------------------

    def _dump(self, address: bytes, port: bytes) -> Generator[Batch, None, bool]:
        """Returns whether the table changed under it, so that it may have a hole."""
        body = self._layout.filter(*self.coarse(address, port)) if self._filters else b""
        self._sequence = sequence = self._sequence + 1
        self._send(message(CT_GET, REQUEST | DUMP, sequence, self._layout.code, body))
        ended = interrupted = False
        while not ended:
            buffer = self._receive()
            if buffer is None:
                interrupted = True
                continue
            batch, ended, hole = self._parse(buffer, sequence)
            interrupted = interrupted or hole
            if batch.flows:
                yield batch
        return interrupted

    def _parse(self, buffer: bytes, sequence: int) -> tuple[Batch, bool, bool]:
        """One datagram: its flows, whether the dump ended with it, and whether it has a hole."""
        layout = self._layout
        mask, skeleton, span, unpack = layout.mask, layout.skeleton, layout.span, layout.unpack
        number = int.from_bytes
        flows: list[Flow] = []
        places: list[tuple[int, int]] = []
        ended = interrupted = False
        at, end = 0, len(buffer)
        while at + HEADER.size <= end:
            length, kind, flags, answered, _ = HEADER.unpack_from(buffer, at)
            if length < HEADER.size or at + length > end:
                raise NetlinkError("a conntrack message is cut off", errno.EBADMSG)
            if answered == sequence:
                interrupted = interrupted or bool(flags & DUMP_INTERRUPTED)
                if kind == CT_NEW:
                    body = at + BODY
                    head = buffer[body : body + span]
                    if length >= BODY + span and number(head, "little") & mask == skeleton:
                        flows.append(unpack(head))
                        places.append((at, at + length))
                    else:
                        walked = layout.walk(buffer, body, at + length)
                        if walked is not None:
                            flows.append(walked)
                            places.append((at, at + length))
                elif kind in (NLMSG_DONE, NLMSG_ERROR):
                    code = error_of(buffer, at, length)
                    if code:
                        raise NetlinkError(f"cannot list conntrack: {os.strerror(code)}", code)
                    ended = True
            at += length + 3 & ~3
        return Batch(buffer, places, flows), ended, interrupted

    # --- deleting ------------------------------------------------------------------------------

    def _delete(self, handles: Sequence[bytes]) -> int:
        """One send. Returns how many were gone already."""
        if any(ATTRIBUTE.unpack_from(handle)[1] & 0xFF != TUPLE_ORIG for handle in handles):
            # Without its tuple a deletion means the whole table.
            raise ValueError("a handle does not begin with the tuple of its flow")
        first = self._sequence + 1
        last = first + len(handles) - 1
        messages = [
            message(CT_DELETE, REQUEST | (ACK if sequence == last else 0), sequence,
                     self._layout.code, handle)
            for sequence, handle in enumerate(handles, first)
        ]  # fmt: skip
        self._sequence = last
        self._send(b"".join(messages))
        # The kernel has worked all of them off when send returns: what it says is there to read.
        gone, answered = 0, False
        while not answered:
            buffer = self._receive(socket.MSG_DONTWAIT)
            if buffer is None:
                raise NetlinkError("answers to a deletion were lost", errno.ENOBUFS)
            for sequence, code in answers(buffer):
                if code == errno.ENOENT:
                    gone += 1
                elif code and sequence >= first:
                    raise NetlinkError(f"cannot delete a tracked flow: {os.strerror(code)}", code)
                answered = answered or sequence == last
        return gone

    # --- the socket ----------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise _refused("conntrack", error) from error

    def _receive(self, flags: int = 0) -> bytes | None:
        """One datagram; None when some were lost for lack of room."""
        try:
            return self._socket.recv(_RECEIVE, flags)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return None
            raise _refused("conntrack does not answer", error) from error


def _refused(what: str, error: OSError) -> NetlinkError:
    return NetlinkError(f"{what}: {error.strerror}", error.errno or 0)
