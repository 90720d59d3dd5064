"""What reports say of rounds is right: on machines of many kinds, whose truth is known, and on
rounds that a real one gave.

Two promises, both for as many rounds as ``kproxy bench --profile full`` takes: of 200 comparisons
of equals at most one has a verdict, and of 20 with one that is a fifth slower at least 19 say so.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from math import comb
from statistics import median

import pytest

from kproxy.bench import profiles, verdicts
from kproxy.bench.compare import Became, compared
from kproxy.bench.results import Point, Row
from kproxy.bench.rounds import Figure, Round, compare, interval, rank
from kproxy.bench.verdicts import Word
from tests.bench.machines import (
    MACHINES,
    RATE,
    recorded,
    results,
    row,
    section,
    simulated,
)
from tests.bench.record import EQUALS

#: Of speed, in a full report.
MANY = profiles.of("full", "host").parts["traffic"].rounds

#: What says that two are not the same.
DIFFERENT = (Word.BETTER, Word.WORSE)

#: Rounds of 0.1 s for each load (as short as those of a quick report), the same later, of 0.25 s.
RECORDINGS = ("standing", "standing-later", "longer")

#: A tenth of a second of one stream is mostly its start, and where the scheduler puts two processes
#: on two cores: by that it scatters by a third from round to round.
SCATTERED = {("standing", "stream1"), ("standing-later", "stream1")}

SPEEDS = {"direct": 9000.0, "direct again": 9000.0, "ours": 9000.0, "slow": 7200.0}


# --- machines whose truth is known --------------------------------------------------------------


@pytest.mark.parametrize("machine", MACHINES)
def test_equals_are_not_told_apart(machine: str) -> None:
    """At most one of 200."""
    words = [
        verdicts.said(row(simulated(machine, seed, MANY, SPEEDS)), RATE)["ours"].word
        for seed in range(200)
    ]
    assert sum(word in DIFFERENT for word in words) <= 1
    assert set(words) <= {*DIFFERENT, Word.NONE, Word.NOISE}


@pytest.mark.parametrize("machine", MACHINES)
def test_a_fifth_is_found(machine: str) -> None:
    """At least 19 of 20, and the ratio is right."""
    found = [
        verdicts.said(row(simulated(machine, 1000 + seed, MANY, SPEEDS)), RATE)["slow"]
        for seed in range(20)
    ]
    assert sum(each.word is Word.WORSE for each in found) >= 19
    ratios = [each.comparison.ratio for each in found if each.comparison is not None]
    assert median(ratios) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(
    ("count", "level"), [(6, 0.95), (12, 0.95), (15, 0.999), (21, 0.95), (21, 0.99)]
)
def test_intervals_hold_what_they_promise(count: int, level: float) -> None:
    """Of so many intervals as many miss the true ratio as the sign test's arithmetic says, however
    figures scatter: with a rank that is one off it would be twice as many, or half."""
    k = rank(count, level)
    outside = 2 * sum(comb(count, at) for at in range(k)) / 2**count
    assert outside <= 1 - level < outside + 2 * comb(count, k) / 2**count
    trials, missed = 4000, 0
    chance = random.Random(count)
    for _ in range(trials):
        # The median of 0.5 + an exponential with median 0.5 is 1.
        ratios = [0.5 + chance.expovariate(2 * math.log(2)) for _ in range(count)]
        low, high = interval(ratios, level)
        missed += not low <= 1 <= high
    deviation = math.sqrt(trials * outside * (1 - outside))
    assert abs(missed - trials * outside) <= 4 * deviation + 1
    # That this would see an error of one place, either way.
    for wrong in {max(k - 1, 0), k + 1} - {0}:
        share = 2 * sum(comb(count, at) for at in range(wrong)) / 2**count
        assert abs(share - outside) * trials > 2


def test_pairing_is_what_finds_it() -> None:
    """On a machine that drifts, medians of figures from different rounds say little: the ratio
    within a round is several times nearer to what is true."""
    paired, apart = [], []
    for seed in range(50):
        rounds = simulated("drifting", seed, MANY, SPEEDS)
        early, late = rounds[: MANY // 2], rounds[MANY // 2 :]
        figures = [
            median(each[name].value for each in half)
            for half, name in ((early, "slow"), (late, "direct"))
        ]
        apart.append(abs(figures[0] / figures[1] - 0.8))
        paired.append(abs(compare(rounds, "slow", "direct").ratio - 0.8))
    assert 3 * median(paired) < median(apart)


# --- rounds of a real machine -------------------------------------------------------------------


def drawn(name: str, seed: int, count: int = MANY) -> Iterator[tuple[str, list[Round]]]:
    """Each measure of a recording with so many of its rounds, in their order."""
    for measure, rounds in recorded(name).items():
        chance = random.Random(f"{name} {measure} {seed}")
        chosen = sorted(chance.sample(range(len(rounds)), count))
        yield measure, [{who: Figure(v) for who, v in rounds[at].items()} for at in chosen]


def pairs() -> list[tuple[str, str]]:
    """Whoever is the same, both ways."""
    return [(one, other) for equal in EQUALS for one in equal for other in equal if one != other]


def beside(rounds: list[Round], base: str, subject: str, factor: float = 1.0) -> Row:
    """A row of two equals, the second so many times as fast, and of the twins of direct routing."""
    return Row(
        Point("rate"),
        "base",
        tuple(
            {
                "base": each[base],
                "subject": Figure(factor * each[subject].value),
                "direct": each["direct"],
                "direct again": each["direct again"],
            }
            for each in rounds
        ),
    )


@pytest.mark.parametrize("name", RECORDINGS)
def test_recorded_equals_are_not_told_apart(name: str) -> None:
    """At most one comparison of 200: direct routing, a mode of the kernel, a relay, each beside
    itself, in draws of the rounds that were recorded."""
    words = [
        verdicts.said(beside(rounds, *pair), RATE)["subject"].word
        for seed in range(10)
        for _, rounds in drawn(name, seed)
        for pair in pairs()
    ]
    assert len(words) >= 200
    assert sum(word in DIFFERENT for word in words) <= len(words) / 200


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_fifth_is_found_in_recorded_rounds(name: str) -> None:
    """At least 19 of 20 comparisons with one that has been made a fifth slower."""
    words = [
        verdicts.said(beside(rounds, *pair, factor=0.8), RATE)["subject"].word
        for seed in range(10)
        for measure, rounds in drawn(name, seed)
        for pair in pairs()
        if (name, measure) not in SCATTERED
    ]
    assert len(words) >= 200
    assert sum(word is Word.WORSE for word in words) >= 0.95 * len(words)


def between_runs(factor: float = 1.0) -> Iterator[tuple[str, Became]]:
    """Two recordings of the same, taken apart, compared draw by draw: each measure with what
    became of each mode."""
    for seed in range(13):
        earlier = dict(drawn("standing", seed))
        for measure, rounds in drawn("standing-later", seed):
            after = [
                {
                    who: Figure(figure.value * (1 if "direct" in who else factor))
                    for who, figure in each.items()
                }
                for each in rounds
            ]
            both = [results([section(row(each))]) for each in (earlier[measure], after)]
            for change in compared(*both).changes:
                if "direct" not in change.subject:
                    yield measure, change.became


def test_recorded_runs_are_not_told_apart() -> None:
    """At most one comparison of 200; direct routing itself had become a tenth slower."""
    found = [became for _, became in between_runs()]
    assert len(found) >= 200
    assert sum(each in (Became.FASTER, Became.SLOWER) for each in found) <= 1


def test_a_fifth_is_found_between_recorded_runs() -> None:
    """At least 19 of 20."""
    found = [became for measure, became in between_runs(0.8) if measure != "stream1"]
    assert sum(each is Became.SLOWER for each in found) >= 0.95 * len(found)
