"""The relay beside HAProxy, nginx and direct routing, in paired rounds; README.md says how to read
it.

    python -m pytest bench/bench_relay.py -s [-k crr]

Knobs: ``KPROXY_BENCH_ROUNDS`` (7), ``KPROXY_BENCH_SECONDS`` of a measurement (2),
``KPROXY_BENCH_HELD`` seconds against one endpoint (60) in ``KPROXY_BENCH_HELD_ROUNDS`` (1),
``KPROXY_BENCH_SUBJECTS`` (names of :mod:`kproxy.bench.subjects`; the first is what all are compared
with, the last what bars are about). Each measure writes ``build/bench/relay-MEASURE.json``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Literal, NamedTuple

import pytest
from msgspec.structs import replace

from kproxy.bench import report
from kproxy.bench.load import Kind, Load, Result
from kproxy.bench.measure import Held, Taken, held, measured
from kproxy.bench.rounds import Figure, Round, compare, middle, noise, take
from kproxy.bench.subjects import AGAIN, DIRECT, TCP_ONLY, made
from kproxy.core.objects import Value

ROUNDS = int(os.environ.get("KPROXY_BENCH_ROUNDS", "7"))
SECONDS = float(os.environ.get("KPROXY_BENCH_SECONDS", "2"))
HELD = float(os.environ.get("KPROXY_BENCH_HELD", "60"))
HELD_ROUNDS = int(os.environ.get("KPROXY_BENCH_HELD_ROUNDS", "1"))
NAMES = os.environ.get("KPROXY_BENCH_SUBJECTS", "direct,haproxy,nginx,relay").split(",")
PEERS = ("haproxy", "nginx")

#: Connections that are opened first, and those that are held idle.
FIRST, IDLE = 20_000, 10_000

#: Seconds before anything of a stream or of kept connections is counted.
WARMUP = 0.3


class Bar(NamedTuple):
    """Ours beside each of these peers: at least, or at most, so many times theirs."""

    factor: float
    at_least: bool = True
    peers: Sequence[str] = PEERS


class Shown(NamedTuple):
    """A figure of a measurement."""

    name: str
    unit: str
    of: Callable[[Taken], float]
    bar: Bar | None = None


class Measure(Value, frozen=True):
    """A load and what is shown of it."""

    name: str
    load: Load
    figures: tuple[Shown, ...]
    settings: str = "tuned"
    rounds: int = ROUNDS
    #: The rounds that come first are left out; a minute against one endpoint warms itself up.
    warmup: int = 1
    #: Share of the operations that may fail: datagrams that find a full queue are lost.
    tolerance: float = 0.0


def _percentile(share: float) -> Callable[[Taken], float]:
    return lambda taken: 1e6 * taken.result.latency.percentile(share)


def _kept(taken: Taken) -> float:
    """The last sixth of the time (10 s of a minute) over the first twelfth (5 s)."""
    return _last(taken) / (taken.result.part(0, max(1, round(HELD / 12))) or 1.0)


def _last(taken: Taken) -> float:
    return taken.result.part(-max(1, round(HELD / 6)), 0)


def _gigabytes(result: Result) -> float:
    return result.bits * result.seconds / 8e9


_RATE = Shown("per second", "/s", lambda taken: taken.result.rate)
_P50 = Shown("p50", "us", _percentile(50))
_CRR = (
    _RATE._replace(bar=Bar(1.05)),
    _P50,
    Shown("p99", "us", _percentile(99), Bar(1.1, at_least=False, peers=("haproxy",))),
    Shown("CPU", "s/10,000", lambda taken: 1e4 * taken.cpu / taken.result.completed),
)
_STREAM = (
    Shown("throughput", "Gbit/s", lambda taken: taken.result.bits / 1e9, Bar(1.5)),
    # With the warm-up in both: the load counts its bytes without.
    Shown(
        "CPU",
        "s/GB",
        lambda taken: taken.cpu * SECONDS / (SECONDS + WARMUP) / _gigabytes(taken.result),
    ),
)
_HELD = (
    Shown("last 10 s over first 5 s", "", _kept),
    Shown("last 10 s", "/s", _last, Bar(0.9)),
)


def _crr(connections: int) -> Load:
    return Load(Kind.CRR, connections=connections, operations=FIRST)


def _stream(connections: int, direction: Literal["down", "up"]) -> Load:
    return Load(
        Kind.STREAM,
        connections=connections,
        direction=direction,
        seconds=SECONDS,
        warmup=WARMUP,
    )


_UDP = Load(Kind.UDP, connections=64, seconds=SECONDS, warmup=WARMUP)

MEASURES = (
    Measure("crr1", _crr(1), _CRR),
    Measure("crr16", _crr(16), _CRR),
    Measure("stream1", _stream(1, "down"), _STREAM),
    Measure("stream4", _stream(4, "down"), _STREAM),
    Measure("upload1", _stream(1, "up"), _STREAM),
    Measure(
        "rr64",
        Load(Kind.RR, connections=64, seconds=SECONDS, warmup=WARMUP),
        (_RATE, _P50, Shown("p99", "us", _percentile(99))),
    ),
    Measure(
        "udp",
        replace(_UDP, response_bytes=0),
        (
            Shown(
                "arrived",
                "/s",
                lambda taken: taken.result.received_datagrams,
                Bar(2.0, peers=("nginx",)),
            ),
        ),
    ),
    Measure(
        "udp-answered",
        replace(_UDP, window=4, timeout=0.5),
        (_RATE._replace(bar=Bar(2.0, peers=("nginx",))), _P50),
        tolerance=0.01,
    ),
    *(
        Measure(
            f"held-{settings}",
            Load(Kind.CRR, seconds=HELD),
            _HELD,
            settings=settings,
            rounds=HELD_ROUNDS,
            warmup=0,
        )
        for settings in ("tuned", "stock")
    ),
)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def bench_relay(measure: Measure, capsys: pytest.CaptureFixture[str]) -> None:
    """One load against everybody, round by round."""
    wanted = [name for name in NAMES if not (measure.load.kind is Kind.UDP and name in TCP_ONLY)]
    if measure.rounds > 1:
        wanted.insert(1, AGAIN)
    subjects = made(wanted)
    print_header(measure, capsys)
    rounds = take(
        lambda name: measured(subjects[name], measure.load, settings=measure.settings),
        wanted,
        rounds=measure.rounds,
        warmup=measure.warmup,
    )
    report.save(
        f"relay-{measure.name}",
        {
            "fingerprint": report.fingerprint(subjects.values()),
            "load": measure.load,
            "settings": measure.settings,
            "rounds": rounds,
        },
    )
    for shown in measure.figures:
        _print(
            capsys, *_table(shown, measure.tolerance, [_figures(shown, each) for each in rounds])
        )
    _print(capsys, *_remarks(rounds))
    ours = [each[wanted[-1]].result for each in rounds]
    failed, started = (sum(getattr(one, what) for one in ours) for what in ("failed", "started"))
    assert failed <= measure.tolerance * started


def bench_idle_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """What an idle connection costs a relay; the kernel's part is the same for all."""
    names = [name for name in NAMES if name != DIRECT]
    subjects = made(names)
    found: dict[str, Held] = {name: held(subject, IDLE) for name, subject in subjects.items()}
    report.save(
        "relay-memory",
        {"fingerprint": report.fingerprint(subjects.values()), "held": found},
    )
    lines = [f"memory of {next(iter(found.values())).connections:,} idle connections"]
    for name, each in found.items():
        lines.append(
            f"  {name:14} {each.each:8,.0f} bytes each "
            f"({each.before.pss / 1e6:.1f} MB before, {each.after.pss / 1e6:.1f} MB with them)"
        )
    _print(capsys, *lines, "  bar: at most haproxy's")


# --- the table ----------------------------------------------------------------------------------


def print_header(measure: Measure, capsys: pytest.CaptureFixture[str]) -> None:
    _print(
        capsys,
        "",
        f"{measure.name}: {measure.load}",
        f"  {measure.rounds} rounds, node's sysctls {measure.settings}",
    )


def _figures(shown: Shown, taken: Mapping[str, Taken]) -> Round:
    return {
        name: Figure(shown.of(each), each.result.started, each.result.failed)
        for name, each in taken.items()
        if not (shown.name == "CPU" and name in (DIRECT, AGAIN))
    }


def _table(shown: Shown, tolerance: float, rounds: list[Round]) -> list[str]:
    """Medians, ratios to direct, and the bars."""
    names = list(rounds[0])
    ours = names[-1]
    lines = [f"  {shown.name}{f', {shown.unit}' if shown.unit else ''}"]
    for name in names:
        line = f"    {name:14} {_number(middle(rounds, name)):>12}"
        if names[0] == DIRECT and name != DIRECT:
            line += f"   {compare(rounds, name, DIRECT, tolerance=tolerance)} of direct"
        lines.append(line)
    if AGAIN in names:
        lines.append(f"    noise floor: {noise(rounds, DIRECT, AGAIN):.3f}")
    if shown.bar is not None:
        for peer in (each for each in shown.bar.peers if each in names and each != ours):
            found = compare(rounds, ours, peer, tolerance=tolerance)
            good = (
                found.ratio >= shown.bar.factor
                if shown.bar.at_least
                else found.ratio <= shown.bar.factor
            )
            lines.append(
                f"    {ours} / {peer}: {found}   bar "
                f"{'>=' if shown.bar.at_least else '<='} {shown.bar.factor}: "
                f"{'met' if good else 'NOT MET'}"
            )
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.3g}"


def _remarks(rounds: Sequence[Mapping[str, Taken]]) -> list[str]:
    """What went wrong on the way, by subject."""
    foreign = median(each.foreign for taken in rounds for each in taken.values())
    lines = [f"  other work on the machine meanwhile: {foreign:.2f} processors"]
    for name in rounds[0]:
        results = [each[name].result for each in rounds]
        kinds = sorted({kind for result in results for kind in result.failures})
        words = [
            f"{sum(result.failures.get(kind, 0) for result in results)} {kind}" for kind in kinds
        ]
        if again := sum(result.retransmits for result in results):
            words.append(f"{again} segments sent again by the client")
        if words:
            lines.append(f"  {name}: {', '.join(words)}")
    return lines


def _print(capsys: pytest.CaptureFixture[str], *lines: str) -> None:
    with capsys.disabled():
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
