"""Rounds as machines of many kinds give them, with what is true known; and those that a real one
gave.

A machine is a pace that changes from one measurement to the next, in the order in which the turns
of a round are taken; a figure is a subject's speed at that pace with an error of its own.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from kproxy.bench.results import FORMAT, Fingerprint, Measure, Point, Results, Row, Section
from kproxy.bench.rounds import Figure, Round, turns

#: Pace of the machine from measurement to measurement, and the error of one figure: both as
#: factors' logarithms.
Pace = Iterator[float]
Error = Callable[[random.Random], float]

RATE = Measure("rate", "so many a second", "1/s", "higher", "traffic")
TIME = Measure("time", "until it is done", "s", "lower", "programming", "services")

DATA = Path(__file__).parent / "data"


def steady(chance: random.Random) -> Pace:
    while True:
        yield 0.0


def drifting(chance: random.Random) -> Pace:
    """A random walk: it warms up, it fills up, and never comes back by itself."""
    pace = 0.0
    while True:
        pace += chance.gauss(0, 0.02)
        yield pace


def autocorrelated(chance: random.Random) -> Pace:
    """What disturbs one measurement disturbs the next ones as well, by ever less."""
    pace = chance.gauss(0, 0.1)
    while True:
        pace = 0.9 * pace + chance.gauss(0, 0.1 * math.sqrt(1 - 0.9**2))
        yield pace


def shared(chance: random.Random) -> Pace:
    """A neighbour wakes and sleeps again: for some ten measurements a third is lost."""
    awake = False
    while True:
        awake = chance.random() < (0.9 if awake else 0.03)
        yield math.log(2 / 3) if awake else 0.0


def even(chance: random.Random) -> float:
    """Normal, of the figure itself."""
    return math.log(max(0.1, 1 + chance.gauss(0, 0.05)))


def log_normal(chance: random.Random) -> float:
    return chance.gauss(0, 0.06)


def heavy(chance: random.Random) -> float:
    """Student's t with two degrees of freedom: it has no variance."""
    return 0.03 * chance.gauss(0, 1) / math.sqrt(chance.expovariate(1))


def stalled(chance: random.Random) -> float:
    """One in twenty is stopped half way by something else."""
    return chance.gauss(0, 0.04) + (
        math.log(chance.uniform(0.4, 1)) if chance.random() < 0.05 else 0
    )


#: Name -> how its pace goes, and the error of each figure.
MACHINES: Mapping[str, tuple[Callable[[random.Random], Pace], Error]] = {
    "normal": (steady, even),
    "log-normal": (steady, log_normal),
    "heavy tails": (steady, heavy),
    "stalls": (steady, stalled),
    "drifting": (drifting, even),
    "autocorrelated": (autocorrelated, log_normal),
    "shared": (shared, even),
}


def simulated(machine: str, seed: int, rounds: int, speeds: Mapping[str, float]) -> list[Round]:
    """So many rounds of subjects with these speeds."""
    chance = random.Random(f"{machine} {seed}")
    pace_of, error = MACHINES[machine]
    pace = pace_of(chance)
    made: list[Round] = []
    for order in turns(list(speeds), rounds):
        taken = {
            name: Figure(speeds[name] * math.exp(next(pace) + error(chance)), attempts=1000)
            for name in order
        }
        made.append({name: taken[name] for name in speeds})
    return made


def row(rounds: Sequence[Round], base: str = "direct", measure: Measure = RATE) -> Row:
    return Row(Point(measure.name), base, tuple(dict(each) for each in rounds))


# --- recorded -----------------------------------------------------------------------------------


def recorded(name: str) -> dict[str, list[dict[str, float]]]:
    """Measure -> rounds of equal subjects, as :file:`tests/bench/record.py` has kept them."""
    kept: dict[str, list[dict[str, float]]] = json.loads((DATA / f"{name}.json").read_text())[
        "rounds"
    ]
    return kept


# --- results ------------------------------------------------------------------------------------

MACHINE = Fingerprint(
    cpu="A Processor",
    cores=2,
    memory=8 << 30,
    kernel="6.18",
    python="3.11.7",
    tools={"nft": "1.0.6"},
    sysctls={"node: net.ipv4.ip_forward": "1"},
    load=0.1,
)


def results(sections: Sequence[Section], machine: Fingerprint = MACHINE, **more: str) -> Results:
    """A result with these sections."""
    told = {"kproxy": "1.0", "profile": "quick", "command": "kproxy bench", **more}
    return Results(
        format=FORMAT, date="2026-01-02", fingerprint=machine, sections=tuple(sections), **told
    )


def section(*rows: Row, measures: Sequence[Measure] = (RATE, TIME)) -> Section:
    """Rows that were measured on the host."""
    return Section("host", "6.18", {}, tuple(measures), rows)
