"""Rounds: the order is fair, intervals hold what they promise, a difference is found if it is there
and is not if it is not, and failures are never speed."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise, permutations

import pytest

from kproxy.bench.rounds import (
    VERDICT_LEVEL,
    Figure,
    Round,
    Verdict,
    compare,
    interval,
    middle,
    needed,
    noise,
    rank,
    take,
    turns,
)

SUBJECTS = ("direct", "ours", "theirs")

#: Rounds of a report, which asks for 99.9 %.
MANY = 15


def synthetic(seed: int, rounds: int, speeds: dict[str, float]) -> list[Round]:
    """Rounds as this kind of machine gives them: a drift that all share, noise of each figure of
    5 %, and one measurement in twenty that something else has slowed down by up to a half."""
    chance = random.Random(seed)
    drift = 1.0
    made: list[Round] = []
    for _ in range(rounds):
        drift *= math.exp(chance.gauss(0, 0.1))
        figures = {}
        for name, speed in speeds.items():
            slowed = chance.uniform(0.5, 1) if chance.random() < 0.05 else 1
            value = speed * drift * math.exp(chance.gauss(0, 0.05)) * slowed
            figures[name] = Figure(value, attempts=1000)
        made.append(figures)
    return made


@pytest.mark.parametrize("count", range(1, 17))
def test_turns_are_fair(count: int) -> None:
    """In twice as many rounds as there are subjects each has each place twice, and comes directly
    after each other one twice; each second round is the one before it backwards."""
    subjects = [str(number) for number in range(count)]
    orders = list(turns(subjects, 2 * count))
    places = Counter((name, at) for order in orders for at, name in enumerate(order))
    assert places == {(name, at): 2 for name in subjects for at in range(count)}
    follows = Counter(pair for order in orders for pair in pairwise(order))
    assert follows == dict.fromkeys(permutations(subjects, 2), 2)
    assert all(one == other[::-1] for one, other in zip(orders[::2], orders[1::2], strict=True))


@pytest.mark.parametrize("rounds", [2, 4, 6, 11, 15, 31])
@pytest.mark.parametrize("count", range(4, 17))
def test_twins_are_no_neighbours(count: int, rounds: int) -> None:
    """The first two, who are direct routing and its twin, are at least as far apart as others are
    on average, and one right after the other no more often than anybody else: the noise floor knows
    what changes within a round."""
    subjects = list(range(count))
    orders = list(turns(subjects, rounds))
    apart = [abs(order.index(0) - order.index(1)) for order in orders]
    assert sum(apart) / rounds >= (count + 1) / 3
    assert apart.count(1) <= 2 * math.ceil(rounds / count)


def test_take_leaves_warm_up_out_and_measures_in_turn() -> None:
    """Every subject is measured in every round, those of the warm-up are not kept, and what is kept
    has the subjects in their own order."""
    asked: list[str] = []

    def measure(subject: str) -> Figure:
        asked.append(subject)
        return Figure(len(asked))

    told: list[int] = []
    kept = take(
        measure, SUBJECTS, rounds=3, warmup=2, told=lambda number, taken: told.append(number)
    )
    assert len(asked) == 5 * 3
    assert told == [0, 1, 2]
    assert [min(figure.value for figure in each.values()) for each in kept] == [7, 10, 13]
    assert all(tuple(each) == SUBJECTS for each in kept)


@pytest.mark.parametrize(("seconds", "expected"), [(3.0, 1), (9.5, 3), (100.0, 10)])
def test_take_affords_what_it_can(seconds: float, expected: int) -> None:
    """No round is begun that would end too late, one is taken in any case."""
    now = [0.0]

    def measure(subject: str) -> Figure:
        now[0] += 1
        return Figure(1)

    kept = take(measure, SUBJECTS, rounds=10, warmup=0, seconds=seconds, clock=lambda: now[0])
    assert len(kept) == expected


@pytest.mark.parametrize(
    ("count", "level", "expected"),
    # Tables of the sign test: for 9 values 2 * (1 + 9) / 512 = 0.039.
    [
        (5, 0.95, 0),
        (6, 0.95, 1),
        (8, 0.95, 1),
        (9, 0.95, 2),
        (12, 0.95, 3),
        (10, 0.999, 0),
        (11, 0.999, 1),
        (14, 0.999, 1),
        (15, 0.999, 2),
        (20, 0.95, 6),
    ],
)
def test_rank(count: int, level: float, expected: int) -> None:
    """The rank is that of the sign test."""
    assert rank(count, level) == expected


@pytest.mark.parametrize(("level", "expected"), [(0.95, 6), (0.99, 8), (0.999, 11)])
def test_needed(level: float, expected: int) -> None:
    """The fewest rounds that can show anything."""
    assert needed(level) == expected


def test_intervals_hold_the_median_as_often_as_they_say() -> None:
    """For a lopsided distribution too: in 2,000 samples of nine at most 5 % miss, which they do in
    3.9 % (four standard deviations: 5.7 %)."""
    chance = random.Random(7)
    missed = 0
    for _ in range(2000):
        low, high = interval([chance.expovariate(1) for _ in range(9)])
        missed += not low <= math.log(2) <= high
    assert missed <= 0.057 * 2000


def test_no_difference_is_invented() -> None:
    """Of 200 comparisons of equals at most one says that they differ."""
    speeds = {"direct": 9000.0, "ours": 9000.0}
    different = sum(
        compare(synthetic(seed, MANY, speeds), "ours", "direct", level=VERDICT_LEVEL).verdict
        is not Verdict.NONE
        for seed in range(200)
    )
    assert different <= 1


def test_a_fifth_is_found() -> None:
    """Of 20 comparisons with one that is a fifth slower at least 19 say so, and the ratio is
    right."""
    speeds = {"direct": 9000.0, "ours": 7200.0}
    found = [
        compare(synthetic(1000 + seed, MANY, speeds), "ours", "direct", level=VERDICT_LEVEL)
        for seed in range(20)
    ]
    assert sum(each.verdict is Verdict.LOWER for each in found) >= 19
    assert all(each.ratio == pytest.approx(0.8, abs=0.08) for each in found)


def test_a_gain_is_higher() -> None:
    """The ratio's direction is the subject's over the base's."""
    rounds = [{"a": Figure(3.0), "b": Figure(2.0)}] * 11
    found = compare(rounds, "a", "b", level=VERDICT_LEVEL)
    assert (found.ratio, found.low, found.high) == (1.5, 1.5, 1.5)
    assert found.verdict is Verdict.HIGHER
    assert middle(rounds, "a") == 3.0


def test_too_few_rounds_say_so() -> None:
    """Nothing is shown by rounds that cannot show it, however far apart they are."""
    found = compare([{"a": Figure(9.0), "b": Figure(1.0)}] * 5, "a", "b")
    assert found.verdict is Verdict.FEW
    assert "no interval" in str(found)


@pytest.mark.parametrize("failing", ["a", "b"])
def test_failures_are_no_speed(failing: str) -> None:
    """Who is fast because it fails has failed, on whichever side; a share may be allowed."""
    rounds = [
        {
            name: Figure(9.0 if name == "a" else 1.0, 1000, 2 if name == failing else 0)
            for name in "ab"
        }
    ] * 12
    found = compare(rounds, "a", "b")
    assert found.verdict is Verdict.FAILED
    assert str(found) == "failed: 24 of 12000"
    assert compare(rounds, "a", "b", tolerance=0.01).verdict is Verdict.HIGHER


def test_a_base_that_did_nothing_has_failed() -> None:
    """Nothing is infinitely fast."""
    rounds = [{"a": Figure(9.0), "b": Figure(0.0)}] * 12
    assert compare(rounds, "a", "b").verdict is Verdict.FAILED


def test_noise_is_the_spread_of_equals() -> None:
    """The floor is what direct against direct reaches, and nothing without rounds enough."""
    rounds = [{"a": Figure(10.0), "b": Figure(value)} for value in (9, 9.5, 10, 10, 10.5, 12)]
    assert noise(rounds, "a", "b") == pytest.approx(0.2)
    assert noise(rounds[:3], "a", "b") == math.inf


def test_no_rounds_are_refused() -> None:
    """Nothing can be said of nothing."""
    with pytest.raises(ValueError, match="no rounds"):
        compare([], "a", "b")
