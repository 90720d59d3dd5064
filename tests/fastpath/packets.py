"""Packets for the tests of the engine: built byte by byte, with right checksums, and cheaply.

Addresses are text. What a test does not name has an ordinary value.
"""

from __future__ import annotations

import ipaddress

from kproxy.core import packet as arithmetic
from kproxy.core.twin.values import SCTP, TCP, UDP

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10


def raw(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def tcp(
    sport: int,
    dport: int,
    flags: int = SYN,
    *,
    sequence: int = 1000,
    acknowledged: int = 0,
    options: bytes = b"",
    data: bytes = b"",
) -> bytes:
    """A segment whose checksum is still 0."""
    head = sport.to_bytes(2) + dport.to_bytes(2) + sequence.to_bytes(4) + acknowledged.to_bytes(4)
    words = 5 + len(options) // 4
    return head + bytes((words << 4, flags)) + b"\xff\xff\0\0\0\0" + options + data


def udp(sport: int, dport: int, data: bytes = b"ask") -> bytes:
    return sport.to_bytes(2) + dport.to_bytes(2) + (8 + len(data)).to_bytes(2) + b"\0\0" + data


def sctp(
    sport: int, dport: int, chunk: int = 1, *, tag: int = 7, data: bytes = b"\0" * 16
) -> bytes:
    body = bytes((chunk, 0)) + (4 + len(data)).to_bytes(2) + data
    return sport.to_bytes(2) + dport.to_bytes(2) + tag.to_bytes(4) + bytes(4) + body


_CHECKS = {TCP: 16, UDP: 6}


def finish(source: bytes, destination: bytes, protocol: int, payload: bytes) -> bytes:
    """A transport payload with its checksum."""
    made = bytearray(payload)
    if protocol == SCTP:
        made[8:12] = arithmetic.sctp_checksum(payload)
    elif protocol in _CHECKS:
        at = _CHECKS[protocol]
        check = arithmetic.checksum(payload, pseudo(source, destination, protocol, len(payload)))
        made[at : at + 2] = (check or 0xFFFF if protocol == UDP else check).to_bytes(2)
    return bytes(made)


def pseudo(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """Sum of a pseudo-header."""
    ends = source + destination
    return arithmetic.ones_sum(ends + length.to_bytes(4) + protocol.to_bytes(4))


def ip(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes,
    *,
    options: bytes = b"",
    fragment: tuple[int, int, bool] | None = None,
    checked: bool = True,
) -> bytes:
    """A packet of either family around a transport payload, whose checksum is filled in.

    ``options`` are IPv4's, or extension headers whose first byte is the type of the first one and
    is followed by them. ``fragment``: id, offset in units of 8 bytes, more to come.
    """
    src, dst = raw(source), raw(destination)
    body = finish(src, dst, protocol, payload) if checked else payload
    if len(src) == 4:
        return ip4(src, dst, protocol, body, options, fragment)
    following, extensions = protocol, b""
    if fragment is not None:
        number, offset, more = fragment
        word = (offset << 3 | more).to_bytes(2)
        extensions = bytes((protocol, 0)) + word + number.to_bytes(4)
        following = 44
    if options:
        chain = bytearray(options[1:])
        chain[_last(options) - 1] = following
        extensions = bytes(chain) + extensions
        following = options[0]
    whole = extensions + body
    head = b"\x60\0\0\0" + len(whole).to_bytes(2) + bytes((following, 64)) + src + dst
    return head + whole


def _last(options: bytes) -> int:
    """Where in ``options`` the last extension header begins."""
    at = 1
    while at + (options[at + 1] + 1) * 8 < len(options):
        at += (options[at + 1] + 1) * 8
    return at


def ip4(
    src: bytes,
    dst: bytes,
    protocol: int,
    body: bytes,
    options: bytes = b"",
    fragment: tuple[int, int, bool] | None = None,
) -> bytes:
    number, offset, more = fragment or (0, 0, False)
    words = 5 + len(options) // 4
    head = bytearray(
        bytes((0x40 | words, 0))
        + (words * 4 + len(body)).to_bytes(2)
        + number.to_bytes(2)
        + (more << 13 | offset).to_bytes(2)
        + bytes((64, protocol, 0, 0))
        + src
        + dst
        + options
    )
    head[10:12] = arithmetic.checksum(head).to_bytes(2)
    return bytes(head) + body


def icmp_error(source: str, destination: str, about: bytes, kind: int, code: int = 0) -> bytes:
    """An ICMP error of the family of its addresses, about the beginning of a packet."""
    src, dst = raw(source), raw(destination)
    message = bytearray(bytes((kind, code)) + bytes(6) + about)
    protocol, start = (1, 0) if len(src) == 4 else (58, pseudo(src, dst, 58, len(message)))
    message[2:4] = arithmetic.checksum(message, start).to_bytes(2)
    return ip(source, destination, protocol, bytes(message), checked=False)


def answer_to(packet: bytes, flags: int = SYN | ACK, data: bytes = b"") -> bytes:
    """What an endpoint answers to a TCP segment or a datagram that reached it (no options)."""
    four = packet[0] >> 4 == 4
    at = 20 if four else 40
    source, destination = (packet[12:16], packet[16:20]) if four else (packet[8:24], packet[24:40])
    protocol = packet[9] if four else packet[6]
    sport, dport = int.from_bytes(packet[at : at + 2]), int.from_bytes(packet[at + 2 : at + 4])
    text = str(ipaddress.ip_address(destination)), str(ipaddress.ip_address(source))
    if protocol == UDP:
        return ip(*text, UDP, udp(dport, sport, data or b"answer"))
    if protocol == SCTP:
        return ip(*text, SCTP, sctp(dport, sport, 0, data=data or b"\0" * 8))
    sequence = int.from_bytes(packet[at + 4 : at + 8])
    segment = tcp(dport, sport, flags, sequence=77, acknowledged=sequence + 1, data=data)
    return ip(*text, TCP, segment)


def header(packet: bytes, *, partial: bool = True) -> tuple[bytes, bytes]:
    """A virtio_net_hdr, and the packet (TCP or UDP, no options) as it goes with it: with
    ``partial`` its checksum field holds the pseudo-header's sum only."""
    if not partial:
        return bytes(10), packet
    four = packet[0] >> 4 == 4
    at = 20 if four else 40
    protocol = packet[9] if four else packet[6]
    ends = packet[12:20] if four else packet[8:40]
    half = len(ends) // 2
    offset = _CHECKS[protocol]
    made = bytearray(packet)
    total = pseudo(ends[:half], ends[half:], protocol, len(packet) - at)
    made[at + offset : at + offset + 2] = total.to_bytes(2)
    fields = bytes((1, 0)) + bytes(4) + at.to_bytes(2, "little") + offset.to_bytes(2, "little")
    return fields, bytes(made)
