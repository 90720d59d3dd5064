"""Traffic through a service that is in force: connections, requests, bulk, datagrams.

Every subject has a path of its own. With ``fresh`` it is made for each turn, subject and all, so
that rounds share nothing; else it stands from the first round to the last, which is what a short
run can pay: then rounds differ by the load alone, and what belongs to one start of a daemon (where
its memory lies) is the same in all of them. Within a turn the loads follow each other from the one
that leaves nothing to the one that leaves most (:data:`LOADS`); after it the node forgets all
connections.

A turn lasts ``len(LOADS) * (seconds + warm-up)`` and less than a tenth of a second; ``fresh`` adds
another tenth for the path, and one second for a daemon that starts and comes to rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal, Self

from msgspec.structs import replace

from kproxy.bench import measure
from kproxy.bench import subjects as _subjects
from kproxy.bench.load import Kind, Load, Result
from kproxy.bench.measure import Taken
from kproxy.bench.measures.base import Reading
from kproxy.bench.results import Absent, Cost, Measure, Point, Unit
from kproxy.bench.rounds import Figure
from kproxy.bench.standing import Standing, all_stood, stood
from kproxy.bench.subjects import DIRECT
from kproxy.core.objects import Value
from kproxy.errors import CheckFailed

#: Connections, or sockets, at once: enough that no end waits for the other.
SHORT, KEPT, SOCKETS = 16, 64, 64

#: Seconds that nothing is counted of: at most, and as a share of those that count.
_WARMUP, _WARMUP_SHARE = 0.3, 0.25

#: How often a load is made of which nothing was answered, and how much longer each time.
_TRIES, _LONGER = 4, 4

#: How much of a load has arrived; bytes of an answer that is not whole are no answer.
_ARRIVED: Mapping[Kind, Callable[[Result], float]] = {
    Kind.CRR: lambda result: result.completed,
    Kind.RR: lambda result: result.completed,
    Kind.STREAM: lambda result: result.bytes_in,
    Kind.UDP: lambda result: result.received_datagrams,
}


class Shown(Value, frozen=True):
    """A measure, its figure in a result, and the histogram that it is from."""

    measure: Measure
    of: Callable[[Result], float]
    histogram: Callable[[Result], Mapping[int, int]] = lambda result: {}


def _percentile(share: float) -> Callable[[Result], float]:
    return lambda result: result.latency.percentile(share)


def _rate(result: Result) -> float:
    return result.rate


def _latencies(result: Result) -> Mapping[int, int]:
    return result.latency.counts


def _is(name: str, title: str, unit: Unit) -> Measure:
    """Of traffic; what is counted in a second is better when it is more."""
    better: Literal["higher", "lower"] = "lower" if unit == "s" else "higher"
    return Measure(name=name, title=title, unit=unit, better=better, group="traffic")


#: Seconds that a request with a connection of its own may take. A SYN that is lost is sent again
#: after a second (RFC 6298): what waited for that has failed, and was no slow success.
_TIMEOUT = 0.8

#: What is run in a turn, in this order, and what is shown of it. Latencies are those of a client
#: that opens one connection after the other: at 16 at once they would say what the rate says.
LOADS: Mapping[str, tuple[Load, tuple[Shown, ...]]] = {
    "kept": (
        Load(Kind.RR, connections=KEPT),
        (Shown(_is("rr", f"requests on {KEPT} kept connections", "1/s"), _rate, _latencies),),
    ),
    "one stream": (
        Load(Kind.STREAM, connections=1),
        (Shown(_is("stream1", "one stream", "bit/s"), lambda result: result.bits),),
    ),
    "four streams": (
        Load(Kind.STREAM, connections=4),
        (Shown(_is("stream4", "four streams", "bit/s"), lambda result: result.bits),),
    ),
    "datagrams": (
        Load(Kind.UDP, connections=SOCKETS, response_bytes=0),
        (
            Shown(
                _is("udp", "64-byte datagrams that arrive, one way", "1/s"),
                lambda result: result.received_datagrams,
            ),
        ),
    ),
    "one at a time": (
        Load(Kind.CRR, connections=1, timeout=_TIMEOUT),
        (
            Shown(
                _is("crr-p50", "connect, request, response, close: median", "s"),
                _percentile(50),
                _latencies,
            ),
            Shown(
                _is("crr-p99", "connect, request, response, close: 99th percentile", "s"),
                _percentile(99),
                _latencies,
            ),
            Shown(
                _is("connect-p50", "connect: median", "s"),
                lambda result: result.connect.percentile(50),
                lambda result: result.connect.counts,
            ),
        ),
    ),
    "short": (
        Load(Kind.CRR, connections=SHORT, timeout=_TIMEOUT),
        (
            Shown(
                _is("crr", f"connect, request, response, close; {SHORT} at once", "1/s"),
                _rate,
                _latencies,
            ),
        ),
    ),
}

#: By name, in the order of tables.
MEASURES: Mapping[str, Measure] = {
    name: next(
        shown.measure for _, of in LOADS.values() for shown in of if shown.measure.name == name
    )
    for name in ("crr", "crr-p50", "crr-p99", "connect-p50", "rr", "stream1", "stream4", "udp")
}


class Traffic:
    """The group; see :class:`kproxy.bench.measures.base.Group`.

    ``subjects`` are names as of :mod:`kproxy.bench.subjects`, direct routing comes first whether
    named or not. ``seconds`` is how long each load is counted; what arrives is counted in
    hundredths. ``measures``: those wanted, all by default.
    """

    name = "traffic"

    def __init__(
        self,
        subjects: Sequence[str],
        *,
        seconds: float,
        fresh: bool = False,
        measures: Sequence[str] = tuple(MEASURES),
    ) -> None:
        self._present, lacking = _subjects.parted(
            [DIRECT, *(name for name in subjects if name != DIRECT)]
        )
        self.measures = [measure for name, measure in MEASURES.items() if name in measures]
        self.absent = [
            Absent(name, each.name, reason)
            for name, reason in lacking.items()
            for each in self.measures
        ]
        self.absent += [
            Absent(name, "udp", "it carries no datagrams")
            for name, subject in self._present.items()
            if not subject.udp and "udp" in measures
        ]
        self.base = DIRECT
        self._seconds = seconds
        self._fresh = fresh
        self._loads = [
            (_timed(load, seconds), wanted)
            for load, shown in LOADS.values()
            if (wanted := [each for each in shown if each.measure.name in measures])
        ]
        self._stack = ExitStack()
        self._standing: dict[str, Standing] = {}

    @property
    def subjects(self) -> Sequence[str]:
        return list(self._present)

    def __enter__(self) -> Self:
        """MachineError, CheckFailed: even direct routing does not work."""
        if self._fresh:
            return self
        try:
            self._standing, failed = all_stood(self._stack, self._present)
            if self.base in failed:
                raise CheckFailed(failed[self.base], where=self.base)
            for name, reason in failed.items():
                del self._present[name]
                self.absent += [Absent(name, each.name, reason) for each in self.measures]
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._standing = {}
        self._stack.close()

    def turn(self, subject: str) -> Mapping[Point, Reading]:
        """Every load once. CheckFailed: it does not serve, or answers nothing of a load."""
        readings: dict[Point, Reading] = {}
        with self._on(subject) as standing:
            for load, shown in self._loads:
                if load.kind.protocol == "udp" and not standing.subject.udp:
                    continue
                readings |= _taken(standing, load, shown)
            standing.path.forget()
        return readings

    @contextmanager
    def _on(self, subject: str) -> Iterator[Standing]:
        if self._fresh:
            with stood(self._present[subject]) as standing:
                yield standing
        else:
            yield self._standing[subject]


def _timed(load: Load, seconds: float) -> Load:
    return replace(load, seconds=seconds, warmup=min(_WARMUP, _WARMUP_SHARE * seconds))


def _taken(standing: Standing, load: Load, shown: Sequence[Shown]) -> dict[Point, Reading]:
    taken, again = _answered(standing, load)
    result = taken.result
    cost = Cost(
        seconds=taken.seconds, proxy=taken.cpu, kernel=taken.others, memory=taken.memory.pss
    )
    return {
        Point(each.measure.name): Reading(
            Figure(each.of(result), result.started, result.failed),
            dict(each.histogram(result)),
            cost,
            again,
        )
        for each in shown
    }


def _answered(standing: Standing, load: Load) -> tuple[Taken, int]:
    """A load of which something was answered, and how many before it were not. One that fell into a
    moment in which the machine did something else, so that nothing was and nothing failed, is made
    again and longer: it says nothing about the subject, but the result tells of it. CheckFailed:
    nothing is answered all the same."""
    for again in range(_TRIES):
        taken = measure.on(*standing, replace(load, seconds=load.seconds * _LONGER**again))
        if _ARRIVED[load.kind](taken.result):
            return taken, again
        if taken.result.failed:
            break
    failures = ", ".join(f"{count} {kind}" for kind, count in taken.result.failures.items())
    raise CheckFailed(f"nothing was answered ({failures or 'and nothing failed'})", where=str(load))
