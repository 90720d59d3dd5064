"""The packet engine in memory, on one core; README.md says how to read it.

    python -m pytest bench/bench_fastpath.py --benchmark-columns=median,min,rounds -s

64-byte TCP packets in batches of 64, 10,000 services of 10 endpoints loaded. What a packet takes is
the median of all batches of a pass, so that a batch in which the machine did something else does
not count; the passes' times that pytest-benchmark prints contain the copying of packets as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count

import msgspec
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from kproxy import _fastpath
from kproxy.backends.fastpath import tables
from kproxy.core.hashing import maglev
from kproxy.core.objects import Family
from kproxy.core.twin.engine import Twin
from kproxy.core.twin.values import (
    Code,
    EngineSettings,
    Fate,
    Member,
    NodeTable,
    Range,
    ServiceTable,
    Way,
    WayKind,
)
from tests.fastpath.packets import ACK, SYN, ip, raw, tcp

SERVICES, ENDPOINTS, BATCH = 10_000, 10, 64
SETTINGS = EngineSettings(flow_key=bytes(16), seed=bytes(range(16)), max_flows=1_000_000)
NODE = NodeTable(
    Family.IPV4, local=frozenset({raw("192.168.0.2")}), pods=(Range(raw("10.180.0.0"), 14),),
    masquerade=raw("192.168.0.2"), ports=(1024, 65535),
)  # fmt: skip
#: Everything to the cluster set; only who is no pod is masqueraded.
ROWS = (((0, False), (0, True), (0, True)), ((0, True), (0, True), (0, True)))
SECOND = 1_000_000_000
#: Longer than any half-open flow lives.
LATER = 100 * SECOND


def vip(number: int) -> bytes:
    return (0xAC1E0000 + number).to_bytes(4)


def table(number: int, endpoints: int = ENDPOINTS) -> ServiceTable:
    first = 0x0A000000 + number * endpoints
    return ServiceTable(
        Family.IPV4,
        6,
        (Way(WayKind.CLUSTER_IP, vip(number), 80),),
        tuple(Member((first + each).to_bytes(4), 8080) for each in range(endpoints)),
        ROWS,
        (Fate.FORWARD, Fate.DROP),
    )


@pytest.fixture(scope="module")
def services() -> dict[int, ServiceTable]:
    return {number: table(number) for number in range(SERVICES)}


@pytest.fixture(scope="module")
def engine(services: dict[int, ServiceTable]) -> _fastpath.Engine:
    made = tables.make_engine(SETTINGS)
    tables.set_node(made, NODE)
    tables.commit(made, services, (), SECOND)
    return made


def packets(flows: int, flags: int) -> _fastpath.Batch:
    """One packet of each flow: clients are pods, services take turns."""
    batch = _fastpath.Batch(flows, 80)
    packet = bytearray(ip("10.180.0.9", "172.30.0.0", 6, tcp(40000, 80, flags, data=bytes(24))))
    assert len(packet) == 64
    for number in range(flows):
        packet[12:16] = (0x0AB40000 + number % 50_000).to_bytes(4)
        packet[20:22] = (1024 + number // 50_000).to_bytes(2)
        packet[16:20] = vip(number * 7919 % SERVICES)
        batch.put(number, packet)
    return batch


def per_packet(benchmark: BenchmarkFixture, run: Callable[[], list[int]], rounds: int) -> None:
    """Run passes; tell the median, over all their batches, of nanoseconds for each packet."""
    found: list[int] = []
    benchmark.pedantic(lambda: found.extend(run()[:-1]), rounds=rounds)
    found.sort()
    benchmark.extra_info["ns_per_packet"] = round(found[len(found) // 2] / BATCH, 1)
    benchmark.extra_info["ns_per_packet_p90"] = round(found[len(found) * 9 // 10] / BATCH, 1)


_clock: Iterator[int] = count(10 * LATER, LATER)


def emptied(engine: _fastpath.Engine) -> int:
    """A time at which every half-open flow is past its deadline, and gone."""
    now = next(_clock)
    engine.sweep(SETTINGS.max_flows, now)
    assert engine.totals()["flows"] == (0, 0)
    return now


@pytest.mark.parametrize("flows", [100_000, 1_000_000])
def bench_established(benchmark: BenchmarkFixture, engine: _fastpath.Engine, flows: int) -> None:
    """A packet of a flow that is there, each time of another flow."""
    now = emptied(engine)
    _fastpath.measure(engine, packets(flows, SYN), BATCH, now)
    assert engine.totals()["flows"][0] == flows
    source = packets(flows, ACK)
    per_packet(benchmark, lambda: _fastpath.measure(engine, source, BATCH, now), rounds=5)
    benchmark.extra_info["bytes"] = engine.memory()["flows_ipv4"]
    emptied(engine)


def bench_new_flow(benchmark: BenchmarkFixture, engine: _fastpath.Engine) -> None:
    """A first SYN, in a table that was full before: its memory is there."""
    source = packets(100_000, SYN)

    def run() -> list[int]:
        return _fastpath.measure(engine, source, BATCH, emptied(engine))

    run()
    per_packet(benchmark, run, rounds=7)
    emptied(engine)


def bench_flood(benchmark: BenchmarkFixture, services: dict[int, ServiceTable]) -> None:
    """A first SYN when the table is full of half-open flows: each one turns out another."""
    full = tables.make_engine(msgspec.structs.replace(SETTINGS, max_flows=65_536))
    tables.set_node(full, NODE)
    tables.commit(full, {number: services[number] for number in range(100)}, (), SECOND)
    source = packets(1_000_000, SYN)
    for place in range(1_000_000):
        # Random ones, as an attacker's.
        packet = bytearray(source.get(place)[2])
        packet[16:20] = vip(place % 100)
        source.put(place, packet)
    per_packet(benchmark, lambda: _fastpath.measure(full, source, BATCH, LATER), rounds=2)
    assert full.totals()["flows"][0] == 65_536


def bench_floor(benchmark: BenchmarkFixture) -> None:
    """What every packet loop does at least: copy, and sum all bytes."""
    source = packets(100_000, ACK)
    per_packet(benchmark, lambda: _fastpath.measure_floor(source, BATCH), rounds=5)


def bench_twin(benchmark: BenchmarkFixture, services: dict[int, ServiceTable]) -> None:
    """The same in obvious Python, 1,000 established packets of 1,000 flows."""
    twin = Twin(SETTINGS)
    twin.set_node(NODE)
    twin.commit({number: services[number] for number in range(100)}, set(), SECOND)
    sent = list(_all(packets(1_000, SYN)))
    for packet in sent:
        packet[16:20] = vip((int.from_bytes(packet[16:20]) - 0xAC1E0000) % 100)
        assert twin.process(bytes(packet), LATER).code is Code.FORWARD
    established = [bytes(packet[:33] + bytes((ACK,)) + packet[34:]) for packet in sent]

    def run() -> None:
        for packet in established:
            twin.process(packet, LATER)

    benchmark.pedantic(run, rounds=3)
    benchmark.extra_info["us_per_packet"] = round(benchmark.stats.stats.median * 1000, 1)


def _all(batch: _fastpath.Batch) -> Iterator[bytearray]:
    for place in range(batch.size):
        yield bytearray(batch.get(place)[2])


@pytest.mark.parametrize("endpoints", [10, 100, 1000])
def bench_maglev(benchmark: BenchmarkFixture, endpoints: int) -> None:
    """One table: 16,381 slots for ten endpoints, 65,537 for a hundred or more."""
    names = [raw(f"10.0.{number >> 8}.{number & 255}") + b"\x1f\x90" for number in range(endpoints)]
    weights = [1] * endpoints
    made = benchmark(_fastpath.maglev, SETTINGS.seed, names, weights)
    benchmark.extra_info["slots"] = len(made)
    if endpoints == 10:
        before = time.perf_counter()
        assert maglev(SETTINGS.seed, names, weights) == made
        benchmark.extra_info["twin_ms"] = round((time.perf_counter() - before) * 1e3, 1)


def bench_one_service(benchmark: BenchmarkFixture, engine: _fastpath.Engine) -> None:
    """An endpoint of one service is replaced, from its table to being in force."""
    numbers = count()

    def change() -> None:
        number = next(numbers)
        shifted = table(number % SERVICES + number % 2)
        tables.commit(engine, {number % 100: _replaced(shifted, number % 100)}, (), LATER)

    benchmark.pedantic(change, rounds=300)


def _replaced(table_: ServiceTable, number: int) -> ServiceTable:
    ways = (Way(WayKind.CLUSTER_IP, vip(number), 80),)
    return msgspec.structs.replace(table_, ways=ways)


def bench_from_nothing(benchmark: BenchmarkFixture, services: dict[int, ServiceTable]) -> None:
    """All services into an empty engine: packed, tables filled, in force."""
    memory: dict[str, int] = {}
    cpu: list[float] = []

    def load() -> None:
        made = tables.make_engine(SETTINGS)
        before = time.process_time()
        tables.commit(made, services, (), SECOND)
        cpu.append(time.process_time() - before)
        memory.update(made.memory())

    benchmark.pedantic(load, rounds=3)
    benchmark.extra_info["cpu_seconds"] = round(min(cpu), 2)
    benchmark.extra_info["bytes"] = memory
