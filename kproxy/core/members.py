"""Members of the kernel's sets, packed: how each kind of set lays them out. Pure.

A kind is known by ipset's own name for it. A member is bytes in network order, its parts one after
the other; what a rule asks and what a tool prints has the same parts in the same order::

    hash:ip,port        address (4 or 16) · port (2) · protocol number (1)
    hash:ip,port,ip     … · address
    hash:ip,port,net    … · address of the network, host bits zero · prefix length (1), never 0
    hash:net,port       address of the network · port · protocol · its prefix length, never 0
    hash:ip             address
    bitmap:port         port (2)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from kproxy.core.objects import Family


class Part(Enum):
    """What a member is made of."""

    ADDRESS = "address"
    PORT = "port"
    PROTOCOL = "protocol"
    OTHER = "other address"
    PREFIX = "prefix length of the other"
    LENGTH = "prefix length"


#: kind -> its parts, in packed order
LAYOUTS: Mapping[str, tuple[Part, ...]] = {
    "hash:ip,port": (Part.ADDRESS, Part.PORT, Part.PROTOCOL),
    "hash:ip,port,ip": (Part.ADDRESS, Part.PORT, Part.PROTOCOL, Part.OTHER),
    "hash:ip,port,net": (Part.ADDRESS, Part.PORT, Part.PROTOCOL, Part.OTHER, Part.PREFIX),
    "hash:net,port": (Part.ADDRESS, Part.PORT, Part.PROTOCOL, Part.LENGTH),
    "hash:ip": (Part.ADDRESS,),
    "bitmap:port": (Part.PORT,),
}

#: Members at most of a hashed set; memory is taken for those that are there.
MAX_MEMBERS = 1 << 20


class Kind(NamedTuple):
    """A type of set: the module that has it, and with how many buckets a hashed one begins (it
    doubles by itself when it fills, which costs a walk each time; 0: not hashed)."""

    module: str
    buckets: int


#: kind -> what else is to be known of it
KINDS: Mapping[str, Kind] = {
    "hash:ip,port": Kind("ip_set_hash_ipport", 4096),
    "hash:ip,port,ip": Kind("ip_set_hash_ipportip", 4096),
    "hash:ip,port,net": Kind("ip_set_hash_ipportnet", 1024),
    "hash:net,port": Kind("ip_set_hash_netport", 4096),
    "hash:ip": Kind("ip_set_hash_ip", 1024),
    "bitmap:port": Kind("ip_set_bitmap_port", 0),
}

_BYTES = {Part.PORT: 2, Part.PROTOCOL: 1, Part.PREFIX: 1, Part.LENGTH: 1}
_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}


def size_of(part: Part, family: Family) -> int:
    """Bytes of one part."""
    return _BYTES.get(part) or (4 if family is Family.IPV4 else 16)


def made(name: str, kind: str, family: Family) -> str:
    """How the tool is told to make a set as we do: ``NAME hash:ip family inet …``."""
    if not KINDS[kind].buckets:
        return f"{name} {kind} range 0-65535"
    word = "inet" if family is Family.IPV4 else "inet6"
    return f"{name} {kind} family {word} hashsize {KINDS[kind].buckets} maxelem {MAX_MEMBERS}"


def told(kind: str, family: Family, member: bytes) -> str:
    """A member as the ipset tool spells it: ``10.0.0.1,tcp:80,10.1.0.0/16``."""
    return ",".join(_words(dict(_split(kind, family, member))))


def _split(kind: str, family: Family, member: bytes) -> Iterator[tuple[Part, bytes]]:
    at = 0
    for part in LAYOUTS[kind]:
        past = at + size_of(part, family)
        yield part, member[at:past]
        at = past


def _words(parts: Mapping[Part, bytes]) -> Iterator[str]:
    if Part.ADDRESS in parts:
        yield address_text(parts[Part.ADDRESS]) + _length(parts.get(Part.LENGTH), parts)
    if Part.PORT in parts:
        port = str(int.from_bytes(parts[Part.PORT], "big"))
        protocol = parts.get(Part.PROTOCOL)
        yield f"{protocol_text(protocol[0])}:{port}" if protocol else port
    if Part.OTHER in parts:
        prefix = parts.get(Part.PREFIX)
        yield address_text(parts[Part.OTHER]) + (f"/{prefix[0]}" if prefix else "")


def _length(prefix: bytes | None, parts: Mapping[Part, bytes]) -> str:
    """``/8``; the tool leaves out that of a single address."""
    if prefix is None or prefix[0] == 8 * len(parts[Part.ADDRESS]):
        return ""
    return f"/{prefix[0]}"


def address_text(packed: bytes) -> str:
    """Canonical text of 4 or 16 bytes."""
    return str(IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed))


def protocol_text(number: int) -> str:
    """``tcp`` …, the number where it has no name here."""
    return _PROTOCOLS.get(number, str(number))
