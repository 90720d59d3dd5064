"""Packets of every kind that the engine tells apart, by name: what the tests spoil and mix."""

from __future__ import annotations

from tests.fastpath.packets import (
    ACK,
    FIN,
    RST,
    icmp_error,
    ip,
    sctp,
    tcp,
    udp,
)
from tests.fastpath.pair import SCTP, TCP, UDP

POD4, POD6 = "10.180.0.9", "fd00:10::9"
OUT4, OUT6 = "203.0.113.2", "2001:db8:ffff::2"
WEB4, WEB6 = "172.30.0.41", "fd00:30::41"

#: Two IPv4 options and padding; hop-by-hop and destination options, padded.
OPTIONS4 = bytes((0x94, 4, 0, 0, 1, 1, 1, 0))
OPTIONS6 = bytes((0,)) + bytes((60, 0, 1, 4, 0, 0, 0, 0)) + bytes((6, 0, 1, 4, 0, 0, 0, 0))
#: A routing header that still has a segment to visit.
ROUTING6 = bytes((43,)) + bytes((6, 0, 0, 1, 0, 0, 0, 0))
MSS = bytes((2, 4, 5, 180))

SYN4 = ip(POD4, WEB4, TCP, tcp(40000, 80, options=MSS))
ACK4 = ip(POD4, WEB4, TCP, tcp(40000, 80, ACK, sequence=1001, acknowledged=78, data=b"GET /"))


def later(source: str, destination: str, data: bytes, part: tuple[int, int, bool]) -> bytes:
    """A fragment without ports."""
    return ip(source, destination, UDP, data, fragment=part, checked=False)


SAMPLES: dict[str, bytes] = {
    "tcp4 syn": SYN4,
    "tcp4 data": ACK4,
    "tcp4 fin": ip(POD4, WEB4, TCP, tcp(40001, 80, FIN | ACK)),
    "tcp4 rst": ip(POD4, WEB4, TCP, tcp(40002, 80, RST)),
    "tcp4 syn from outside": ip(OUT4, WEB4, TCP, tcp(40000, 80)),
    "tcp4 node port": ip(OUT4, "192.168.0.2", TCP, tcp(40000, 30080)),
    "tcp4 node port on loopback": ip("127.0.0.1", "127.0.0.1", TCP, tcp(40000, 30080)),
    "tcp4 external ip": ip(OUT4, "198.51.100.7", TCP, tcp(40000, 80)),
    "tcp4 options": ip(POD4, WEB4, TCP, tcp(40003, 80), options=OPTIONS4),
    "tcp4 refused": ip(POD4, "172.30.0.45", TCP, tcp(40000, 80, data=b"early")),
    "tcp4 refused ack": ip(POD4, "172.30.0.45", TCP, tcp(40000, 80, ACK, acknowledged=5)),
    "tcp4 no local": ip(OUT4, "172.30.0.48", TCP, tcp(40000, 80)),
    "tcp4 nobody": ip(POD4, "172.30.0.99", TCP, tcp(40000, 80)),
    "tcp4 hairpin": ip("10.180.0.1", WEB4, TCP, tcp(40000, 80)),
    "udp4": ip(POD4, "172.30.0.42", UDP, udp(5000, 53, b"odd")),
    "udp4 without checksum": ip(POD4, "172.30.0.42", UDP, udp(5001, 53), checked=False),
    "udp4 refused": ip(POD4, "172.30.0.46", UDP, udp(5000, 80, b"x" * 600)),
    "udp4 first part": ip(POD4, "172.30.0.42", UDP, udp(5002, 53), fragment=(7, 0, True)),
    "udp4 later part": later(POD4, "172.30.0.42", b"later...", (7, 1, False)),
    "udp4 stray part": later(POD4, "172.30.0.42", b"stray...", (8, 1, True)),
    "udp4 part of nobody": ip(POD4, "172.30.0.99", UDP, udp(5002, 53), fragment=(9, 0, True)),
    "sctp4 init": ip(POD4, "172.30.0.44", SCTP, sctp(6000, 99)),
    "sctp4 data": ip(POD4, "172.30.0.44", SCTP, sctp(6001, 99, 0, data=b"odd")),
    "sctp4 abort": ip(POD4, "172.30.0.44", SCTP, sctp(6002, 99, 6)),
    "sctp4 header": ip(POD4, "172.30.0.44", SCTP, sctp(6003, 99)[:12]),
    "icmp4 echo": ip(POD4, WEB4, 1, bytes((8, 0, 0, 0)) + bytes(12), checked=False),
    "icmp4 about nobody": icmp_error(OUT4, POD4, SYN4[:28], 3, 1),
    "gre": ip(POD4, WEB4, 47, bytes(20), checked=False),
    "tcp6 syn": ip(POD6, WEB6, TCP, tcp(40000, 80)),
    "tcp6 data": ip(POD6, WEB6, TCP, tcp(40000, 80, ACK, data=b"hello")),
    "tcp6 syn from outside": ip(OUT6, WEB6, TCP, tcp(40000, 80)),
    "tcp6 node port": ip(OUT6, "2001:db8::2", TCP, tcp(40000, 30080)),
    "tcp6 refused": ip(POD6, "fd00:30::45", TCP, tcp(40000, 80)),
    "tcp6 extensions": ip(POD6, WEB6, TCP, tcp(40005, 80), options=OPTIONS6),
    "tcp6 on its way": ip(POD6, WEB6, TCP, tcp(40006, 80), options=ROUTING6),
    "udp6": ip(POD6, "fd00:30::42", UDP, udp(5000, 53)),
    "udp6 refused": ip(POD6, "fd00:30::46", UDP, udp(5000, 80, b"y" * 1300)),
    "udp6 first part": ip(POD6, "fd00:30::42", UDP, udp(5002, 53), fragment=(7, 0, True)),
    "udp6 later part": later(POD6, "fd00:30::42", b"later...", (7, 1, False)),
    "udp6 whole after all": ip(POD6, "fd00:30::42", UDP, udp(5003, 53), fragment=(9, 0, False)),
    "sctp6 init": ip(POD6, "fd00:30::44", SCTP, sctp(6000, 99)),
    "icmp6 echo": ip(POD6, WEB6, 58, bytes((128, 0, 0, 0)) + bytes(12), checked=False),
    "icmp6 about nobody": icmp_error(OUT6, POD6, ip(POD6, OUT6, UDP, udp(1, 2)), 3),
}  # fmt: skip
