"""Addresses and ranges as one canonical text, whatever way a person or an old API wrote them.

The text is what ``inet_ntop`` gives, because the kernel's tools print that and rules are compared
with what they print. Two habits of Kubernetes are kept: leading zeros in IPv4 are decimal (``010``
is ten, not eight), and an IPv4-mapped IPv6 address *is* the IPv4 address.
"""

from __future__ import annotations

import ipaddress
import re

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
#: Nearly every address of a real cluster is canonical already: one match, no object made.
_CANONICAL_V4 = re.compile(rf"{_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}").fullmatch
_LOOSE_V4 = re.compile(r"([0-9]{1,20})\.([0-9]{1,20})\.([0-9]{1,20})\.([0-9]{1,20})").fullmatch
_LENGTH = re.compile(r"[0-9]{1,4}").fullmatch

#: No IPv6 text is longer: eight groups of four, the last two as IPv4.
_MAX_V6 = 45


def canonical_ip(text: str) -> str | None:
    """Canonical text of an address; None when it is none (zone indices are none either)."""
    if _CANONICAL_V4(text):
        return text
    loose = _LOOSE_V4(text)
    if loose:
        octets = [int(part) for part in loose.groups()]
        return ".".join(map(str, octets)) if max(octets) <= 255 else None
    if ":" not in text or "%" in text or len(text) > _MAX_V6:
        return None
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return None
    return _ntop(address)


def _ntop(address: ipaddress.IPv6Address) -> str:
    """The spelling of ``inet_ntop``: ::/96 ends in dotted form unless it fits one group."""
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    number = int(address)
    if 0x10000 <= number <= 0xFFFFFFFF:
        return f"::{ipaddress.IPv4Address(number)}"
    return address.compressed


def canonical_cidr(text: str) -> str | None:
    """Canonical text of a range, host bits cleared; None when it is no range."""
    base, slash, length_text = text.partition("/")
    address = canonical_ip(base)
    if not slash or address is None or not _LENGTH(length_text):
        return None
    length = int(length_text)
    if ":" in base and ":" not in address:
        # ::ffff:a.b.c.d/n counts its length from the IPv6 end; below 96 it is no IPv4 range.
        if length < 96:
            return None
        length -= 96
    if ":" in address:
        if length > 128:
            return None
        network6 = ipaddress.IPv6Network((address, length), strict=False)
        return f"{_ntop(network6.network_address)}/{length}"
    if length > 32:
        return None
    return str(ipaddress.IPv4Network((address, length), strict=False))


_SPECIAL_V4: tuple[tuple[str, str], ...] = (
    ("127.", "a loopback address"),
    ("169.254.", "a link-local address"),
    ("224.0.0.", "a link-local multicast address"),
)


def special_use(address: str) -> str:
    """Why a canonical address can be no service or endpoint address; "" when it can.

    The same set that the API server refuses: traffic to it would never leave its link or host.
    """
    if ":" not in address:
        if address == "0.0.0.0":
            return "the unspecified address"
        return next((why for prefix, why in _SPECIAL_V4 if address.startswith(prefix)), "")
    if address == "::":
        return "the unspecified address"
    if address == "::1":
        return "a loopback address"
    if address.startswith(("fe8", "fe9", "fea", "feb")):
        return "a link-local address"
    # The scope is the fourth digit (RFC 4291 §2.7): ff02::, ff12::, …
    if address.startswith("ff") and address[3:4] == "2":
        return "a link-local multicast address"
    return ""
