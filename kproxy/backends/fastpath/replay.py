"""The engine on packets that come from a list instead of a device: a capture, a test, a lesson.

Times are the packets' own. Where first SYNs go to another endpoint for want of an answer, they come
out between the packets of the capture, at the time at which they would have been sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from kproxy.backends.fastpath import tables
from kproxy.backends.fastpath.plan import Tables
from kproxy.core.objects import PortName, Value
from kproxy.core.twin.values import Code, EngineSettings, NodeTable, Reason

if TYPE_CHECKING:
    from kproxy._fastpath import Engine

#: A device's longest packet, and what an answer may add to a short one.
_ROOM = 65_535 + 128
#: How often it is looked whether a first SYN is to be sent again.
_LOOK = 10_000_000


class Step(Value, frozen=True):
    """What became of one packet. ``number`` counts those that went in from 1, 0 stands for a first
    SYN that was sent again; ``time`` is nanoseconds; ``packet`` is what came out (for PASS and DROP
    as it went in)."""

    number: int
    time: int
    code: Code
    reason: Reason
    service: PortName | None
    packet: bytes


class Replay:
    """An engine with the services of one or both families, each by the tables of its plan."""

    def __init__(
        self, settings: EngineSettings, nodes: Iterable[NodeTable], plans: Iterable[Tables]
    ) -> None:
        from kproxy._fastpath import Batch

        self.engine: Engine = tables.make_engine(settings)
        self.codes: Counter[Code] = Counter()
        self.reasons: Counter[Reason] = Counter()
        self._batch = Batch(1, _ROOM)
        self._names: dict[int, PortName] = {}
        self._now = 0
        for node in nodes:
            tables.set_node(self.engine, node)
        numbers = tables.Numbers(self.engine)
        changed = {}
        for plan in plans:
            for name, table in plan.services.items():
                number = numbers.give(plan.snapshot.family, name)
                self._names[number] = name
                changed[number] = table
        tables.commit(self.engine, changed, (), 0)

    def run(self, packets: Iterable[tuple[int, bytes]]) -> Iterator[Step]:
        """(nanoseconds, packet from its IP header on) in the order of time. A clock that goes back
        stands still."""
        for number, (time, packet) in enumerate(packets, start=1):
            yield from self._until(time)
            if len(packet) > _ROOM:
                # No device hands over so much: jumbograms are nobody's.
                yield self._step(number, time, Code.PASS, Reason.NONE, packet)
                continue
            self._batch.put(0, packet)
            self.engine.process(self._batch, 1, self._now)
            code, reason, made, _ = self._batch.get(0)
            yield self._step(number, time, Code(code), Reason(reason), made)
        yield from self._until(self._now + 2_000_000_000)

    def _until(self, time: int) -> Iterator[Step]:
        """Let time pass; first SYNs that are due on the way come out."""
        # Capture clocks begin anywhere, and may have gaps of hours, in which nothing is waited for.
        if not self._now or time - self._now > 10_000_000_000:
            self._now = max(self._now, time - 10_000_000_000)
        while self._now < time:
            self._now = min(time, self._now + _LOOK)
            while self.engine.due(self._batch, 1, self._now):
                made = self._batch.get(0)[2]
                yield self._step(0, self._now, Code.FORWARD, Reason.NONE, made)

    def _step(self, number: int, time: int, code: Code, reason: Reason, packet: bytes) -> Step:
        service = self._batch.service(0)
        self.codes[code] += 1
        self.reasons[reason] += 1
        name = self._names.get(service) if service is not None else None
        return Step(number, time, code, reason, name, packet)

    def services(self) -> Mapping[PortName, Mapping[bytes, Mapping[str, int]]]:
        """Counters of every endpoint that had a flow, by service port and place."""
        found = {}
        for number, name in self._names.items():
            counters = self.engine.endpoint_counters(number)
            used = {place: figures for place, figures in counters.items() if figures["flows"]}
            if used:
                found[name] = used
        return found
