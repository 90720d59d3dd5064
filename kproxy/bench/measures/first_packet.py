"""The first packet of a connection, with ever more services to look among.

Only the first packet is looked up: later ones follow what conntrack, a relay or an engine has
written down. So this is the time of ``connect(2)``, one connection after the other, to the service
that is looked up first and to the one that is looked up last. Where services are rules of a chain,
that is the chain's order, which is read from the kernel; everywhere else (maps, hashes, tables) it
is the order of names, and no place is better than another. In userspace mode and for relays it is
the relay that answers, before the pod is asked: its figure says what the way to the relay costs.

For each number of services a daemon of each mode stands on a path of its own from the first round
to the last, with an hour between its full syncs: setting ten thousand services up takes longer than
all turns. Rounds differ by the load alone. Services have one endpoint and one port each, IPv4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple, Self

from msgspec.structs import replace

from kproxy.bench import measure, usage
from kproxy.bench import subjects as _subjects
from kproxy.bench.load import Kind, Load, Place
from kproxy.bench.many import Many
from kproxy.bench.measures.base import Reading
from kproxy.bench.ours import MODES
from kproxy.bench.path import Path
from kproxy.bench.peers import Direct, Subject, running
from kproxy.bench.results import Absent, Cost, Measure, Point
from kproxy.bench.rounds import Figure
from kproxy.bench.standing import Standing, prove, ready
from kproxy.bench.subjects import AGAIN, DIRECT
from kproxy.core.objects import Family
from kproxy.errors import CheckFailed, KproxyError

MEASURE = Measure(
    name="first-packet",
    title="connect to the first and to the last of so many services: median",
    unit="s",
    better="lower",
    group="first-packet",
    axis="services",
)

#: Of each point in a turn. A reset leaves nothing behind that the next one would have to pass by.
#: Without a warm-up whoever comes first meets threads that sleep, and the next one awake ones: 10
#: and 26 us in userspace mode, for the same service.
_LOAD = Load(Kind.CRR, connections=1, seconds=30.0, warmup=0.02, closer="reset")


class _Way(NamedTuple):
    """A daemon with so many services, and what it holds: bytes of the kernel's memory."""

    standing: Standing
    places: Mapping[str, Place]
    kernel_memory: int


class FirstPacket:
    """The group; see :class:`kproxy.bench.measures.base.Group`.

    ``subjects`` are names as of :mod:`kproxy.bench.subjects`, direct routing comes first whether
    named or not; modes take part, and those that serve one service do not. ``sizes``: numbers of
    services; ``connections``: how many are opened for each figure.
    """

    name = "first-packet"

    def __init__(self, subjects: Sequence[str], *, sizes: Sequence[int], connections: int) -> None:
        wanted = [DIRECT, *(name for name in subjects if name != DIRECT)]
        present, lacking = _subjects.parted(wanted)
        self.measures: Sequence[Measure] = (MEASURE,)
        self.base = DIRECT
        self._sizes = tuple(sizes)
        self._load = replace(_LOAD, operations=connections)
        self._names = [name for name in present if name in (DIRECT, AGAIN, *MODES)]
        lacking |= {name: "it serves one service" for name in present if name not in self._names}
        self.absent = [Absent(name, MEASURE.name, why) for name, why in lacking.items()]
        self._ways: dict[tuple[str, int], _Way] = {}
        self._turns: Counter[str] = Counter()
        self._stack = ExitStack()

    @property
    def subjects(self) -> Sequence[str]:
        return list(self._names)

    def __enter__(self) -> Self:
        """MachineError, CheckFailed: even direct routing does not work."""
        try:
            for name in self.subjects:
                for size in self._sizes:
                    self._stand(name, size)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._ways.clear()
        self._stack.close()

    def turn(self, subject: str) -> Mapping[Point, Reading]:
        """Both ends at every size, every other time from the last to the first. CheckFailed: a
        service no longer answers."""
        points = [
            Point(MEASURE.name, at=size, where=where)
            for size in self._sizes
            if (subject, size) in self._ways
            for where in ("first", "last")
        ]
        self._turns[subject] += 1
        readings = {}
        for point in points if self._turns[subject] % 2 else points[::-1]:
            way = self._ways[subject, int(point.at or 0)]
            readings[point] = _taken(way, point.where, self._load)
            way.standing.path.forget()
        return {point: readings[point] for point in points}

    def _stand(self, name: str, size: int) -> None:
        """One more daemon; when it cannot, that is said, and a larger one is not tried."""
        if any(each.subject == name for each in self.absent):
            return
        try:
            if name in MODES:
                self._ways[name, size] = _way_of(self._stack, Many(name, size))
            else:
                self._ways[name, size] = self._direct(name)
        except KproxyError as why:
            if name == self.base:
                raise
            self.absent.append(Absent(name, MEASURE.name, f"at {size:,} services: {why}"))
            if not any(known == name for known, _ in self._ways):
                self._names.remove(name)

    def _direct(self, name: str) -> _Way:
        """One is enough for all sizes: it knows of no service."""
        for (known, _), way in self._ways.items():
            if known == name:
                return way
        return _way_of(self._stack, Direct(name))


def _way_of(outer: ExitStack, subject: Subject) -> _Way:
    """It stands, serves at both ends and is calm, until the stack ends."""
    with ExitStack() as stack:
        path = stack.enter_context(Path(clients=1))
        before = usage.kernel_memory()
        stack.enter_context(running(subject, path))
        standing = ready(Standing(path, subject))
        held = max(0, usage.kernel_memory() - before)
        places = {"first": subject.place(Family.IPV4)}
        places["last"] = subject.last() if isinstance(subject, Many) else places["first"]
        prove(standing, places["last"])
        outer.push(stack.pop_all())
    return _Way(standing, places, held)


def _taken(way: _Way, where: str, load: Load) -> Reading:
    taken = measure.on(*way.standing, load, place=way.places[where])
    result = taken.result
    if not result.connect.total:
        raise CheckFailed(f"no connection was made: {result.failures}", where=f"{where} service")
    cost = Cost(
        seconds=taken.seconds,
        proxy=taken.cpu,
        kernel=taken.others,
        memory=taken.memory.pss,
        kernel_memory=way.kernel_memory,
    )
    figure = Figure(result.connect.percentile(50), result.started, result.failed)
    return Reading(figure, dict(result.connect.counts), cost)
