"""fastpath mode on the path, beside direct routing, iptables mode and a floor, in paired rounds.

    python -m pytest bench/bench_fastpath_path.py -s [-k crr]

Knobs as in :mod:`bench.bench_relay`: ``KPROXY_BENCH_ROUNDS`` (9), ``KPROXY_BENCH_SECONDS`` (2). The
clients are pods of the node as far as the modes know, so that nobody is hidden: both modes
translate the destination alone, as the floor does, which is there for IPv4 only. A daemon that has
just started has things to do for half a second more: it is waited for, as no load of a node's life
meets that. Writes ``build/bench/fastpath-MEASURE.json``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import pytest

from bench.tun_floor import TunFloor
from kproxy.bench import report
from kproxy.bench.load import Kind, Load
from kproxy.bench.measure import Taken, measured
from kproxy.bench.ours import PODS, Mode
from kproxy.bench.path import Path
from kproxy.bench.peers import Direct, Subject
from kproxy.bench.rounds import Figure, Round, compare, middle, take
from kproxy.core.objects import Family

ROUNDS = int(os.environ.get("KPROXY_BENCH_ROUNDS", "9"))
SECONDS = float(os.environ.get("KPROXY_BENCH_SECONDS", "2"))

OURS = "fastpath"


class Calm(Mode):
    """A mode whose daemon has nothing left of its start when the load begins."""

    def start(self, path: Path) -> None:
        super().start(path)
        self.await_calm()


class Bar(NamedTuple):
    """Ours beside another: at least, or at most, so many times its figure."""

    base: str
    factor: float
    at_least: bool = True


class Row(NamedTuple):
    """What is taken of a load, and its bars."""

    unit: str
    of: Callable[[Taken], float]
    bars: tuple[Bar, ...] = ()


class Measure(NamedTuple):
    """A load and its rows. ``tolerance``: the share that may fail."""

    load: Load
    rows: Mapping[str, Row]
    family: Family = Family.IPV4
    tolerance: float = 0.0


def _rate(taken: Taken) -> float:
    return taken.result.rate


def _gigabits(taken: Taken) -> float:
    return taken.result.bits / 1e9


def _latency(share: float) -> Callable[[Taken], float]:
    return lambda taken: 1e6 * taken.result.latency.percentile(share)


def _connect(share: float) -> Callable[[Taken], float]:
    return lambda taken: 1e6 * taken.result.connect.percentile(share)


_FLOOR = Bar("floor", 0.9)
_RATE = Bar("iptables", 0.7)
_SPEED = Bar("direct", 0.6)
_WAIT = Bar("iptables", 1.6, at_least=False)


def _crr(family: Family = Family.IPV4, *bars: Bar) -> Measure:
    rows = {
        "operations": Row("/s", _rate, (*bars, _RATE)),
        "connect p50": Row("us", _connect(50), (_WAIT,)),
        "connect p99": Row("us", _connect(99)),
        "operation p50": Row("us", _latency(50)),
        "operation p99": Row("us", _latency(99)),
    }
    return Measure(Load(Kind.CRR, connections=1, operations=20_000), rows, family)


def _stream(direction: str, family: Family = Family.IPV4, *bars: Bar) -> Measure:
    load = Load(
        Kind.STREAM,
        connections=1,
        direction="up" if direction == "up" else "down",
        seconds=SECONDS,
        warmup=0.3,
    )
    return Measure(load, {"throughput": Row("Gbit/s", _gigabits, (*bars, _SPEED))}, family)


MEASURES = {
    "crr": _crr(Family.IPV4, _FLOOR),
    "stream": _stream("down", Family.IPV4, _FLOOR),
    "upload": _stream("up", Family.IPV4, _FLOOR),
    "udp": Measure(
        Load(Kind.UDP, connections=64, seconds=SECONDS, warmup=0.3, response_bytes=0),
        {"datagrams": Row("/s", lambda taken: taken.result.received_datagrams)},
        tolerance=1.0,
    ),
    "crr6": _crr(Family.IPV6),
    "stream6": _stream("down", Family.IPV6),
}


def subjects(family: Family) -> dict[str, Subject]:
    floor = {"floor": TunFloor()} if family is Family.IPV4 else {}
    return {
        "direct": Direct(),
        "iptables": Calm("iptables", *PODS),
        **floor,
        OURS: Calm(OURS, *PODS),
    }


@pytest.mark.parametrize("name", MEASURES)
def bench_fastpath_path(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One load against all of them, round by round."""
    measure = MEASURES[name]
    all_ = subjects(measure.family)
    taken = take(
        lambda each: measured(all_[each], measure.load, family=measure.family),
        list(all_),
        rounds=ROUNDS,
    )
    report.save(
        f"fastpath-{name}",
        {"fingerprint": report.fingerprint(all_.values()), "load": measure.load, "rounds": taken},
    )
    foreign = median(one.foreign for found in taken for one in found.values())
    lines = [f"\n{name}: {ROUNDS} rounds, other work {foreign:.2f} processors"]
    lines += [f"  {each:10} CPU {_cpu(taken, each):.2f} s" for each in all_]
    for title, row in measure.rows.items():
        lines += _lines(title, row, taken, list(all_), measure.tolerance)
    with capsys.disabled():
        sys.stdout.write("\n".join(lines) + "\n")
    failed = sum(found[OURS].result.failed for found in taken)
    assert failed <= measure.tolerance * sum(found[OURS].result.started for found in taken)


def _cpu(taken: Sequence[Mapping[str, Taken]], subject: str) -> float:
    return median(found[subject].cpu for found in taken)


def _lines(
    title: str,
    row: Row,
    taken: Sequence[Mapping[str, Taken]],
    names: Sequence[str],
    tolerance: float,
) -> list[str]:
    """Of one row: everybody's figure beside direct, then ours beside its bars."""
    rounds: list[Round] = [
        {
            each: Figure(row.of(one), one.result.started, one.result.failed)
            for each, one in found.items()
        }
        for found in taken
    ]
    lines = [f"  {title}, {row.unit}"]
    for each in names:
        ratio = compare(rounds, each, "direct", tolerance=tolerance)
        lines.append(f"    {each:10} {middle(rounds, each):>12,.1f}   {ratio} of direct")
    lines += [
        f"    {OURS} / {base}: {compare(rounds, OURS, base, tolerance=tolerance)}"
        for base in ("floor", "iptables")
        if base in names
    ]
    for bar in row.bars:
        found = compare(rounds, OURS, bar.base, tolerance=tolerance)
        met = found.ratio >= bar.factor if bar.at_least else found.ratio <= bar.factor
        sign = ">=" if bar.at_least else "<="
        lines.append(f"    bar {sign} {bar.factor} x {bar.base}: {'met' if met else 'NOT MET'}")
    return lines
