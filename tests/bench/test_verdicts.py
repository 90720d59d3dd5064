"""Verdicts: a word for each subject, and none that the rounds do not bear."""

from __future__ import annotations

import pytest

from kproxy.bench import verdicts
from kproxy.bench.results import Cost, Measure, Point, Row
from kproxy.bench.rounds import Figure
from kproxy.bench.verdicts import Word
from tests.bench.machines import RATE, TIME, row

SHARE = Measure("lost", "share that was lost", "share", "lower", "survival")

#: Ratios of equals in eleven rounds: none is further off than 3 %.
WOBBLE = (0.97, 1.02, 1.0, 0.99, 1.03, 1.01, 0.98, 1.0, 1.01, 0.99, 1.0)


def rounds(count: int = 11, **ratios: float) -> list[dict[str, Figure]]:
    """Direct twice, and others so many times as fast."""
    return [
        {
            "direct": Figure(100.0, 1000),
            "direct again": Figure(100.0 * wobble, 1000),
            **{name: Figure(100.0 * ratio * wobble, 1000) for name, ratio in ratios.items()},
        }
        for wobble in WOBBLE[:count]
    ]


@pytest.mark.parametrize(
    ("measure", "ratio", "word"),
    [
        (RATE, 1.2, Word.BETTER),
        (RATE, 0.8, Word.WORSE),
        (TIME, 1.2, Word.WORSE),
        (TIME, 0.8, Word.BETTER),
        (RATE, 1.0, Word.NONE),
    ],
)
def test_better_is_what_the_measure_says(measure: Measure, ratio: float, word: Word) -> None:
    """A time that is shorter is better, a rate that is lower is not."""
    found = verdicts.said(row(rounds(ours=ratio), measure=measure), measure)["ours"]
    assert found.word is word
    assert found.comparison is not None
    assert found.comparison.ratio == pytest.approx(ratio)


def test_a_difference_below_the_noise_is_none() -> None:
    """However sure it is that two differ: what equals reach as well means nothing. A step above
    it does."""
    both = [
        {
            "direct": Figure(100.0),
            "direct again": Figure(100.0 * (1.1 if number % 2 else 0.99)),
            "ours": Figure(105.0),
            "theirs": Figure(95.0),
            "far": Figure(115.0),
        }
        for number in range(11)
    ]
    found = verdicts.said(row(both), RATE)
    assert found["ours"].floor == pytest.approx(1.1)
    assert found["ours"].comparison is not None
    assert found["ours"].comparison.low > 1
    words = {name: each.word for name, each in found.items()}
    assert words == {
        "direct": Word.BASE,
        "direct again": Word.NONE,
        "ours": Word.NOISE,
        "theirs": Word.NOISE,
        "far": Word.BETTER,
    }


@pytest.mark.parametrize("count", [1, 2, 5, 6, 10])
def test_too_few_rounds_have_no_verdict(count: int) -> None:
    """Only what interval they reach is given, with its level."""
    found = verdicts.said(row(rounds(count, ours=0.5)), RATE)["ours"]
    assert found.word is Word.FEW
    assert found.level == pytest.approx(1 - 2 / 2**count)
    assert found.comparison is not None
    assert (found.comparison.high < 1) == (count > 1)


def test_failures_are_no_speed() -> None:
    """Whoever failed has no figure of speed, and when the base did nobody has."""
    taken = rounds(ours=2.0, theirs=1.0)
    taken[3]["ours"] = Figure(200.0, 1000, 7)
    found = verdicts.said(row(taken), RATE)
    assert found["ours"].word is Word.FAILED
    assert found["ours"].text == "failed: 7 of 11,000"
    assert found["theirs"].word is Word.NONE
    taken[3]["direct"] = Figure(100.0, 1000, 1)
    found = verdicts.said(row(taken), RATE)
    assert found["direct"].text == "failed: 1 of 11,000"
    assert found["theirs"].text == "its base failed"


def test_shares_of_failures_are_figures() -> None:
    """Where failures are what is measured they are no reason to say nothing."""
    taken = [{"ours": Figure(0.02, 1000, 20)}] * 3
    found = verdicts.said(Row(Point("lost"), "", tuple(taken)), SHARE)["ours"]
    assert found.word is Word.ALONE
    assert (found.figure, found.failures, found.attempts) == (0.02, 60, 3000)


def test_rounds_in_which_one_is_missing() -> None:
    """Who could not go on is compared in the rounds that it has, the others in all."""
    taken = [
        {name: figure for name, figure in each.items() if name != "ours" or number < 7}
        for number, each in enumerate(rounds(ours=0.5, theirs=0.5))
    ]
    found = verdicts.said(row(taken), RATE)
    assert (found["ours"].rounds, found["ours"].word) == (7, Word.FEW)
    assert (found["theirs"].rounds, found["theirs"].word) == (11, Word.WORSE)
    assert verdicts.counted(row(taken)) == (7, 11)


def test_without_twins_there_is_no_floor() -> None:
    """Then nobody knows what a difference has to exceed, and none is said."""
    taken = [{"direct": Figure(100.0), "ours": Figure(101.0 + number)} for number in range(11)]
    found = verdicts.said(row(taken), RATE)["ours"]
    assert found.floor is None
    assert found.word is Word.FEW


def test_figures_have_intervals_of_their_own() -> None:
    """Of the median: the range of eleven rounds; costs go with them."""
    taken = row(rounds(ours=1.0))
    priced = Row(taken.point, taken.base, taken.rounds, costs={"ours": Cost(proxy=1.0)})
    found = verdicts.said(priced, RATE)["ours"]
    assert (found.lowest, found.figure, found.highest) == (97.0, 100.0, 103.0)
    assert found.level == 0.999
    assert found.cost == Cost(proxy=1.0)
    alone = verdicts.said(row(rounds(1, ours=1.0)), RATE)["ours"]
    assert (alone.lowest, alone.figure, alone.highest, alone.level) == (97.0, 97.0, 97.0, 0.0)
