"""Paired rounds: who is measured when, and what may be said of it. Pure but for the measuring.

A machine drifts: it warms up, a neighbour wakes. So all subjects are measured in each round, one
right after the other, in an order that turns from round to round, and what is compared is the
*ratio* within a round: what slows a whole round down cancels out. Reported is the median of the
ratios with an interval from order statistics (the sign test's): between the k-th smallest and the
k-th largest ratio lies the true median with a probability that only the number of rounds decides.
It assumes nothing about how figures scatter, no normal distribution above all, and pays with
rounds: 95 % takes at least 6, 99.9 % at least 11 (:func:`needed`).

A *difference* is shown when the interval leaves 1 out; reports ask for 99.9 %, because a report has
many rows, and of a hundred 95 % intervals five are wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from math import comb
from statistics import median
from typing import TypeVar

from kproxy.core.objects import Value

#: What a measurement gives; figures are taken from it.
Taken = TypeVar("Taken")

#: What verdicts of a report ask for.
VERDICT_LEVEL = 0.999


class Figure(Value, frozen=True):
    """One measurement of one subject: ``value``, higher or lower is better as the row says, and how
    many of its ``attempts`` were ``failures``. A figure with failures is no figure of speed."""

    value: float
    attempts: int = 0
    failures: int = 0


#: Of one round, by subject.
Round = Mapping[str, Figure]


class Verdict(StrEnum):
    """What the rounds show of a subject beside its base."""

    HIGHER = "higher"
    LOWER = "lower"
    NONE = "no difference shown"
    FEW = "too few rounds"
    FAILED = "failed"


class Comparison(Value, frozen=True):
    """``ratio`` is the median of subject / base in each round; between ``low`` and ``high`` lies
    the true median with probability ``level`` or more (0 and infinity: too few rounds to say).
    ``failures`` of ``attempts`` are those of the worse of the two."""

    subject: str
    base: str
    ratio: float
    low: float
    high: float
    level: float
    rounds: int
    verdict: Verdict
    failures: int = 0
    attempts: int = 0

    def __str__(self) -> str:
        interval = f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"
        if self.verdict is Verdict.FAILED:
            return f"failed: {self.failures} of {self.attempts}"
        if self.verdict is Verdict.FEW:
            return f"{self.ratio:.3f} ({self.rounds} rounds: no interval)"
        return f"{interval} {self.verdict}" if self.verdict is Verdict.NONE else interval


# --- who when -----------------------------------------------------------------------------------


def turns(subjects: Sequence[str], rounds: int) -> Iterator[tuple[str, ...]]:
    """The order of each round. In twice as many rounds as there are subjects each has had each
    place twice, and has come directly after each other one twice (E. J. Williams' design, 1949).

    Each second round is the one before it backwards: what drifts evenly through both is the same
    for all. Who is listed side by side (direct routing and its twin, two variants of a mode) is
    farther apart than others are on average: a noise floor that is taken one right after the
    other would know nothing of what changes within a round.
    """
    circle = (*subjects[::2], *subjects[1::2])
    # 0, 1, -1, 2, -2, …: each step around the circle is another one.
    steps = [(at + 1) // 2 if at % 2 else -(at // 2) for at in range(len(circle))]
    for number in range(rounds):
        order = tuple(circle[(number // 2 + step) % len(circle)] for step in steps)
        yield order[::-1] if number % 2 else order


def take(
    measure: Callable[[str], Taken],
    subjects: Sequence[str],
    *,
    rounds: int,
    warmup: int = 1,
    seconds: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    told: Callable[[int, Mapping[str, Taken]], None] = lambda number, taken: None,
) -> list[Mapping[str, Taken]]:
    """Measure all subjects in each of so many ``rounds``, after ``warmup`` ones that are left out.

    With ``seconds`` no round is begun that would end later than that, judged by the longest before
    it; one is always taken. ``told`` hears of each that counts. The rounds are whole: what
    ``measure`` raises ends them all.
    """
    begun, longest = clock(), 0.0
    taken: list[Mapping[str, Taken]] = []
    for number, order in enumerate(turns(subjects, warmup + rounds), -warmup):
        start = clock()
        if taken and seconds is not None and start + longest > begun + seconds:
            break
        figures = {subject: measure(subject) for subject in order}
        longest = max(longest, clock() - start)
        if number >= 0:
            taken.append({subject: figures[subject] for subject in subjects})
            told(number, taken[-1])
    return taken


# --- what may be said ---------------------------------------------------------------------------


def rank(count: int, level: float) -> int:
    """k for which the k-th smallest and the k-th largest of ``count`` values hold their median
    between them with probability ``level`` or more; 0: no k does.

    The median is left out when fewer than k values lie on one side of it, each value being there
    with probability 1/2: 2 * P(Binomial(count, 1/2) < k).
    """
    below, found = 0, 0
    for k in range(1, count // 2 + 1):
        below += comb(count, k - 1)
        if 2 * below / 2**count > 1 - level:
            break
        found = k
    return found


def reach(count: int) -> float:
    """The level that the smallest and the largest of ``count`` values have as an interval: the most
    that so many rounds can say. 0 for none."""
    return max(0.0, 1 - 2 * 0.5**count)


def needed(level: float) -> int:
    """Fewest rounds that can show a difference at this level."""
    count = 1
    while not rank(count, level):
        count += 1
    return count


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Of the median; (0, infinity) when there are too few values to say."""
    k = rank(len(values), level)
    if not k:
        return 0.0, float("inf")
    ordered = sorted(values)
    return ordered[k - 1], ordered[-k]


def compare(
    rounds: Sequence[Round],
    subject: str,
    base: str,
    *,
    level: float = 0.95,
    tolerance: float = 0.0,
) -> Comparison:
    """What the rounds show of a subject beside a base.

    When more than a share ``tolerance`` of either's attempts failed, or a base's figure is 0, it
    has failed, however fast the rest was. ValueError: no rounds.
    """
    if not rounds:
        raise ValueError("no rounds to compare")
    ratios = [
        each[subject].value / each[base].value if each[base].value else float("inf")
        for each in rounds
    ]
    low, high = interval(ratios, level)
    failures, attempts = max(
        (_failed(rounds, name) for name in (subject, base)),
        key=lambda counted: counted[0] / max(counted[1], 1),
    )
    failed = failures > tolerance * attempts or not all(each[base].value for each in rounds)
    return Comparison(
        subject=subject,
        base=base,
        ratio=median(ratios),
        low=low,
        high=high,
        level=level,
        rounds=len(rounds),
        verdict=Verdict.FAILED if failed else _verdict(low, high, len(rounds), level),
        failures=failures,
        attempts=attempts,
    )


def _verdict(low: float, high: float, count: int, level: float) -> Verdict:
    if not rank(count, level):
        return Verdict.FEW
    if low > 1:
        return Verdict.HIGHER
    return Verdict.LOWER if high < 1 else Verdict.NONE


def _failed(rounds: Sequence[Round], subject: str) -> tuple[int, int]:
    """Failures and attempts of a subject in all rounds."""
    return (
        sum(each[subject].failures for each in rounds),
        sum(each[subject].attempts for each in rounds),
    )


def noise(rounds: Sequence[Round], one: str, other: str, level: float = 0.95) -> float:
    """How far the ratio of two subjects that are the same is from 1, by the wider end of its
    interval: what a difference must exceed to mean anything here. Infinity: too few rounds."""
    found = compare(rounds, other, one, level=level, tolerance=1.0)
    return max(abs(found.low - 1), abs(found.high - 1))


def middle(rounds: Sequence[Round], subject: str) -> float:
    """Median of a subject's figures."""
    return median(each[subject].value for each in rounds)
