"""The words for members of sets."""

from __future__ import annotations

import ipaddress

import pytest

from kproxy.core.members import LAYOUTS, size_of, told
from kproxy.core.objects import Family

V4, V6 = Family.IPV4, Family.IPV6


def packed(*parts: str | int) -> bytes:
    """Addresses by their text, ports and numbers by (value, bytes)."""
    made = b""
    for part in parts:
        made += ipaddress.ip_address(part).packed if isinstance(part, str) else part.to_bytes(2)
    return made


@pytest.mark.parametrize(
    ("kind", "family", "member", "words"),
    [
        ("hash:ip,port", V4, packed("10.0.0.1", 80) + b"\x06", "10.0.0.1,tcp:80"),
        ("hash:ip,port", V6, packed("fd00::1", 53) + b"\x11", "fd00::1,udp:53"),
        ("hash:ip,port", V4, packed("10.0.0.1", 80) + b"\x2f", "10.0.0.1,47:80"),
        (
            "hash:ip,port,ip",
            V4,
            packed("10.0.0.1", 65535) + b"\x84" + packed("10.0.0.2"),
            "10.0.0.1,sctp:65535,10.0.0.2",
        ),
        (
            "hash:ip,port,net",
            V6,
            packed("fd00::1", 80) + b"\x06" + packed("fd00:7::") + b"\x20",
            "fd00::1,tcp:80,fd00:7::/32",
        ),
        ("hash:net,port", V4, packed("10.0.0.1", 80) + b"\x06\x20", "10.0.0.1,tcp:80"),
        ("hash:net,port", V4, packed("127.0.0.0", 53) + b"\x11\x08", "127.0.0.0/8,udp:53"),
        ("hash:net,port", V6, packed("fd00::", 80) + b"\x06\x10", "fd00::/16,tcp:80"),
        ("hash:ip", V4, packed("10.0.0.1"), "10.0.0.1"),
        ("bitmap:port", V6, packed(30080), "30080"),
    ],
)
def test_a_member_reads_as_the_tool_spells_it(
    kind: str, family: Family, member: bytes, words: str
) -> None:
    """Every kind, both families, protocols with a name and without."""
    assert told(kind, family, member) == words
    assert len(member) == sum(size_of(part, family) for part in LAYOUTS[kind])
