"""Canonical text of addresses and ranges."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.core.address import canonical_cidr, canonical_ip, special_use


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("255.255.255.255", "255.255.255.255"),
        ("010.001.000.009", "10.1.0.9"),
        ("10.0.0.256", None),
        ("10.0.0", None),
        ("10.0.0.1.2", None),
        ("10.0.0.١", None),
        (" 10.0.0.1", None),
        ("10.0.0.1\n", None),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:c000:201", "192.0.2.1"),
        ("::192.0.2.1", "::192.0.2.1"),
        ("::1", "::1"),
        ("fe80::1%eth0", None),
        ("1" * 5000 + ".0.0.1", None),
        (":" * 5000, None),
        ("", None),
        ("example.com", None),
    ],
)
def test_canonical_ip(text: str, canonical: str | None) -> None:
    """Every spelling of an address gives one text; anything else gives None."""
    assert canonical_ip(text) == canonical


@given(st.binary(min_size=16, max_size=16) | st.binary(min_size=2, max_size=2))
def test_ipv6_text_is_inet_ntops(packed: bytes) -> None:
    """IPv6 text equals what the system prints, except that mapped addresses are IPv4."""
    packed = packed.rjust(16, b"\0")
    text = socket.inet_ntop(socket.AF_INET6, packed)
    mapped = packed[:12] == b"\0" * 10 + b"\xff\xff"
    expected = socket.inet_ntop(socket.AF_INET, packed[12:]) if mapped else text
    assert canonical_ip(text) == expected
    assert canonical_ip(":".join(packed[i : i + 2].hex() for i in range(0, 16, 2))) == expected


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("010.0.0.0/08", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("10.0.0.1/33", None),
        ("10.0.0.1", None),
        ("10.0.0.1/", None),
        ("10.0.0.1/-1", None),
        ("10.0.0.1/8/8", None),
        ("2001:db8::1/32", "2001:db8::/32"),
        ("::/0", "::/0"),
        ("2001:db8::/129", None),
        ("::ffff:10.1.0.0/104", "10.0.0.0/8"),
        ("::ffff:10.1.0.0/95", None),
    ],
)
def test_canonical_cidr(text: str, canonical: str | None) -> None:
    """Ranges lose their host bits and leading zeros; anything else gives None."""
    assert canonical_cidr(text) == canonical


@pytest.mark.parametrize(
    ("address", "special"),
    [
        ("10.0.0.1", False),
        ("0.0.0.1", False),
        ("127.0.0.1", True),
        ("0.0.0.0", True),
        ("169.254.1.1", True),
        ("224.0.0.5", True),
        ("224.0.1.5", False),
        ("::", True),
        ("::1", True),
        ("fe80::1", True),
        ("febf::1", True),
        ("fec0::1", False),
        ("ff02::1", True),
        ("ff05::2", False),
        ("2001:db8::1", False),
    ],
)
def test_special_use(address: str, special: bool) -> None:
    """Exactly the addresses that the API server refuses are named special."""
    assert bool(special_use(address)) is special
