"""The engine and its twin, side by side: every packet goes to both, and both must say the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import msgspec

from kproxy.backends.fastpath import tables
from kproxy.core.objects import Family
from kproxy.core.twin.engine import Twin
from kproxy.core.twin.values import (
    SCTP,
    TCP,
    UDP,
    Algorithm,
    Code,
    EngineSettings,
    Fate,
    Member,
    NodeTable,
    Outcome,
    Range,
    Reason,
    ServiceTable,
    Way,
    WayKind,
)
from tests.fastpath.packets import raw

SECOND = 1_000_000_000

SETTINGS = EngineSettings(
    flow_key=bytes(range(16)),
    seed=bytes(range(16, 32)),
    max_flows=4096,
    max_affinities=64,
    max_fragments=32,
    syn_copies=64,
)

#: Cluster policies of a node that knows its pods: (pod, node, other) for cluster IP and others.
CLUSTER_ROWS = (((0, False), (0, True), (0, True)), ((0, True), (0, True), (0, True)))
LOCAL_ROWS = (((1, False), (1, True), (1, True)), ((0, False), (0, True), (1, False)))

NODE4 = NodeTable(
    Family.IPV4,
    local=frozenset({raw("192.168.0.2"), raw("10.180.0.254")}),
    pods=(Range(raw("10.180.0.0"), 16),),
    node_ports=frozenset({raw("192.168.0.2"), raw("10.180.0.254")}),
    localhost=True,
    masquerade=raw("192.168.0.2"),
    ports=(49152, 49160),
)
NODE6 = NodeTable(
    Family.IPV6,
    local=frozenset({raw("2001:db8::2")}),
    pods=(Range(raw("fd00:10::"), 64),),
    node_ports=frozenset({raw("2001:db8::2")}),
    masquerade=raw("2001:db8::2"),
    ports=(50000, 50100),
)


def member(address: str, port: int = 8080, **fields: Any) -> Member:
    return Member(raw(address), port, **fields)


def service(
    *ends: Member | str,
    ip: str = "172.30.0.41",
    port: int = 80,
    protocol: int = TCP,
    node_port: int = 0,
    external: Iterable[str] = (),
    balancers: Iterable[str] = (),
    **fields: Any,
) -> ServiceTable:
    """A service port by its cluster IP and what else is named; text stands for a member."""
    members = [member(end) if isinstance(end, str) else end for end in ends]
    ways = [Way(WayKind.CLUSTER_IP, raw(ip), port)]
    ways += [Way(WayKind.EXTERNAL_IP, raw(address), port) for address in external]
    ways += [Way(WayKind.LOAD_BALANCER, raw(address), port) for address in balancers]
    if node_port:
        ways.append(Way(WayKind.NODE_PORT, b"", node_port))
    fields.setdefault("rows", CLUSTER_ROWS)
    if "fates" not in fields:
        empty = Fate.DROP if any(m.cluster or m.local for m in members) else Fate.REFUSE
        fields["fates"] = (
            Fate.FORWARD if any(m.cluster for m in members) else empty,
            Fate.FORWARD if any(m.local for m in members) else empty,
        )
    return ServiceTable(
        family=Family.IPV6 if ":" in ip else Family.IPV4,
        protocol=protocol,
        ways=tuple(ways),
        members=tuple(sorted(members, key=lambda one: one.place)),
        **fields,
    )


class Pair:
    """Both, with the same tables; ``now`` is their clock."""

    def __init__(
        self,
        fastpath: ModuleType,
        services: Mapping[int, ServiceTable],
        *,
        nodes: Iterable[NodeTable] = (NODE4, NODE6),
        **settings: Any,
    ) -> None:
        self.settings = msgspec.structs.replace(SETTINGS, **settings)
        self.now = 10 * SECOND
        self.twin = Twin(self.settings)
        self.engine = tables.make_engine(self.settings, fastpath.Engine)
        self.batch = fastpath.Batch(64, 65_600)
        for node in nodes:
            self.set_node(node)
        self.commit(services)

    def set_node(self, node: NodeTable) -> None:
        self.twin.set_node(node)
        tables.set_node(self.engine, node)

    def commit(self, changed: Mapping[int, ServiceTable], removed: Iterable[int] = ()) -> None:
        gone = set(removed)
        self.twin.commit(dict(changed), gone, self.now)
        tables.commit(self.engine, changed, gone, self.now)

    def send(self, packet: bytes, header: bytes | None = None, capacity: int = 65_600) -> Outcome:
        """One packet through both."""
        return self.batch_of([(packet, header)], capacity)[0]

    def batch_of(
        self, packets: list[tuple[bytes, bytes | None]], capacity: int = 65_600
    ) -> list[Outcome]:
        """Up to 64 packets at the same moment, to the engine in one call."""
        expected = [
            self.twin.process(packet, self.now, header=header or b"", capacity=capacity)
            for packet, header in packets
        ]
        for place, (packet, header) in enumerate(packets):
            self.batch.put(place, packet, header, capacity)
        self.engine.process(self.batch, len(packets), self.now)
        for place, wanted in enumerate(expected):
            self._same(wanted, self.batch.get(place), packets[place][0])
        return expected

    @staticmethod
    def _same(wanted: Outcome, got: tuple[int, int, bytes, bytes], packet: bytes) -> None:
        code, reason, made, header = got
        assert (Code(code), Reason(reason)) == (wanted.code, wanted.reason), packet.hex()
        if wanted.code is not Code.STOLEN:
            assert made.hex() == wanted.packet.hex(), packet.hex()
            assert header == wanted.header

    def due(self) -> list[bytes]:
        """First SYNs that both send again now."""
        expected = self.twin.due(self.now)
        count = self.engine.due(self.batch, 64, self.now)
        got = [self.batch.get(place) for place in range(count)]
        assert [one[2] for one in got] == [packet for packet, _ in expected]
        return [packet for packet, _ in expected]

    def verdicts(self) -> list[tuple[int, bytes, int]]:
        expected = self.twin.retries.take_verdicts()
        assert self.engine.take_verdicts() == expected
        return [(number, place, int(finding)) for number, place, finding in expected]

    def reap(self) -> int:
        left = self.twin.reap()
        assert self.engine.reap() == left
        return left

    def sweep(self) -> int:
        """Look at every flow; how many were past their time."""
        gone = sum(flows.sweep(1 << 20, self.now) for flows in self.twin.flows.values())
        assert self.engine.sweep(1 << 20, self.now) == gone
        return gone

    def pass_time(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)

    def check(self) -> None:
        """What both remember is the same."""
        totals = self.engine.totals()
        assert totals["flows"] == tuple(len(self.twin.flows[family]) for family in Family)
        known = tuple(len(self.twin.affinities[family].entries) for family in Family)
        assert totals["affinities"] == known
        drops = [count for reason, count in self.twin.drops.items()]
        assert list(totals["drops"]) == drops
        for number, places in self.twin.endpoints.items():
            counters = self.engine.endpoint_counters(number)
            assert counters.keys() == places.keys()
            for place, endpoint in places.items():
                got = counters[place]
                assert got["packets_in"] == endpoint.packets[0]
                assert got["packets_out"] == endpoint.packets[1]
                assert got["bytes_in"] == endpoint.bytes[0]
                assert got["bytes_out"] == endpoint.bytes[1]
                assert got["flows"] == endpoint.flows
                assert got["active"] == endpoint.active
                assert got["failures"] == endpoint.failures


__all__ = ["SCTP", "TCP", "UDP", "Algorithm", "Pair", "member", "service"]
