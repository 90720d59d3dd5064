"""nf_tables as others change it: its notifications, and the generation of its rules.

The kernel counts a namespace's transactions: each raises the generation by one. Whoever listens is
told what each one changed, and then, by NEWGEN, whose it was. Source: linux/netfilter/nf_tables.h
and nfnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from enum import IntEnum

from kproxy.core.objects import Family, Value
from kproxy.errors import NetlinkError

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10
_GROUP = 7
_SOL_NETLINK, _ADD_MEMBERSHIP, _DROP_MEMBERSHIP = 270, 1, 2
_REQUEST, _ERROR = 0x1, 2
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF
_GEN_ID, _GEN_PID, _GEN_NAME = 1, 2, 3
#: A datagram of notifications holds as many messages as fit into a page or two.
_BUFFER = 64 * 1024
#: Bytes that may wait to be heard: the news of some 20,000 rules. Memory is taken when that much
#: waits only; the default, a fortieth of it, would lose a chain of a few hundred rules.
_WAITING = 8 << 20
#: News that are taken in at once (5 µs each): a dispatch chain of 5,000 services that is emptied.
#: Where more was changed, all has to be looked at anyway.
_MOST = 10_000
#: The limit of net.core.rmem_max does not bind who may change rules (CAP_NET_ADMIN).
_SO_RCVBUFFORCE = 33
_MODULO = 1 << 32


class Kind(IntEnum):
    """Messages that say something about tables, chains, rules, sets and transactions."""

    NEWTABLE = 0
    DELTABLE = 2
    NEWCHAIN = 3
    DELCHAIN = 5
    NEWRULE = 6
    DELRULE = 8
    NEWSET = 9
    DELSET = 11
    NEWSETELEM = 12
    DELSETELEM = 14
    NEWGEN = 15


_GETGEN = 16
#: Kind -> attributes with the name of the table and of the chain (0: it has none).
_NAMES = {
    Kind.NEWTABLE: (1, 0),
    Kind.DELTABLE: (1, 0),
    Kind.NEWCHAIN: (1, 3),
    Kind.DELCHAIN: (1, 3),
    Kind.NEWRULE: (1, 2),
    Kind.DELRULE: (1, 2),
    Kind.NEWSET: (1, 0),
    Kind.DELSET: (1, 0),
    Kind.NEWSETELEM: (1, 0),
    Kind.DELSETELEM: (1, 0),
}
_KNOWN = {(_SUBSYSTEM << 8) + kind: kind for kind in Kind}


#: linux/netfilter.h: NFPROTO_IPV4, NFPROTO_IPV6
_PROTOCOLS = {2: Family.IPV4, 10: Family.IPV6}


class Event(Value, frozen=True):
    """One change, or the end of a transaction (NEWGEN: ``generation``, ``program``, ``pid``).

    ``family`` is one of netfilter's (NFPROTO_IPV4…). ``pid`` is the one of the host, which a
    process in a container does not know itself by.
    """

    kind: Kind
    family: int = 0
    table: str = ""
    chain: str = ""
    generation: int = 0
    program: str = ""
    pid: int = 0

    @property
    def version(self) -> Family | None:
        """None: of no IP family alone."""
        return _PROTOCOLS.get(self.family)

    @property
    def what(self) -> str:
        """Kind, table and chain, to be told."""
        return f"{self.kind.name} {self.table} {self.chain}".rstrip()


def events(datagram: bytes) -> Iterator[Event]:
    """What a datagram of notifications says; kinds that are not known are passed over. Pure."""
    at = 0
    while at + _HEADER.size <= len(datagram):
        length, number, _, _, _ = _HEADER.unpack_from(datagram, at)
        if length < _HEADER.size:
            return
        kind = _KNOWN.get(number)
        if kind is not None:
            attributes = _attributes(datagram, at + _HEADER.size + 4, at + length)
            yield _event(kind, datagram[at + _HEADER.size], attributes)
        at += length + 3 & ~3


def _event(kind: Kind, family: int, attributes: dict[int, bytes]) -> Event:
    if kind is Kind.NEWGEN:
        return Event(
            kind,
            generation=int.from_bytes(attributes.get(_GEN_ID, b""), "big"),
            program=_text(attributes.get(_GEN_NAME, b"")),
            pid=int.from_bytes(attributes.get(_GEN_PID, b""), "big"),
        )
    table, chain = _NAMES[kind]
    return Event(kind, family, _text(attributes.get(table, b"")), _text(attributes.get(chain, b"")))


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _attributes(data: bytes, at: int, end: int) -> dict[int, bytes]:
    found = {}
    end = min(end, len(data))
    while at + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = data[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
    return found


def generations(first: int, last: int) -> int:
    """How many transactions lie between two generations; the counter starts again after 2^32."""
    return (last - first) % _MODULO


class Listener:
    """Hears of every transaction in the namespace of the thread that made it.

    It can be made deaf for a time: the kernel then does not make messages that nobody wants (those
    of 160,000 rules would not fit into any buffer either). Not for two threads at once.
    """

    def __init__(self) -> None:
        self._hears = False
        self._news = _socket()
        with suppress(PermissionError):
            self._news.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _WAITING)
        try:
            self._questions = _socket()
        except BaseException:
            self._news.close()
            raise
        self.hear()

    def fileno(self) -> int:
        """Readable when there is something to hear."""
        return self._news.fileno()

    def hear(self) -> None:
        if not self._hears:
            self._news.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP)
            self._hears = True

    def deafen(self) -> None:
        """What was said before can still be heard."""
        if self._hears:
            self._news.setsockopt(_SOL_NETLINK, _DROP_MEMBERSHIP, _GROUP)
            self._hears = False

    def heard(self) -> tuple[list[Event], bool]:
        """Everything that waits; or nothing, and that it is too much or that the kernel had to
        leave something out."""
        found: list[Event] = []
        lost = False
        while True:
            try:
                datagram = self._news.recv(_BUFFER, socket.MSG_DONTWAIT)
                if not lost:
                    found += events(datagram)
                    lost = len(found) > _MOST
            except BlockingIOError:
                return [] if lost else found, lost
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise _refused("hear of changes of rules", error.errno or 0) from error
                lost = True

    def generation(self) -> int:
        """The number of the last transaction. NetlinkError when the kernel does not say it."""
        request = _HEADER.pack(_HEADER.size + 4, (_SUBSYSTEM << 8) + _GETGEN, _REQUEST, 1, 0)
        self._questions.send(request + bytes(4))
        answer = self._questions.recv(_BUFFER)
        if _HEADER.unpack_from(answer)[1] == _ERROR:
            code = -struct.unpack_from("=i", answer, _HEADER.size)[0]
            raise _refused("learn the generation of rules", code)
        return next(iter(events(answer))).generation

    def close(self) -> None:
        with suppress(OSError):
            self._news.close()
        self._questions.close()


def _socket() -> socket.socket:
    made = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
    )
    # A socket without an address of its own hears nothing.
    made.bind((0, 0))
    return made


def _refused(what: str, code: int) -> NetlinkError:
    return NetlinkError(
        f"cannot {what}: {os.strerror(code)}",
        code,
        hint="changes by others are found at syncPeriod only",
    )
