"""The sets and maps of nftables mode, and their elements packed as the kernel has them. Pure.

An element is the bytes of one list attribute of netlink (``NFTA_LIST_ELEM``), as they are sent and
as the kernel gives them back: a key of parts of four bytes each (an IPv6 address has sixteen), then
what a map has for it. Source: linux/netfilter/nf_tables.h. So what is wanted and what is there are
compared as sets of bytes, and nothing is made of 250,000 endpoints but these.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import Enum
from functools import cache
from ipaddress import ip_address, ip_network
from socket import AF_INET, AF_INET6, inet_pton

from kproxy.core.objects import Family, Protocol, Value

Record = bytes


class Part(Enum):
    """What keys and data are made of."""

    ADDRESS = "daddr"
    PROTOCOL = "l4proto"
    PORT = "dport"
    #: In the byte order of the machine: numgen, jhash, marks and priorities are.
    NUMBER = "number"


class Verdict(Enum):
    """Data of a verdict map instead of parts."""

    VERDICT = "verdict"


_A, _P, _T, _N = Part.ADDRESS, Part.PROTOCOL, Part.PORT, Part.NUMBER


class Kind(Value, frozen=True):
    """A set (``data`` empty) or map. ``types``: what nft has to be told of its key and data, as
    ``typeof``, with {ip} for the family's word."""

    name: str
    key: tuple[Part, ...]
    data: tuple[Part, ...] | Verdict
    types: str

    @property
    def map(self) -> bool:
        return bool(self.data)


#: How a service port is looked up: by its address too, or by node port.
SERVICE = "{ip} daddr . meta l4proto . th dport"
NODE_PORT = "meta l4proto . th dport"
_SLOT, _ID, _PLACE = "numgen random mod 2", "meta priority", "{ip} daddr . th dport"
_WAYS = {"": ((_A, _P, _T), SERVICE), "node-": ((_P, _T), NODE_PORT)}


def _kinds() -> list[Kind]:
    found = []
    for way, (key, types) in _WAYS.items():
        for use in ("", "local-"):
            for name, keys, data, more in (
                ("ways", (), Verdict.VERDICT, ": verdict"),
                ("endpoints", (_N,), (_A, _T), f". {_SLOT} : {_PLACE}"),
                ("ids", (_N,), (_N,), f". {_SLOT} : {_ID}"),
                ("known", (_N,), (_A, _T), f". {_ID} : {_PLACE}"),
            ):
                found.append(Kind(f"{way}{use}{name}", (*key, *keys), data, f"{types} {more}"))
        found.append(Kind(f"{way}names", key, (_N,), f"{types} : {{name}}"))
        found.append(Kind(f"{way}unserved", key, Verdict.VERDICT, f"{types} : verdict"))
    return found


#: Client and place of an endpoint of this node that is its own client.
HAIRPIN = Kind("hairpin", (_A, _A), (), "{ip} saddr . {ip} daddr")
CLUSTER_IPS = Kind("cluster-ips", (_A,), (), "{ip} daddr")
NODE_ADDRESSES = Kind("node-addresses", (_A,), (), "{ip} daddr")
#: Load-balancer addresses for some sources only: the lengths of the prefixes of these; the
#: prefixes, each with a bit set behind it, so that no two of different lengths are the same; and
#: whole addresses, behind which there is no room. (An interval set would do without lengths, but
#: takes the kernel 1.4 ms an element, and 0.2 s for any change of it.)
RESTRICTED = Kind("restricted", (_A, _P, _T), Verdict.VERDICT, f"{SERVICE} : verdict")
SOURCES = Kind("sources", (_A, _P, _T, _A), (), f"{SERVICE} . {{ip}} saddr")
WHOLE_SOURCES = Kind("whole-sources", (_A, _P, _T, _A), (), f"{SERVICE} . {{ip}} saddr")

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        *_kinds(),
        HAIRPIN,
        CLUSTER_IPS,
        NODE_ADDRESSES,
        RESTRICTED,
        SOURCES,
        WHOLE_SOURCES,
    )
}
#: The one that packets write. Of IPv6 its key is a hash: nft 1.0.6 cannot list a rule that updates
#: a map by a key of more than 16 bytes.
AFFINITY = "affinity"
MOST_CLIENTS = 1 << 20

_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=I")
_LIST_ELEM, _KEY, _DATA = 1, 1, 2
_VALUE, _VERDICT, _CODE, _CHAIN = 1, 2, 1, 2
_GOTO, _DROP = -4, 0
#: nf_tables' data of the verdict ``drop``.
DROP = ""
PROTOCOLS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
_WORDS = {6: "tcp", 17: "udp", 132: "sctp"}


def attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + bytes(-length & 3)


def protocol(one: Protocol) -> bytes:
    return bytes((PROTOCOLS[one], 0, 0, 0))


@cache
def port(number: int) -> bytes:
    return number.to_bytes(2) + b"\0\0"


def number(value: int) -> bytes:
    return _NUMBER.pack(value)


@cache
def goto(chain: str) -> bytes:
    """Data of a verdict map: go to a chain, or :data:`DROP`."""
    if chain == DROP:
        return attribute(_VERDICT, attribute(_CODE, struct.pack(">i", _DROP)))
    code = attribute(_CODE, struct.pack(">i", _GOTO))
    return attribute(_VERDICT, code + attribute(_CHAIN, chain.encode() + b"\0"))


@cache
def _heads(key: int, data: int) -> tuple[bytes, bytes]:
    """What stands before a key, and before its data, of so many bytes (data -1: there is none)."""
    inner = _ATTRIBUTE.pack(key + 8, _KEY) + _ATTRIBUTE.pack(key + 4, _VALUE)
    if data < 0:
        return _ATTRIBUTE.pack(key + 12, _LIST_ELEM) + inner, b""
    whole = _ATTRIBUTE.pack(key + 8 + data + 8 + 4, _LIST_ELEM) + inner
    return whole, _ATTRIBUTE.pack(data + 8, _DATA) + _ATTRIBUTE.pack(data + 4, _VALUE)


def member(key: bytes) -> Record:
    """Of a set."""
    return _heads(len(key), -1)[0] + key


def entry(key: bytes, data: bytes) -> Record:
    """Of a map with data of parts."""
    head, middle = _heads(len(key), len(data))
    return head + key + middle + data


def entries(keys: Sequence[bytes], datas: Sequence[bytes]) -> tuple[Record, ...]:
    """The same for many of one kind."""
    if not keys:
        return ()
    head, middle = _heads(len(keys[0]), len(datas[0]))
    return tuple([head + key + middle + data for key, data in zip(keys, datas, strict=True)])


@cache
def _lead(key: int, chain: str) -> tuple[bytes, bytes]:
    """What stands before and after a key of so many bytes in a verdict map."""
    record = attribute(_KEY, attribute(_VALUE, bytes(key))) + attribute(_DATA, goto(chain))
    whole = attribute(_LIST_ELEM, record)
    return whole[:12], whole[12 + key :]


def taken_apart(kind: Kind, records: Iterable[Record], family: Family) -> dict[bytes, bytes]:
    """Key -> data of a map with data of parts; those that :func:`entry` would pack otherwise are
    left out."""
    assert not isinstance(kind.data, Verdict)
    key, data = _size(kind.key, family), _size(kind.data, family)
    head, middle = _heads(key, data)
    begin, end = len(head) + key, len(head) + key + len(middle)
    return {
        record[len(head) : begin]: record[end:]
        for record in records
        if len(record) == end + data and record.startswith(head) and record[begin:end] == middle
    }


def way(key: bytes, chain: str) -> Record:
    """Of a verdict map."""
    head, tail = _lead(len(key), chain)
    return head + key + tail


def source(key: bytes, cidr: str) -> tuple[str, Record]:
    """Which of the sets of permitted sources it is in, and the element."""
    network = ip_network(cidr)
    behind = bit_behind(network.prefixlen, network.max_prefixlen)
    packed = (int(network.network_address) | behind).to_bytes(network.max_prefixlen // 8)
    return (SOURCES if behind else WHOLE_SOURCES).name, member(key + packed)


def bit_behind(length: int, bits: int) -> int:
    """An address with the bit behind a prefix set; 0 where there is none."""
    return 1 << bits >> length + 1


def address(text: str) -> bytes:
    """In network order."""
    return inet_pton(AF_INET6 if ":" in text else AF_INET, text)


def bare(kind: Kind, record: Record) -> Record:
    """The key alone: what the kernel is told to delete, whatever somebody put beside it."""
    length, first = _ATTRIBUTE.unpack_from(record, 4)
    if first & 0x3FFF != _KEY:
        return record
    return attribute(_LIST_ELEM, record[4 : 4 + (length + 3 & ~3)])


# --- back to something to read ------------------------------------------------------------------


class Element(Value, frozen=True):
    """One element as parts. ``key`` and ``data``: addresses as text, protocol as its word, ports
    and numbers. ``data`` of a verdict map is a chain's name or :data:`DROP`.
    """

    kind: Kind
    key: tuple[str | int, ...]
    data: tuple[str | int, ...] | str | None = None


def unpack(kind: Kind, record: Record, family: Family) -> Element:
    """What an element says; without data when it is only named. KeyError: a catch-all, which is
    nobody of ours."""
    parts = attributes(record[4:])
    key_bytes = attributes(parts[_KEY])[_VALUE]
    key = _parts(kind.key, key_bytes, family)
    if not kind.data or _DATA not in parts:
        return Element(kind, key)
    data = attributes(parts[_DATA])
    if isinstance(kind.data, Verdict):
        said = attributes(data[_VERDICT])
        return Element(kind, key, said.get(_CHAIN, b"").rstrip(b"\0").decode())
    return Element(kind, key, _parts(kind.data, data[_VALUE], family))


def text(element: Element) -> str:
    """As nft writes it."""
    key = " . ".join(map(str, element.key))
    if element.data is None:
        return key
    if isinstance(element.data, str):
        return f"{key} : {f'goto {element.data}' if element.data else 'drop'}"
    return f"{key} : {' . '.join(map(str, element.data))}"


def attributes(data: bytes) -> dict[int, bytes]:
    """Netlink's: kind -> what is in it; the last one where a kind is repeated."""
    found, at = {}, 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += length + 3 & ~3
    return found


def _size(parts: tuple[Part, ...], family: Family) -> int:
    """Bytes."""
    return sum(_bytes(part, family) for part in parts)


def _bytes(part: Part, family: Family) -> int:
    return 16 if part is Part.ADDRESS and family is Family.IPV6 else 4


def _parts(parts: tuple[Part, ...], data: bytes, family: Family) -> tuple[str | int, ...]:
    found: list[str | int] = []
    at = 0
    for part in parts:
        size = _bytes(part, family)
        piece = data[at : at + size]
        at += size
        if part is Part.ADDRESS:
            found.append(str(ip_address(piece)))
        elif part is Part.PROTOCOL:
            found.append(_WORDS.get(piece[0], str(piece[0])))
        elif part is Part.PORT:
            found.append(int.from_bytes(piece[:2]))
        else:
            found.append(_NUMBER.unpack(piece)[0])
    return tuple(found)
