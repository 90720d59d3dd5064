"""Answers built from the packet that they answer: RST, and ICMP port unreachable."""

from __future__ import annotations

from kproxy.core import packet as arithmetic
from kproxy.core.objects import Family
from kproxy.core.twin.parse import ICMP, Parsed
from kproxy.core.twin.values import TCP

_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10

#: (type, code) of "port unreachable".
_PORT_UNREACHABLE = {Family.IPV4: b"\x03\x03", Family.IPV6: b"\x01\x04"}
#: How much of the packet goes into the answer: RFC 1812 section 4.3.2.3, RFC 4443 section 2.4.
_LONGEST = {Family.IPV4: 576, Family.IPV6: 1280}
_IP_HEADER = {Family.IPV4: 20, Family.IPV6: 40}


def answerable(parsed: Parsed) -> bool:
    """Nobody is answered who cannot be a single host (RFC 1122 section 3.2.2)."""
    source = parsed.source
    if parsed.family is Family.IPV4:
        return 0 < source[0] < 224
    return source[0] != 0xFF and any(source)


def refusal(packet: bytes, parsed: Parsed) -> bytes:
    """RST for TCP, port unreachable for all else. A RST must not be refused."""
    return reset(packet, parsed) if parsed.protocol == TCP else unreachable(packet, parsed)


def reset(packet: bytes, parsed: Parsed) -> bytes:
    """RFC 9293 section 3.10.7.1: what the answer to a segment of no connection carries."""
    at = parsed.transport
    sport, dport = packet[at : at + 2], packet[at + 2 : at + 4]
    sequence, flags = packet[at + 4 : at + 8], packet[at + 13]
    if flags & _ACK:
        numbers, answer = packet[at + 8 : at + 12] + bytes(4), _RST
    else:
        length = parsed.end - at - (packet[at + 12] >> 4) * 4
        length += bool(flags & _SYN) + bool(flags & _FIN)
        ack = (int.from_bytes(sequence) + length) & 0xFFFFFFFF
        numbers, answer = bytes(4) + ack.to_bytes(4), _RST | _ACK
    segment = bytearray(dport + sport + numbers + bytes((0x50, answer)) + bytes(6))
    segment[16:18] = _with_pseudo(parsed, TCP, segment).to_bytes(2)
    return _header(parsed, TCP, len(segment), tos=0) + bytes(segment)


def unreachable(packet: bytes, parsed: Parsed) -> bytes:
    family = parsed.family
    quoted = packet[: min(parsed.end, _LONGEST[family] - _IP_HEADER[family] - 8)]
    message = bytearray(_PORT_UNREACHABLE[family] + bytes(6) + quoted)
    if family is Family.IPV4:
        check = arithmetic.checksum(message)
    else:
        check = _with_pseudo(parsed, ICMP[family], message)
    message[2:4] = check.to_bytes(2)
    # Precedence 6, internetwork control (RFC 1812 section 4.3.2.5).
    return _header(parsed, ICMP[family], len(message), tos=0xC0) + bytes(message)


def _with_pseudo(parsed: Parsed, protocol: int, payload: bytearray) -> int:
    """Checksum of an answer, which goes from the packet's destination to its source."""
    pseudo = parsed.destination + parsed.source + len(payload).to_bytes(4) + protocol.to_bytes(4)
    return arithmetic.checksum(payload, arithmetic.ones_sum(pseudo))


def _header(parsed: Parsed, protocol: int, payload: int, tos: int) -> bytes:
    ends = parsed.destination + parsed.source
    if parsed.family is Family.IPV6:
        return (
            bytes((0x60 | tos >> 4, (tos & 15) << 4, 0, 0))
            + payload.to_bytes(2)
            + bytes((protocol, 64))
            + ends
        )
    made = bytearray(bytes((0x45, tos)) + (20 + payload).to_bytes(2) + b"\0\0\x40\0")
    made += bytes((64, protocol, 0, 0)) + ends
    made[10:12] = arithmetic.checksum(made).to_bytes(2)
    return bytes(made)
