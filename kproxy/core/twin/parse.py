"""What a packet is, from its bytes: addresses, ports, what it says, and where its parts begin.

A header that contradicts itself is BAD. What we could not translate anyway is OTHER: a protocol
without ports, an ICMP echo, a packet on its way through a routing header.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from kproxy.core.objects import Family, Value
from kproxy.core.twin.states import Event
from kproxy.core.twin.values import SCTP, TCP, UDP


class Kind(IntEnum):
    """Of a packet, by what can be looked up for it."""

    BAD = 0
    OTHER = 1
    PORTS = 2  # has ports: whole, or the first fragment
    LATER = 3  # a fragment without ports
    ERROR = 4  # an ICMP error, with the beginning of another packet


class Parsed(Value, frozen=True):
    """Offsets count from the first byte of the IP header. ``transport``: where the header after
    IP's begins, ``end``: where the packet ends by its own account. ``fragment`` is the id of a
    datagram that comes in parts, None for a whole one. ``inner``: what an ICMP error speaks of."""

    kind: Kind
    family: Family = Family.IPV4
    protocol: int = 0
    source: bytes = b""
    destination: bytes = b""
    transport: int = 0
    end: int = 0
    ports: tuple[int, int] = (0, 0)
    event: Event = Event.DATA
    fragment: int | None = None
    inner: Parsed | None = None


BAD = Parsed(Kind.BAD)

#: Bytes of a transport header that have to be there.
HEADERS = {TCP: 20, UDP: 8, SCTP: 12}
#: Of the packet within an ICMP error there are 8 at least (RFC 792).
_INNER_HEADER = 8

ICMP = {Family.IPV4: 1, Family.IPV6: 58}
#: Types that carry the packet they are about: unreachable, time exceeded, parameter problem, and
#: for IPv6 packet too big.
ERRORS = {Family.IPV4: frozenset({3, 11, 12}), Family.IPV6: frozenset({1, 2, 3, 4})}
ICMP_HEADER = 8

_SKIPPED = frozenset({0, 43, 60})  # hop-by-hop, routing, destination options
_ROUTING, _FRAGMENT = 43, 44
#: RFC 8200 lets each come once, destination options twice: more is an attempt to keep us busy.
_MOST_EXTENSIONS = 8

_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10
_CHUNKS = {
    1: Event.BEGIN, 2: Event.AGREE, 6: Event.ABORT,
    7: Event.FINISH, 8: Event.FINISH, 14: Event.FINISH,
}  # fmt: skip


def parse(packet: bytes) -> Parsed:
    return _parse(packet, 0, within=False)


def _parse(packet: bytes, at: int, *, within: bool) -> Parsed:
    """``within``: it is the packet in an ICMP error, of which only the beginning need be there."""
    if len(packet) - at < 1:
        return BAD
    match packet[at] >> 4:
        case 4:
            return _parse4(packet, at, within=within)
        case 6:
            return _parse6(packet, at, within=within)
    return BAD


def _parse4(packet: bytes, at: int, *, within: bool) -> Parsed:
    room = len(packet) - at
    if room < 20:
        return BAD
    header = (packet[at] & 15) * 4
    total = int.from_bytes(packet[at + 2 : at + 4])
    if header < 20 or header > room or total < header or (total > room and not within):
        return BAD
    word = int.from_bytes(packet[at + 6 : at + 8])
    more, offset = word & 0x2000, word & 0x1FFF
    found = Parsed(
        Kind.OTHER,
        Family.IPV4,
        packet[at + 9],
        packet[at + 12 : at + 16],
        packet[at + 16 : at + 20],
        at + header,
        at + min(total, room),
        fragment=int.from_bytes(packet[at + 4 : at + 6]) if more or offset else None,
    )
    return _with(found, kind=Kind.LATER) if offset else _transport(packet, found, within=within)


def _parse6(packet: bytes, at: int, *, within: bool) -> Parsed:
    room = len(packet) - at
    if room < 40:
        return BAD
    total = 40 + int.from_bytes(packet[at + 4 : at + 6])
    if total > room and not within:
        return BAD
    end, place, protocol = at + min(total, room), at + 40, packet[at + 6]
    fragment, offset, through = None, 0, False
    for _ in range(_MOST_EXTENSIONS):
        if protocol not in _SKIPPED and protocol != _FRAGMENT:
            break
        if end - place < 8:
            return BAD
        following = packet[place]
        if protocol == _FRAGMENT:
            word = int.from_bytes(packet[place + 2 : place + 4])
            offset = word >> 3
            # Without offset and "more" it is whole after all (RFC 6946).
            if word & 1 or offset:
                fragment = int.from_bytes(packet[place + 4 : place + 8])
            length = 8
        else:
            length = (packet[place + 1] + 1) * 8
            through = through or (protocol == _ROUTING and packet[place + 3] != 0)
        if end - place < length:
            return BAD
        place, protocol = place + length, following
        if offset:
            break
    else:
        return BAD
    found = Parsed(
        Kind.OTHER, Family.IPV6, protocol, packet[at + 8 : at + 24], packet[at + 24 : at + 40],
        place, end, fragment=fragment,
    )  # fmt: skip
    if through:
        return found
    return _with(found, kind=Kind.LATER) if offset else _transport(packet, found, within=within)


def _with(found: Parsed, **changes: object) -> Parsed:
    return msgspec.structs.replace(found, **changes)


def _transport(packet: bytes, found: Parsed, *, within: bool) -> Parsed:
    at, left = found.transport, found.end - found.transport
    if found.protocol == ICMP[found.family]:
        return _error(packet, found) if not within else found
    if found.protocol not in HEADERS:
        return found
    if left < (_INNER_HEADER if within else HEADERS[found.protocol]):
        return BAD
    ports = int.from_bytes(packet[at : at + 2]), int.from_bytes(packet[at + 2 : at + 4])
    event = Event.DATA
    if not within and found.protocol == TCP:
        header = (packet[at + 12] >> 4) * 4
        if header < 20 or header > left:
            return BAD
        event = tcp_event(packet[at + 13])
    elif not within and found.protocol == SCTP and left > HEADERS[SCTP]:
        event = _CHUNKS.get(packet[at + 12], Event.DATA)
    return _with(found, kind=Kind.PORTS, ports=ports, event=event)


def tcp_event(flags: int) -> Event:
    if flags & _RST:
        return Event.ABORT
    if flags & _SYN:
        return Event.AGREE if flags & _ACK else Event.BEGIN
    return Event.FINISH if flags & _FIN else Event.DATA


def _error(packet: bytes, found: Parsed) -> Parsed:
    """An ICMP error about a packet with ports, or OTHER."""
    at = found.transport
    if found.fragment is not None:
        return found
    if found.end - at < ICMP_HEADER:
        return BAD
    if packet[at] not in ERRORS[found.family]:
        return found
    inner = _parse(packet[: found.end], at + ICMP_HEADER, within=True)
    if inner.kind is not Kind.PORTS or inner.family is not found.family:
        return found
    return _with(found, kind=Kind.ERROR, inner=inner)
