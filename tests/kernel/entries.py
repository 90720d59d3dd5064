"""Entries put into the conntrack table of the calling thread's namespace, many at once."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from contextlib import closing
from typing import NamedTuple

from kproxy.core.objects import Family, family_of
from kproxy.kernel.ctnetlink import (
    CT_NEW,
    LAYOUTS,
    REQUEST,
    TUPLE_ORIG,
    TUPLE_REPLY,
    ZONE,
    attribute,
    message,
)

_CREATE_EXCLUSIVE = 0x400 | 0x200
_NETLINK_NETFILTER = 12
_STATUS, _TIMEOUT, _PROTOINFO = 3, 7, 4
#: SEEN_REPLY, ASSURED, CONFIRMED: a flow in both directions.
_ESTABLISHED = 0xE
_SEND = 150_000

TCP, UDP, SCTP = 6, 17, 132


class Entry(NamedTuple):
    """A flow: ``10.0.0.1:4000`` to ``destination``, sent on to ``place`` (b the same: left alone).

    ``masked`` is the source that the place sees, "" for the client's own.
    """

    source: str
    destination: str
    place: str
    masked: str = ""
    protocol: int = UDP
    zone: int = 0


def split(text: str) -> tuple[bytes, bytes]:
    """``192.0.2.1:53`` or ``[2001:db8::1]:53``, packed."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.inet_pton(family, host), int(port).to_bytes(2)


def put(entries: Iterable[Entry]) -> None:
    """Create them, unacknowledged but for the last: OSError when that was refused."""
    packed = [_create(entry) for entry in entries]
    with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)) as door:
        door.bind((0, 0))
        size = max(map(len, packed))
        step = _SEND // size
        for start in range(0, len(packed), step):
            door.send(b"".join(packed[start : start + step]))
        door.setblocking(False)
        try:
            answer = door.recv(65536)
        except BlockingIOError:
            return  # nothing was refused
    raise OSError(-struct.unpack_from("=i", answer, 16)[0], "conntrack took no entry")


def _create(entry: Entry) -> bytes:
    family = family_of(entry.source.rpartition(":")[0])
    layout = LAYOUTS[family]
    source, sport = split(entry.source)
    destination, dport = split(entry.destination)
    place, place_port = split(entry.place)
    masked, masked_port = split(entry.masked) if entry.masked else (source, sport)
    tuples = layout.tuple_(TUPLE_ORIG, source, destination, sport, dport)
    tuples += layout.tuple_(TUPLE_REPLY, place, masked, place_port, masked_port)
    if entry.protocol != UDP:
        number = attribute(1, bytes((UDP,)))
        tuples = tuples.replace(number, attribute(1, bytes((entry.protocol,))))
    body = tuples + attribute(_STATUS, struct.pack(">I", _ESTABLISHED))
    body += attribute(_TIMEOUT, struct.pack(">I", 600))
    if entry.protocol == TCP:
        # CTA_PROTOINFO_TCP { CTA_PROTOINFO_TCP_STATE: ESTABLISHED }
        body += attribute(_PROTOINFO, attribute(1, attribute(1, b"\x03")))
    if entry.zone:
        body += attribute(ZONE, struct.pack(">H", entry.zone))
    return message(CT_NEW, REQUEST | _CREATE_EXCLUSIVE, 1, layout.code, body)


def family(entry: Entry) -> Family:
    return family_of(entry.source.rpartition(":")[0])
