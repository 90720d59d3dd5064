"""Flat bytes from service tables, as the compiled engine reads them; and what keeps it up to date.

The layouts are those of ``kproxy/fastpath/build.pxi``: little-endian, addresses padded with zeros
to 16 bytes. Packing is cheap; the engine fills its Maglev tables off line, while packets go on.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from kproxy.core.objects import Family, PortName
from kproxy.core.twin import states
from kproxy.core.twin.values import (
    TICKS_PER_SECOND,
    EngineSettings,
    Member,
    NodeTable,
    Range,
    ServiceTable,
)

if TYPE_CHECKING:
    from kproxy._fastpath import Engine

_HEAD = struct.Struct("<7B6B3xIIII")
_WAY = struct.Struct("<BxH16s")
_MEMBER = struct.Struct("<16sHBxI")
_RANGE = struct.Struct("<16sI")

_FAMILY = {Family.IPV4: 0, Family.IPV6: 1}
#: Flags of a member.
_CLUSTER, _LOCAL, _NEAR = 1, 2, 4


def pack_service(table: ServiceTable) -> bytes:
    """One service port."""
    rows = [use | masquerade << 1 for rows in table.rows for use, masquerade in rows]
    ranges = table.ranges or ()
    head = _HEAD.pack(
        _FAMILY[table.family],
        table.protocol,
        table.algorithm,
        table.ranges is not None,
        table.affinity_seconds is not None,
        *table.fates,
        *rows,
        (table.affinity_seconds or 0) * TICKS_PER_SECOND,
        len(table.ways),
        len(table.members),
        len(ranges),
    )
    parts = [head]
    parts += [_WAY.pack(way.kind, way.port, way.address) for way in table.ways]
    parts += [_pack_member(member) for member in table.members]
    parts += [_RANGE.pack(range_.net, range_.bits) for range_ in ranges]
    return b"".join(parts)


def _pack_member(member: Member) -> bytes:
    flags = _CLUSTER * member.cluster | _LOCAL * member.local | _NEAR * member.near
    return _MEMBER.pack(member.address, member.port, flags, member.weight)


def pack_addresses(addresses: Iterable[bytes]) -> bytes:
    """Sorted, 16 bytes each."""
    return b"".join(sorted(address.ljust(16, b"\0") for address in addresses))


def pack_ranges(ranges: Iterable[Range]) -> bytes:
    return b"".join(_RANGE.pack(range_.net, range_.bits) for range_ in ranges)


def set_node(engine: Engine, node: NodeTable) -> None:
    """Tell an engine what the node is in one family."""
    engine.set_node(
        int(node.family),
        pack_addresses(node.local),
        pack_addresses(node.node_ports),
        pack_ranges(node.pods),
        localhost=node.localhost,
        masquerade=node.masquerade,
        ports=node.ports,
    )


def make_engine(settings: EngineSettings, kind: type[Engine] | None = None) -> Engine:
    """An engine without services; ``kind`` is the class of another build."""
    if kind is None:
        from kproxy._fastpath import Engine

        kind = Engine
    return kind(
        flow_key=settings.flow_key,
        seed=settings.seed,
        transitions=states.packed(),
        timeouts=[seconds * TICKS_PER_SECOND for seconds in settings.timeouts],
        max_flows=settings.max_flows,
        max_affinities=settings.max_affinities,
        max_fragments=settings.max_fragments,
        syn_copies=settings.syn_copies,
        patience=settings.patience,
        tries=settings.tries,
        drain=settings.drain_seconds * TICKS_PER_SECOND,
    )


def commit(
    engine: Engine, changed: Mapping[int, ServiceTable], removed: Iterable[int], now: int
) -> None:
    """Put tables in force, all at once. ``now``: nanoseconds of the engine's clock."""
    engine.commit(
        [(number, pack_service(table)) for number, table in changed.items()], list(removed), now
    )


class Numbers:
    """The numbers by which an engine knows its services, both families'.

    One is given out again only after the engine has forgotten all of its service's endpoints, since
    flows that drain still count for it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._given: dict[tuple[Family, PortName], int] = {}
        self._free: list[int] = []
        self._next = 0

    def give(self, family: Family, name: PortName) -> int:
        """The number of a service port; a new one if it has none."""
        key = family, name
        if key not in self._given:
            for place, number in enumerate(self._free):
                if not self._engine.known(number):
                    self._given[key] = self._free.pop(place)
                    break
            else:
                self._given[key] = self._next
                self._next += 1
        return self._given[key]

    def take(self, family: Family, name: PortName) -> int:
        """Back, of one that is gone; returns it."""
        number = self._given.pop((family, name))
        self._free.append(number)
        return number
