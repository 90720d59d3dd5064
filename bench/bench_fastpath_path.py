"""fastpath mode on the path, beside direct routing, iptables mode and a floor, in paired rounds.

    python -m pytest bench/bench_fastpath_path.py -s [-k crr]

Knobs as in :mod:`bench.bench_relay`: ``KPROXY_BENCH_ROUNDS`` (9), ``KPROXY_BENCH_SECONDS`` (2). The
clients are pods of the node as far as the modes know, so that nobody is hidden: both modes
translate the destination alone, as the floor does. Writes ``build/bench/fastpath-MEASURE.json``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import pytest

from bench import report
from bench.load import Kind, Load
from bench.measure import Taken, measured
from bench.ours import Mode
from bench.peers import Direct, Subject
from bench.rounds import Figure, compare, middle, take
from bench.tun_floor import TunFloor

ROUNDS = int(os.environ.get("KPROXY_BENCH_ROUNDS", "9"))
SECONDS = float(os.environ.get("KPROXY_BENCH_SECONDS", "2"))

#: Client and pod are in it.
_CLUSTER = ("--cluster-cidr", "10.76.0.0/14,fd00::/8")
OURS = "fastpath"


class Bar(NamedTuple):
    """Ours beside another: at least, or at most, so many times its figure."""

    base: str
    factor: float
    at_least: bool = True


class Measure(NamedTuple):
    """A load, what is taken of it, and the bars."""

    load: Load
    unit: str
    of: Callable[[Taken], float]
    bars: tuple[Bar, ...] = ()
    tolerance: float = 0.0


def _rate(taken: Taken) -> float:
    return taken.result.rate


def _gigabits(taken: Taken) -> float:
    return taken.result.bits / 1e9


def _latency(share: float) -> Callable[[Taken], float]:
    return lambda taken: 1e6 * taken.result.latency.percentile(share)


_CRR = Load(Kind.CRR, connections=1, operations=20_000)


def _stream(connections: int, direction: str) -> Load:
    return Load(
        Kind.STREAM,
        connections=connections,
        direction="up" if direction == "up" else "down",
        seconds=SECONDS,
        warmup=0.3,
    )


MEASURES = {
    "crr": Measure(_CRR, "/s", _rate, (Bar("floor", 0.9), Bar("iptables", 0.7))),
    "p50": Measure(_CRR, "us", _latency(50), (Bar("iptables", 1.6, at_least=False),)),
    "p99": Measure(_CRR, "us", _latency(99)),
    "stream": Measure(
        _stream(1, "down"), "Gbit/s", _gigabits, (Bar("floor", 0.9), Bar("direct", 0.6))
    ),
    "upload": Measure(
        _stream(1, "up"), "Gbit/s", _gigabits, (Bar("floor", 0.9), Bar("direct", 0.6))
    ),
    "udp": Measure(
        Load(Kind.UDP, connections=64, seconds=SECONDS, warmup=0.3, response_bytes=0),
        "/s",
        lambda taken: taken.result.received_datagrams,
        tolerance=1.0,
    ),
}


def subjects() -> dict[str, Subject]:
    return {
        "direct": Direct(),
        "iptables": Mode("iptables", *_CLUSTER),
        "floor": TunFloor(),
        OURS: Mode(OURS, *_CLUSTER),
    }


@pytest.mark.parametrize("name", MEASURES)
def bench_fastpath_path(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One load against all four, round by round."""
    measure, all_ = MEASURES[name], subjects()
    taken = take(lambda each: measured(all_[each], measure.load), list(all_), rounds=ROUNDS)
    report.save(
        f"fastpath-{name}",
        {"fingerprint": report.fingerprint(all_.values()), "load": measure.load, "rounds": taken},
    )
    rounds = [
        {
            each: Figure(measure.of(one), one.result.started, one.result.failed)
            for each, one in found.items()
        }
        for found in taken
    ]
    foreign = median(one.foreign for found in taken for one in found.values())
    lines = [f"\n{name}, {measure.unit}: {ROUNDS} rounds, other work {foreign:.2f} processors"]
    for each in all_:
        ratio = compare(rounds, each, "direct", tolerance=measure.tolerance)
        cpu = median(found[each].cpu for found in taken)
        lines.append(
            f"  {each:10} {middle(rounds, each):>12,.1f}   {ratio} of direct, CPU {cpu:.2f} s"
        )
    for bar in measure.bars:
        found = compare(rounds, OURS, bar.base, tolerance=measure.tolerance)
        met = found.ratio >= bar.factor if bar.at_least else found.ratio <= bar.factor
        sign = ">=" if bar.at_least else "<="
        lines.append(
            f"  {OURS} / {bar.base}: {found}   "
            f"bar {sign} {bar.factor}: {'met' if met else 'NOT MET'}"
        )
    with capsys.disabled():
        sys.stdout.write("\n".join(lines) + "\n")
    failed = sum(found[OURS].result.failed for found in taken)
    assert failed <= measure.tolerance * sum(found[OURS].result.started for found in taken)
