"""Two results: what has changed is said, what has not is not, and where they differ comes first."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from itertools import combinations, product
from math import comb
from statistics import median

import pytest
from msgspec.structs import replace

from kproxy.bench import profiles, ranks
from kproxy.bench.compare import Became, Change, Compared, Difference, compared
from kproxy.bench.results import Absent, Cost, Measure, Point, Row, Section
from kproxy.bench.rounds import VERDICT_LEVEL, Figure, Round
from kproxy.bench.verdicts import TWINS
from tests.bench.machines import (
    MACHINE,
    MACHINES,
    RATE,
    TIME,
    results,
    row,
    section,
    simulated,
)

LOST = Measure("lost", "share that was lost", "share", "lower", "survival")
ALL = (RATE, TIME, LOST)

SPEEDS = {"direct": 9000.0, "direct again": 9000.0, "ours": 6000.0}

#: Of speed, in a full report.
MANY = profiles.of("full", "host").parts["traffic"].rounds


def between(before: Sequence[Row], after: Sequence[Row], **more: object) -> dict[str, Change]:
    """The changes of rows with one point, by subject."""
    found = whole(before, after)
    return {change.subject: change for change in found.changes}


def whole(before: Sequence[Row], after: Sequence[Row]) -> Compared:
    return compared(
        *(results([section(*rows, measures=ALL)]) for rows in (before, after)),
    )


def flat(value: float, base: float = 100.0, count: int = 7, failures: int = 0) -> list[Round]:
    """Rounds in which nothing wobbles but a little."""
    wobbles = [1 + 0.001 * (number % 3 - 1) for number in range(count)]
    return [
        {
            "direct": Figure(base, 1000),
            "direct again": Figure(base * wobble, 1000),
            "ours": Figure(value * base / 100 * wobble, 1000, failures),
        }
        for wobble in wobbles
    ]


# --- ranks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "level", "expected"),
    # Tables of Mann and Whitney's U, two-sided: the critical value and one.
    [
        (3, 3, 0.95, 0),
        (4, 4, 0.95, 1),
        (5, 5, 0.95, 3),
        (8, 10, 0.95, 18),
        (20, 20, 0.95, 128),
        (5, 5, 0.99, 1),
        (10, 10, 0.99, 17),
        (6, 6, 0.999, 0),
        (7, 7, 0.999, 1),
    ],
)
def test_the_cut_is_that_of_the_tables(
    first: int, second: int, level: float, expected: int
) -> None:
    assert ranks.cut(first, second, level) == expected
    assert ranks.cut(second, first, level) == expected


def test_orders_are_counted_right() -> None:
    """Beside counting them one by one."""
    for first, second in product(range(1, 6), range(1, 5)):
        slow = Counter(
            sum(place - at for at, place in enumerate(chosen))
            for chosen in combinations(range(first + second), first)
        )
        ways = ranks._ways(first, second)
        assert ways == [slow[u] for u in range(first * second + 1)]
        assert sum(ways) == comb(first + second, first)


def test_intervals_hold_what_they_promise() -> None:
    """Of two thousand the true shift is outside in as many as U's distribution says: one place
    off, and it would be half or twice as many."""
    chance = random.Random(7)
    first, second, trials = 9, 12, 2000
    k = ranks.cut(first, second, 0.9)
    outside = 2 * sum(ranks._ways(first, second)[:k]) / comb(first + second, first)
    missed = 0
    for _ in range(trials):
        one = [chance.expovariate(1) for _ in range(first)]
        other = [chance.expovariate(1) + 5 for _ in range(second)]
        found = ranks.shift(one, other, 0.9)
        missed += not found.low <= 5 <= found.high
    deviation = math.sqrt(trials * outside * (1 - outside))
    assert abs(missed - trials * outside) < 4 * deviation
    # The test would see an error of one place.
    places = ranks._ways(first, second)
    for wrong in (k - 1, k + 1):
        share = 2 * sum(places[:wrong]) / comb(first + second, first)
        assert abs(trials * share - trials * outside) > 0.5 * deviation


def test_a_shift_is_the_median_of_differences() -> None:
    """Of the second over the first; with too few values there are no ends."""
    found = ranks.shift([1.0, 2.0, 3.0], [11.0, 12.0, 19.0], 0.999)
    assert found.estimate == median([10, 11, 18, 9, 10, 17, 8, 9, 16])
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert not found.shown
    assert ranks.shift([1.0] * 7, [2.0] * 7, 0.999).shown
    with pytest.raises(ValueError, match="no values"):
        ranks.shift([], [1.0], 0.9)


# --- verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", MACHINES)
def test_equals_are_not_told_apart(machine: str) -> None:
    """Of 200 pairs of runs of the same, each at a pace of its own, at most one has a verdict."""
    wrong = 0
    for seed in range(200):
        pace = 0.5 + random.Random(seed).random()
        speeds = {name: speed * pace for name, speed in SPEEDS.items()}
        before = row(simulated(machine, 2 * seed, MANY, SPEEDS))
        after = row(simulated(machine, 2 * seed + 1, MANY, speeds))
        became = between([before], [after])["ours"].became
        wrong += became in (Became.FASTER, Became.SLOWER)
        assert became not in (Became.FEW, Became.FAILED, Became.ELSEWHERE)
    assert wrong <= 1


@pytest.mark.parametrize("machine", MACHINES)
def test_a_fifth_is_found(machine: str) -> None:
    """Of 20 pairs of runs in the second of which ours is a fifth slower at least 19 say so."""
    slowed = {**SPEEDS, "ours": 0.8 * SPEEDS["ours"]}
    found = [
        between(
            [row(simulated(machine, 5000 + 2 * seed, MANY, SPEEDS))],
            [row(simulated(machine, 5001 + 2 * seed, MANY, slowed))],
        )["ours"]
        for seed in range(20)
    ]
    assert sum(each.became is Became.SLOWER for each in found) >= 19
    assert median(each.change for each in found) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("measure", "value", "became"),
    [
        (RATE, 120.0, Became.FASTER),
        (RATE, 80.0, Became.SLOWER),
        (TIME, 120.0, Became.SLOWER),
        (TIME, 80.0, Became.FASTER),
        (RATE, 100.0, Became.NONE),
    ],
)
def test_faster_is_what_the_measure_says(measure: Measure, value: float, became: Became) -> None:
    """And only what is slower is bad."""
    found = whole([row(flat(100.0), measure=measure)], [row(flat(value), measure=measure)])
    change = next(each for each in found.changes if each.subject == "ours")
    assert change.became is became
    assert change.change == pytest.approx(value / 100)
    assert bool(found.bad) == (became is Became.SLOWER)


def test_the_pace_of_the_machine_cancels_out() -> None:
    """What makes everything slower, direct routing as well, is no slow-down."""
    found = between([row(flat(50.0))], [row(flat(50.0, base=30.0))])
    assert found["ours"].became is Became.NONE
    assert (found["ours"].before, found["ours"].after) == pytest.approx((0.5, 0.5))
    assert found["direct"].became is Became.BASE
    assert (found["direct"].before, found["direct"].after) == (100.0, 30.0)


def test_what_is_below_the_noise_is_said_to_be() -> None:
    """When direct against direct moved by a tenth, a twentieth means nothing."""
    after = [
        {
            **each,
            "direct again": Figure(90.0, 1000),
            "ours": Figure(95.0 * each["ours"].value / 100),
        }
        for each in flat(100.0)
    ]
    found = between([row(flat(100.0))], [row(after)])
    assert found["ours"].became is Became.NOISE
    assert found["ours"].high < 1
    assert found["direct again"].became is Became.SLOWER


@pytest.mark.parametrize("count", [1, 3, 6])
def test_too_few_rounds(count: int) -> None:
    """Nothing is shown by rounds that cannot show it."""
    found = between([row(flat(100.0, count=count))], [row(flat(10.0, count=count))])
    assert found["ours"].became is Became.FEW
    assert found["ours"].level < VERDICT_LEVEL


@pytest.mark.parametrize(
    ("before", "after", "became"),
    [
        (0, 5, Became.FAILS),
        (5, 0, Became.MENDED),
        (5, 5, Became.FAILED),
        (5, 500, Became.FAILS),
    ],
)
def test_failures_are_no_speed(before: int, after: int, became: Became) -> None:
    """Whoever fails in either run has no speed to compare; failing more is bad."""
    found = whole([row(flat(100.0, failures=before))], [row(flat(300.0, failures=after))])
    change = next(each for each in found.changes if each.subject == "ours")
    assert change.became is became
    assert change.failures == (before / 1000, after / 1000)
    assert bool(found.bad) == (became is Became.FAILS)


def test_one_bad_round_is_not_many() -> None:
    """A burst of failures in one round of seven is said, and is no verdict."""
    after = flat(100.0)
    after[3] = {**after[3], "ours": Figure(100.0, 1000, 900)}
    assert between([row(flat(100.0))], [row(after)])["ours"].became is Became.FAILED


def test_failures_in_every_second_round_are_many() -> None:
    """Where there were none: too few rounds for an interval are enough to say it."""
    after = flat(100.0)
    for number in range(0, 7, 2):
        after[number] = {**after[number], "ours": Figure(100.0, 1000, 1)}
    assert between([row(flat(100.0))], [row(after)])["ours"].became is Became.FAILS
    assert between([row(after)], [row(flat(100.0))])["ours"].became is Became.MENDED


def test_a_base_that_is_a_mode_may_change_itself() -> None:
    """Ratios are taken to direct routing alone: a mode that has become slower is no yardstick."""
    rows = [
        row(
            [{"one": Figure(each), "two": Figure(10.0)} for each in values],
            base="one",
            measure=TIME,
        )
        for values in ([1.0, 1.01, 0.99] * 4, [2.0, 2.01, 1.99] * 4)
    ]
    found = between([rows[0]], [rows[1]])
    assert found["one"].became is Became.SLOWER
    assert found["two"].became is Became.NONE


def test_who_can_no_longer_be_measured_is_lost() -> None:
    """What the second run has a reason for; who was not asked for is only alone."""
    gone = section(row([{name: each[name] for name in TWINS} for each in flat(100.0)]))
    found = compared(
        results([section(row(flat(100.0)))]),
        results([replace(gone, absent=(Absent("ours", "", "it has ended"),))]),
    )
    assert found.lost == ("no longer measured: ours (host), rate: it has ended",)
    assert compared(results([section(row(flat(100.0)))]), results([gone])).lost == ()


def test_other_loads_are_not_compared() -> None:
    """Profiles have loads of their own."""
    before, after = results([section(row(flat(100.0)))]), results([section(row(flat(300.0)))])
    found = compared(before, replace(after, profile="full"))
    assert {each.became for each in found.changes} == {Became.BASE, Became.OTHERWISE}
    assert not found.judged


def test_shares_are_compared_by_what_is_between_them() -> None:
    """They may be nothing at all, which no ratio can be taken to."""
    lost = [{"ours": Figure(0.0, 1000)} for _ in range(7)]
    more = [{"ours": Figure(0.25, 1000, 250)} for _ in range(7)]
    rows = [Row(Point("lost"), "", tuple(each)) for each in (lost, more)]
    worse = between([rows[0]], [rows[1]])["ours"]
    assert (worse.became, worse.change) == (Became.WORSE, 0.25)
    assert between([rows[1]], [rows[0]])["ours"].became is Became.BETTER
    assert between([rows[0]], [rows[0]])["ours"].became is Became.NONE


# --- two machines -------------------------------------------------------------------------------


def test_figures_of_two_machines_are_not_compared() -> None:
    """Ratios are, figures without a base are not."""
    rows = [[row(flat(value)), row(flat(value), base="", measure=TIME)] for value in (100.0, 200.0)]
    alike = whole(*rows)
    assert {each.became for each in alike.changes if each.base == ""} == {
        *(Became.BASE, Became.NONE, Became.SLOWER)
    }
    found = compared(
        results([section(*rows[0])]),
        results([section(*rows[1])], machine=replace(MACHINE, cores=64)),
    )
    assert found.differences == (Difference("cores", "2", "64"),)
    became = {(each.point.measure, each.subject): each.became for each in found.changes}
    assert became["rate", "ours"] is Became.FASTER
    assert became["time", "ours"] is Became.ELSEWHERE


def test_what_differs_is_named() -> None:
    """Versions, profile, tools, settings; not the load before the run, nor a page of memory."""
    before = results([section()])
    machine = replace(
        MACHINE,
        load=3.0,
        memory=MACHINE.memory - 4096,
        tools={"nft": "1.1", "wrk": "4"},
        sysctls={},
    )
    after = results([section()], machine=machine, kproxy="1.1", profile="full")
    assert compared(before, after).differences == (
        Difference("kproxy", "1.0", "1.1"),
        Difference("profile", "quick", "full"),
        Difference("nft", "1.0.6", "1.1"),
        Difference("wrk", "none", "4"),
        Difference("node: net.ipv4.ip_forward", "1", "none"),
    )
    assert compared(before, before).differences == ()


def test_a_busier_machine_is_named() -> None:
    """What else it did while direct routing was measured."""
    runs = [
        results([section(replace(row(flat(100.0)), costs={"direct": Cost(1.0, kernel=busy)}))])
        for busy in (0.1, 1.6)
    ]
    assert compared(*runs).differences == (Difference("processors with other work", "0.1", "1.6"),)
    assert compared(runs[0], runs[0]).differences == ()


def test_what_only_one_run_has_is_named() -> None:
    """Subjects, measures, sections: nothing is compared with nothing."""
    two = [{**each, "theirs": Figure(1.0)} for each in flat(100.0)]
    uml = Section("uml", "6.1", {}, ALL, (row(flat(100.0)),))
    found = compared(
        results([section(row(flat(100.0)), row(flat(1.0), base="", measure=TIME))]),
        results([section(row(two)), uml]),
    )
    assert {each.subject for each in found.changes} == {"direct", "direct again", "ours"}
    assert found.alone == (
        "only in the first: direct (host): time",
        "only in the first: direct again (host): time",
        "only in the first: ours (host): time",
        "only in the second: theirs (host): rate",
        "only in the second: direct (uml): rate",
        "only in the second: direct again (uml): rate",
        "only in the second: ours (uml): rate",
    )


def test_sections_are_never_mixed() -> None:
    """The same row in two kernels is two rows."""
    rows = (row(flat(100.0)),)
    both = [section(*rows), Section("uml", "6.1", {}, ALL, (row(flat(50.0)),))]
    found = compared(results(both), results(both))
    assert {(each.section, each.became) for each in found.changes if each.subject == "ours"} == {
        ("host", Became.NONE),
        ("uml", Became.NONE),
    }
