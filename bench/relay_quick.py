"""A look at the relay beside its peers in some twenty seconds, for tuning; no verdicts.

    python -m bench.relay_quick [SUBJECT ...] [--seconds S] [--rounds N] [--only MEASURE] [-o K=V]

Subjects: those of bench/subjects.py; direct, haproxy, nginx, relay by default. Options of the relay
are given like ``-o spin_seconds=0.0001``. Figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median

from msgspec.structs import replace

from kproxy.bench.load import Kind, Load, Result
from kproxy.bench.measure import measured
from kproxy.bench.ours import BareRelay
from kproxy.bench.peers import Subject
from kproxy.bench.subjects import SUBJECTS, TCP_ONLY, made

#: Measure -> (load, figure, unit).
MEASURES: dict[str, tuple[Load, Callable[[Result], float], str]] = {
    "crr1": (Load(Kind.CRR), lambda r: r.rate, "/s"),
    "crr16": (Load(Kind.CRR, connections=16), lambda r: r.rate, "/s"),
    "rr64": (Load(Kind.RR, connections=64), lambda r: r.rate, "/s"),
    "down1": (Load(Kind.STREAM), lambda r: r.bits / 1e9, "Gbit/s"),
    "up1": (Load(Kind.STREAM, direction="up"), lambda r: r.bits / 1e9, "Gbit/s"),
    "down4": (Load(Kind.STREAM, connections=4), lambda r: r.bits / 1e9, "Gbit/s"),
    "udp": (
        Load(Kind.UDP, connections=64, response_bytes=0),
        lambda r: r.received_datagrams,
        "arrived/s",
    ),
    "udprr": (Load(Kind.UDP, connections=64, window=4, timeout=0.5), lambda r: r.rate, "/s"),
}
_WARMUP = 0.2
#: Other work on the machine, in processors, that is worth a word.
_MUCH = 0.2


def main(arguments: Sequence[str] | None = None) -> None:
    given = _arguments(arguments)
    names = given.subjects or ["direct", "haproxy", "nginx", "relay"]
    subjects = {**made(names), "relay": BareRelay(**dict(given.option))}
    for measure in given.only or MEASURES:
        found: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
        for _ in range(given.rounds):
            for name in names:
                if measure.startswith("udp") and name in TCP_ONLY:
                    continue
                found[name].append(_measured(subjects[name], measure, given.seconds))
        unit = MEASURES[measure][2]
        for name, figures in found.items():
            figure, cost = median(each[0] for each in figures), median(each[1] for each in figures)
            per = "s CPU/GB" if unit == "Gbit/s" else "us CPU each"
            words = figures[-1][2]
            _say(f"{measure:6} {name:9} {figure:12,.1f} {unit:9} {cost:6.2f} {per:11}{words}")


def _measured(subject: Subject, measure: str, seconds: float) -> tuple[float, float, str]:
    """Figure, the subject's CPU for each (us, for a GB: s), words about the rest."""
    load, figure, unit = MEASURES[measure]
    taken = measured(subject, replace(load, seconds=seconds, warmup=_WARMUP))
    result = taken.result
    words = f"  {taken.foreign:.2f} other" if taken.foreign > _MUCH else ""
    if result.latency.total:
        shares = (50, 99, 99.9)
        at = "/".join(f"{1e6 * result.latency.percentile(share):.0f}" for share in shares)
        words += f"  p50/99/99.9 {at} us"
    if result.failures:
        words += f"  FAILED {result.failures}"
    if result.retransmits:
        words += f"  {result.retransmits} retransmitted"
    value = figure(result)
    share = 1e6 if unit != "Gbit/s" else 8.0
    cost = share * taken.cpu / (seconds + _WARMUP) / value if value else float("nan")
    return value, cost, words


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subjects", nargs="*", choices=[*SUBJECTS, []])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", action="append", choices=list(MEASURES))
    parser.add_argument("-o", "--option", action="append", type=_option, default=[])
    return parser.parse_args(arguments)


def _option(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    return name, ast.literal_eval(value)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
