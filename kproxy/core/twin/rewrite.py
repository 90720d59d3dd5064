"""New addresses and ports in a packet, and its checksums brought up to date.

Checksums are corrected by what changed and never taken anew: what was damaged on its way to us is
still seen to be damaged where it arrives.
"""

from __future__ import annotations

from kproxy.core import packet as arithmetic
from kproxy.core.objects import Family, Value
from kproxy.core.twin.parse import ICMP, ICMP_HEADER, Parsed
from kproxy.core.twin.values import SCTP, TCP, UDP


class Tuple(Value, frozen=True):
    """Both ends of one direction of a flow."""

    source: bytes
    destination: bytes
    ports: tuple[int, int]
    protocol: int

    @property
    def reversed(self) -> Tuple:
        return Tuple(self.destination, self.source, self.ports[::-1], self.protocol)


def tuple_of(parsed: Parsed) -> Tuple:
    return Tuple(parsed.source, parsed.destination, parsed.ports, parsed.protocol)


#: Where the checksum is in a transport header that sums with the addresses.
CHECKS = {TCP: 16, UDP: 6}
SCTP_CHECK = 8
ICMP_CHECK = 2

#: virtio_net_hdr (linux/virtio_net.h), 10 bytes: flags, GSO type, header length, GSO size, start
#: and offset of the checksum, in the machine's byte order.
HEADER_LENGTH = 10
NEEDS_CSUM = 1


def partial(header: bytes) -> tuple[int, int] | None:
    """(start, offset) when the checksum is still to be finished: the field holds the sum of the
    pseudo-header, not inverted, and the device adds the rest. None when it is complete."""
    if len(header) < HEADER_LENGTH or not header[0] & NEEDS_CSUM:
        return None
    return int.from_bytes(header[6:8], "little"), int.from_bytes(header[8:10], "little")


def partial_fits(header: bytes, parsed: Parsed) -> bool:
    """Whether the header, if it speaks of a checksum at all, speaks of the one that we know."""
    place = partial(header)
    if place is None:
        return True
    offset = {**CHECKS, SCTP: SCTP_CHECK, ICMP[parsed.family]: ICMP_CHECK}.get(parsed.protocol)
    return place == (parsed.transport, offset)


def translate(packet: bytes, parsed: Parsed, new: Tuple, *, partial: bool) -> bytes:
    """A packet with ports, under other addresses and ports. ``partial``: see :func:`partial`."""
    made = bytearray(packet)
    addresses(made, 0, parsed, new.source, new.destination)
    at = parsed.transport
    old_ports, new_ports = bytes(made[at : at + 4]), _ports(new.ports)
    made[at : at + 4] = new_ports
    moved = (parsed.source + parsed.destination, new.source + new.destination)
    if parsed.protocol == SCTP:
        if not partial and new_ports != old_ports and parsed.fragment is None:
            _sctp(made, packet, at, parsed.end)
        return bytes(made)
    place = at + CHECKS[parsed.protocol]
    old = int.from_bytes(made[place : place + 2])
    if partial:
        check = 0xFFFF ^ arithmetic.update_range(0xFFFF ^ old, *moved)
    elif parsed.protocol == UDP and old == 0:
        return bytes(made)
    else:
        check = arithmetic.update_range(old, moved[0] + old_ports, moved[1] + new_ports)
        if parsed.protocol == UDP and check == 0:
            check = 0xFFFF
    made[place : place + 2] = check.to_bytes(2)
    return bytes(made)


def addresses(made: bytearray, at: int, parsed: Parsed, source: bytes, destination: bytes) -> None:
    """New addresses in the IP header at ``at``, whose own checksum (IPv4) follows."""
    if parsed.family is Family.IPV6:
        made[at + 8 : at + 40] = source + destination
        return
    old = int.from_bytes(made[at + 10 : at + 12])
    new = source + destination
    made[at + 10 : at + 12] = arithmetic.update_range(old, made[at + 12 : at + 20], new).to_bytes(2)
    made[at + 12 : at + 20] = new


def translate_error(
    packet: bytes,
    parsed: Parsed,
    source: bytes,
    destination: bytes,
    inner: Tuple,
    *,
    partial: bool,
) -> bytes:
    """An ICMP error under other addresses, about a packet under ``inner``."""
    assert parsed.inner is not None
    within = parsed.inner
    made = bytearray(packet)
    start = parsed.transport + ICMP_HEADER
    before = bytes(made[start : parsed.end])
    addresses(made, start, within, inner.source, inner.destination)
    old_ports, new_ports = bytes(made[within.transport : within.transport + 4]), _ports(inner.ports)
    made[within.transport : within.transport + 4] = new_ports
    place = within.transport + CHECKS.get(within.protocol, 0)
    # Often only 8 bytes of the header are there, and TCP's checksum is not among them.
    if within.protocol in CHECKS and place + 2 <= within.end:
        old = int.from_bytes(made[place : place + 2])
        if within.protocol != UDP or old:
            check = arithmetic.update_range(
                old,
                within.source + within.destination + old_ports,
                inner.source + inner.destination + new_ports,
            )
            check = 0xFFFF if within.protocol == UDP and check == 0 else check
            made[place : place + 2] = check.to_bytes(2)
    _icmp_check(made, parsed, before, source + destination, partial=partial)
    addresses(made, 0, parsed, source, destination)
    return bytes(made)


def _icmp_check(
    made: bytearray, parsed: Parsed, before: bytes, ends: bytes, *, partial: bool
) -> None:
    place = parsed.transport + ICMP_CHECK
    check = int.from_bytes(made[place : place + 2])
    # ICMPv6 sums with the addresses (RFC 4443 section 2.3), ICMP does not.
    old_ends = parsed.source + parsed.destination if parsed.family is Family.IPV6 else b""
    new_ends = ends if parsed.family is Family.IPV6 else b""
    if partial and not old_ends:
        return
    if partial:
        check = 0xFFFF ^ arithmetic.update_range(0xFFFF ^ check, old_ends, new_ends)
    else:
        after = bytes(made[parsed.transport + ICMP_HEADER : parsed.end])
        check = arithmetic.update_range(check, old_ends + before, new_ends + after)
    made[place : place + 2] = check.to_bytes(2)


def _ports(ports: tuple[int, int]) -> bytes:
    return ports[0].to_bytes(2) + ports[1].to_bytes(2)


def _sctp(made: bytearray, packet: bytes, at: int, end: int) -> None:
    """CRCs are linear: the difference between two packets is the difference between their sums,
    also when what was in the field was wrong."""
    old = int.from_bytes(arithmetic.sctp_checksum(packet[at:end]))
    new = int.from_bytes(arithmetic.sctp_checksum(made[at:end]))
    field = int.from_bytes(packet[at + 8 : at + 12])
    made[at + 8 : at + 12] = (field ^ old ^ new).to_bytes(4)
