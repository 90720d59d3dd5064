"""Transactions as netlink messages, and what the kernel answers. Pure.

One transaction is one datagram: BEGIN, what a new table is made of where one is made, messages with
as many elements as an attribute can hold, and END. Source: linux/netfilter/nf_tables.h,
nfnetlink.h, netlink.h.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence

from kproxy.backends.nftables.elements import KINDS, Record, attribute, attributes, bare
from kproxy.core.objects import Family, Value

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NEST = 0x8000
_SUBSYSTEM = 10
_BEGIN, _END = 0x10, 0x11
NEWTABLE, DELTABLE, NEWSET = 0, 2, 9
NEWCHAIN, DELCHAIN, NEWRULE, DELRULE = 3, 5, 6, 8
NEWSETELEM, GETSETELEM, DELSETELEM = 12, 13, 14
GETCHAIN, GETRULE, GETSET = 4, 7, 10
_REQUEST, _ACK, _DUMP, _CREATE, _APPEND = 0x1, 0x4, 0x300, 0x400, 0x800
_DUMP_INTERRUPTED = 0x10
_ERROR, _DONE = 2, 3
_CAPPED, _TLVS = 0x100, 0x200
_ERROR_OFFSET = 2
_VERSIONS = {Family.IPV4: 2, Family.IPV6: 10}
_TABLE, _SET, _ELEMENTS, _SET_ID = 1, 2, 3, 10
_CHAIN_NAME, _RULE_CHAIN, _EXPRESSIONS = 3, 2, 4
#: Bytes of elements in one message: the length of an attribute is 16 bits.
_MOST = 60_000


class Message(Value, frozen=True):
    """Which elements of a set one message is about. ``first``: the offset of its first one."""

    set: str
    first: int
    records: tuple[Record, ...]

    def at(self, offset: int) -> Record | None:
        """The element that the kernel points to."""
        ends, end = [], self.first
        for record in self.records:
            end += len(record)
            ends.append(end)
        place = bisect_right(ends, offset)
        return self.records[place] if self.first <= offset and place < len(self.records) else None


class Batch(Value, frozen=True):
    """One transaction. Message ``n`` has the sequence number ``n + 1``, BEGIN 0; one
    about no elements is None."""

    data: bytes
    messages: tuple[Message | None, ...]


class Anew(Value, frozen=True, eq=False):
    """A table from nothing, whatever stood in its place: attributes of its sets, and of chains with
    a hook, as the kernel gives them back."""

    sets: Mapping[str, bytes]
    hooks: Mapping[str, bytes]


class Change(Value, frozen=True, eq=False):
    """A table is made ``anew``; ``chains`` are made, or made anew, of expressions as the kernel
    gives them back; then elements are taken out and put in; then ``spare`` chains go."""

    gone: Mapping[str, Sequence[Record]] = {}
    added: Mapping[str, Sequence[Record]] = {}
    chains: Mapping[str, Sequence[bytes]] = {}
    spare: Sequence[str] = ()
    anew: Anew | None = None

    def __bool__(self) -> bool:
        return bool(self.gone or self.added or self.chains or self.spare or self.anew)


#: Kind, flags, attributes, and the elements that it is about.
_Step = tuple[int, int, bytes, Message | None]


def batch(family: Family, table: str, change: Change) -> Batch:
    """All of a change as one transaction."""
    steps = [
        *(_make_table(table, change.anew.sets) if change.anew else ()),
        *_make_chains(table, change.chains, change.anew.hooks if change.anew else {}),
        *_elements(table, DELSETELEM, 0, _bare(change.gone)),
        *_elements(table, NEWSETELEM, _CREATE, change.added),
        *_take_chains(table, change.spare),
    ]
    parts = [_message(_BEGIN, _REQUEST, 0, 0, b"", resource=_SUBSYSTEM)]
    for number, (kind, flags, body, _) in enumerate(steps, 1):
        # The last one is answered, and with it all.
        flags |= _REQUEST | (_ACK if number == len(steps) else 0)
        parts.append(_message((_SUBSYSTEM << 8) + kind, flags, number, _VERSIONS[family], body))
    parts.append(_message(_END, _REQUEST, len(steps) + 1, 0, b"", resource=_SUBSYSTEM))
    return Batch(b"".join(parts), tuple(message for _, _, _, message in steps))


def _make_table(table: str, sets: Mapping[str, bytes]) -> Iterator[_Step]:
    of_table = attribute(_TABLE, _zero(table))
    # Made before it is deleted: a table that is not there cannot be.
    for kind, flags in ((NEWTABLE, _CREATE), (DELTABLE, 0), (NEWTABLE, _CREATE)):
        yield kind, flags, of_table, None
    for number, (name, made) in enumerate(sets.items(), 1):
        which = attribute(_SET, _zero(name)) + attribute(_SET_ID, number.to_bytes(4))
        yield NEWSET, _CREATE, of_table + which + made, None


def _make_chains(
    table: str, chains: Mapping[str, Sequence[bytes]], hooks: Mapping[str, bytes]
) -> Iterator[_Step]:
    of_table = attribute(_TABLE, _zero(table))
    for name in chains:
        made = attribute(_CHAIN_NAME, _zero(name)) + hooks.get(name, b"")
        yield NEWCHAIN, _CREATE, of_table + made, None
    for name, rules in chains.items():
        of_chain = of_table + attribute(_RULE_CHAIN, _zero(name))
        yield DELRULE, 0, of_chain, None
        for expressions in rules:
            body = of_chain + attribute(_EXPRESSIONS | _NEST, expressions)
            yield NEWRULE, _CREATE | _APPEND, body, None


def _take_chains(table: str, names: Sequence[str]) -> Iterator[_Step]:
    of_table = attribute(_TABLE, _zero(table))
    for name in names:
        yield DELRULE, 0, of_table + attribute(_RULE_CHAIN, _zero(name)), None
    for name in names:
        yield DELCHAIN, 0, of_table + attribute(_CHAIN_NAME, _zero(name)), None


def _elements(
    table: str, kind: int, flags: int, sets: Mapping[str, Sequence[Record]]
) -> Iterator[_Step]:
    for name, records_ in sets.items():
        names = attribute(_TABLE, _zero(table)) + attribute(_SET, _zero(name))
        for some in _portions(records_):
            body = b"".join(some)
            nest = _ATTRIBUTE.pack(len(body) + 4, _ELEMENTS | _NEST)
            message = Message(name, 20 + len(names) + 4, tuple(some))
            yield kind, flags, names + nest + body, message


def _bare(gone: Mapping[str, Sequence[Record]]) -> dict[str, list[Record]]:
    return {
        name: [bare(KINDS[name], record) for record in records] for name, records in gone.items()
    }


def _portions(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """As many as fit."""
    if not records:
        return
    most = max(1, _MOST // max(map(len, records)))
    for at in range(0, len(records), most):
        yield records[at : at + most]


def _zero(text: str) -> bytes:
    return text.encode() + b"\0"


def _message(
    type_: int, flags: int, number: int, version: int, body: bytes, resource: int = 0
) -> bytes:
    head = _HEADER.pack(20 + len(body), type_, flags, number, 0)
    return head + struct.pack(">BBH", version, 0, resource) + body


def ask(kind: int, family: Family, table: str, set_: str = "") -> bytes:
    """A request for everything of a kind in a table, or in one of its sets."""
    body = attribute(_TABLE, _zero(table)) + (attribute(_SET, _zero(set_)) if set_ else b"")
    return _message((_SUBSYSTEM << 8) + kind, _REQUEST | _DUMP, 1, _VERSIONS[family], body)


class Answer(Value, frozen=True):
    """One message of the kernel: an error (0: done well) with the offset it points to, or a part
    of a listing. ``over``: a listing has ended; ``torn``: something changed meanwhile."""

    number: int
    error: int | None = None
    offset: int = 0
    body: bytes = b""
    over: bool = False
    torn: bool = False


def answers(datagram: bytes) -> Iterator[Answer]:
    """What a datagram of the kernel says."""
    at = 0
    while at + 16 <= len(datagram):
        length, type_, flags, number, _ = _HEADER.unpack_from(datagram, at)
        if length < 16:
            return
        torn = bool(flags & _DUMP_INTERRUPTED)
        if type_ == _ERROR:
            code = -struct.unpack_from("=i", datagram, at + 16)[0]
            yield Answer(number, code, _offset(datagram[at : at + length], flags), torn=torn)
        elif type_ == _DONE:
            yield Answer(number, over=True, torn=torn)
        else:
            yield Answer(number, body=datagram[at + 20 : at + length], torn=torn)
        at += length + 3 & ~3


def _offset(message: bytes, flags: int) -> int:
    if not flags & _TLVS:
        return 0
    inner = struct.unpack_from("=I", message, 20)[0]
    start = 36 if flags & _CAPPED else 20 + (inner + 3 & ~3)
    found = attributes(message[start:]).get(_ERROR_OFFSET, bytes(4))
    return int(struct.unpack("=I", found)[0])


def records(bodies: Iterable[bytes]) -> list[Record]:
    """The elements in a listing of a set, as often as they are in it."""
    found: list[Record] = []
    for body in bodies:
        data = attributes(body).get(_ELEMENTS, b"")
        if len(data) < 4:
            continue
        length = _ATTRIBUTE.unpack_from(data)[0]
        step = length + 3 & ~3
        if len(data) % step == 0 and len({*data[0::step]}) == 1 and len({*data[1::step]}) == 1:
            # All of one length.
            found += [data[at : at + step] for at in range(0, len(data), step)]
            continue
        at = 0
        while at + 4 <= len(data):
            step = _ATTRIBUTE.unpack_from(data, at)[0] + 3 & ~3
            found.append(data[at : at + step])
            at += step
    return found
