"""Checksums, by scapy: what the engine emits must be what scapy would have written."""

from __future__ import annotations

from typing import Any


def check_sums(packet: bytes) -> None:
    """Every checksum of a whole packet, and of what an ICMP error quotes as far as it is there."""
    from scapy.layers.inet import ICMP, IP, TCP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.sctp import SCTP

    read: Any = IPv6(packet) if packet[0] >> 4 == 6 else IP(packet)
    part = read.haslayer("IPv6ExtHdrFragment") or (
        read.version == 4 and (read.frag or read.flags & 1)
    )
    layer = read
    while layer:
        # What a fragment or a quoted packet sums up is not all there.
        whole = layer.name in ("IP", "ICMP") or not (part or _quoted(layer))
        if isinstance(layer, (TCP, UDP, SCTP, ICMP)) or layer.name.startswith("ICMPv6"):
            if whole and not (isinstance(layer, UDP) and layer.chksum == 0):
                _drop(layer)
        elif isinstance(layer, IP):
            _drop(layer)
        layer = layer.payload
    assert bytes(read).hex() == packet.hex()


def _quoted(layer: Any) -> bool:
    above = layer.underlayer
    while above is not None:
        if "error" in above.name:
            return True
        above = above.underlayer
    return False


def _drop(layer: Any) -> None:
    """Have scapy write the field anew."""
    for field in ("chksum", "cksum"):
        if field in layer.fields:
            del layer.fields[field]
