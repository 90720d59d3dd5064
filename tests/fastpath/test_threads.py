"""One engine under several threads: queues carry packets while tables change and are counted."""

from __future__ import annotations

import random
import threading
from types import ModuleType
from typing import Any

import msgspec

from kproxy.backends.fastpath import tables
from kproxy.core.twin.values import Code, ServiceTable
from tests.fastpath.packets import ACK, answer_to, ip, raw, tcp
from tests.fastpath.pair import NODE4, SECOND, SETTINGS, TCP, member, service

ROOMY = msgspec.structs.replace(SETTINGS, max_flows=65_536)
PODS = [f"10.180.0.{number}" for number in range(1, 9)]


def made(fastpath: ModuleType, settings: Any = ROOMY) -> Any:
    engine = tables.make_engine(settings, fastpath.Engine)
    tables.set_node(engine, msgspec.structs.replace(NODE4, ports=(1024, 65535)))
    return engine


class Queue(threading.Thread):
    """Sends its clients' segments again and again, until told to end."""

    def __init__(
        self, fastpath: ModuleType, engine: Any, number: int, end: threading.Event
    ) -> None:
        super().__init__()
        self.engine, self.end = engine, end
        self.batch = fastpath.Batch(64, 256)
        self.sent = [ip(f"10.180.{100 + number}.9", f"172.30.0.{n % 8 + 1}", TCP,
                        tcp(1000 + n, 80, data=b"x" * n)) for n in range(64)]  # fmt: skip
        self.wrong: list[object] = []
        self.rounds = 0
        self.packets = 0

    def run(self) -> None:
        while not self.end.is_set() or self.rounds < 50:
            for place, packet in enumerate(self.sent):
                self.batch.put(place, packet)
            self.engine.process(self.batch, 64, SECOND + self.rounds)
            self.packets += 64
            self.rounds += 1
            for place, packet in enumerate(self.sent):
                code, reason, got, _ = self.batch.get(place)
                fine = code == Code.FORWARD and got[16:20] in PLACES and len(got) == len(packet)
                if not fine:
                    self.wrong.append((code, reason, got))


PLACES = {raw(pod) for pod in PODS}


def changing(number: int) -> ServiceTable:
    """Some of the pods, never none."""
    chosen = random.Random(number).sample(PODS, 1 + number % 8)
    return service(*chosen, ip=f"172.30.0.{number % 8 + 1}", algorithm=number % 3)


def test_tables_change_under_packets(fastpath: ModuleType):
    """While two queues carry packets every service's table is replaced over and over: every packet
    goes to an endpoint, and none is lost or counted twice."""
    engine, end = made(fastpath), threading.Event()
    tables.commit(engine, {number: changing(number) for number in range(8)}, (), SECOND)
    queues = [Queue(fastpath, engine, number, end) for number in range(2)]
    for queue in queues:
        queue.start()
    # What is not optimised fills a table in the time in which another build fills thirty.
    for number in range(8, 40 if fastpath.DEBUG else 400):
        tables.commit(engine, {number % 8: changing(number)}, (), SECOND)
        engine.totals()
        engine.endpoint_counters(number % 8)
        engine.take_verdicts()
        if number % 50 == 0:
            engine.reap()
    end.set()
    for queue in queues:
        queue.join()
    assert not [queue.wrong[:3] for queue in queues if queue.wrong]
    carried = sum(queue.packets for queue in queues)
    assert engine.totals()["codes"][Code.FORWARD] == carried
    counted = sum(
        figures["packets_in"] for number in range(8)
        for figures in engine.endpoint_counters(number).values()
    )  # fmt: skip
    assert 0 < counted <= carried


def test_flood_of_a_million(fastpath: ModuleType):
    """A million first SYNs from random places, while a hundred connections go on: none of these
    breaks, and the table keeps to its limit."""
    if fastpath.DEBUG:
        amount, limit = 20_000, 4_096
    else:
        amount, limit = 1_000_000, 65_536
    engine = made(fastpath, msgspec.structs.replace(ROOMY, max_flows=limit))
    tables.commit(engine, {1: service(*map(member, PODS))}, (), SECOND)
    one, now = fastpath.Batch(64, 256), SECOND
    kept = []
    for sport in range(1000, 1100):
        one.put(0, ip("10.180.0.99", "172.30.0.41", TCP, tcp(sport, 80)))
        engine.process(one, 1, now)
        kept.append(one.get(0)[2])
        one.put(0, answer_to(kept[-1]))
        engine.process(one, 1, now)
        one.put(0, ip("10.180.0.99", "172.30.0.41", TCP, tcp(sport, 80, ACK)))
        engine.process(one, 1, now)
    chance, flood = random.Random(7), fastpath.Batch(10_000, 64)
    syn = bytearray(ip("10.180.0.1", "172.30.0.41", TCP, tcp(1, 80)))
    for _ in range(amount // 10_000):
        for place in range(10_000):
            syn[12:16], syn[20:22] = chance.randbytes(4), chance.randbytes(2)
            flood.put(place, syn)
        now += SECOND // 100
        engine.process(flood, 10_000, now)
        for place, reached in enumerate(kept[:50]):
            one.put(place, answer_to(reached, ACK, b"data"))
        engine.process(one, 50, now)
        assert {one.get(place)[0] for place in range(50)} == {Code.FORWARD}
    totals = engine.totals()
    assert totals["flows"][0] <= limit
    assert totals["recycled"] >= amount - limit - sum(totals["drops"])
    for place, reached in enumerate(kept[50:]):
        one.put(place, answer_to(reached, ACK, b"data"))
    engine.process(one, 50, now)
    assert {one.get(place)[0] for place in range(50)} == {Code.FORWARD}
