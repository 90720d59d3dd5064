"""The conductor: everybody takes turns, time is shared out and kept to, who cannot go on is left
out with a reason, and what was whole is kept whatever ends the run."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import pytest

from kproxy.bench.conductor import Conductor, Job, Step
from kproxy.bench.histogram import Histogram
from kproxy.bench.measures.base import Reading
from kproxy.bench.results import Absent, Cost, Measure, Point, Section
from kproxy.bench.rounds import Figure
from kproxy.errors import CheckFailed, KproxyError, MachineError

SPEED = Measure("speed", "how fast", "1/s", "higher", "traffic")
SIZE = Measure("size", "how large", "B", "lower", "traffic", "services")


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Played:
    """A group whose turns take ``each`` seconds of a clock and do what a test wants."""

    base = "direct"
    absent: Sequence[Absent] = ()

    def __init__(
        self,
        clock: Clock,
        *,
        each: float = 1.0,
        name: str = "traffic",
        subjects: Sequence[str] = ("direct", "ours"),
        enter: Callable[[], None] = lambda: None,
        turn: Callable[[str, int], Mapping[Point, Reading]] | None = None,
    ) -> None:
        self.name = name
        self.measures: Sequence[Measure] = (SPEED, SIZE)
        self.subjects = subjects
        self.asked: list[str] = []
        self.inside = False
        self._clock = clock
        self._each = each
        self._enter = enter
        self._turn = turn

    def __enter__(self) -> Self:
        self._enter()
        self.inside = True
        return self

    def __exit__(self, *exc: object) -> None:
        self.inside = False

    def turn(self, subject: str) -> Mapping[Point, Reading]:
        assert self.inside
        self._clock.now += self._each
        self.asked.append(subject)
        if self._turn is not None:
            return self._turn(subject, self.asked.count(subject))
        return {Point("speed"): Reading(Figure(float(len(self.asked))))}


def conducted(jobs: Sequence[Job], clock: Clock, seconds: float | None = None) -> Section:
    """Run to the end."""
    conductor = Conductor(jobs, seconds=seconds, clock=clock)
    conductor.run()
    return conductor.section("host", "6.18", {})


def counts(section: Section) -> list[int]:
    return [len(row.rounds) for row in section.rows]


# --- rounds -------------------------------------------------------------------------------------


def test_all_take_turns_and_warm_up_is_left_out() -> None:
    """In changing order; what is kept is in the group's."""
    clock = Clock()
    group = Played(clock)
    section = conducted([Job(group, rounds=3, each=1.0, warmup=1)], clock)
    assert group.asked == ["direct", "ours", "ours", "direct", "ours", "direct", "direct", "ours"]
    (row,) = section.rows
    assert row.base == "direct"
    assert [list(each) for each in row.rounds] == [["direct", "ours"]] * 3
    assert [each["ours"].value for each in row.rounds] == [3.0, 5.0, 8.0]
    assert section.seconds == 8.0
    assert not group.inside


def test_histograms_are_merged_and_costs_are_medians() -> None:
    """Of all rounds; a subject without either has none."""
    waits = {1: [10, 20], 2: [10], 3: [30]}

    def turn(subject: str, number: int) -> Mapping[Point, Reading]:
        if subject == "direct":
            return {Point("speed"): Reading(Figure(1.0))}
        cost = Cost(proxy=float(number), memory=7.0)
        return {Point("speed"): Reading(Figure(1.0), Histogram.of(waits[number]).counts, cost)}

    clock = Clock()
    section = conducted([Job(Played(clock, turn=turn), rounds=3, each=1.0)], clock)
    assert section.rows[0].distributions == {"ours": {10: 2, 20: 1, 30: 1}}
    assert section.rows[0].costs == {"ours": Cost(proxy=2.0, memory=7.0)}


def test_rows_are_in_the_order_of_measures() -> None:
    """Then of their points; who has no figure of a point is not in its row, and measures that
    nobody wants have none."""

    def turn(subject: str, number: int) -> Mapping[Point, Reading]:
        readings = {Point("size", at): Reading(Figure(at)) for at in (10.0, 2.0)}
        if subject == "ours":
            readings[Point("speed")] = Reading(Figure(1.0))
        return readings

    clock = Clock()
    section = conducted([Job(Played(clock, turn=turn), rounds=1, each=1.0)], clock)
    assert [row.point for row in section.rows] == [
        Point("speed"),
        Point("size", 10.0),
        Point("size", 2.0),
    ]
    assert [list(row.rounds[0]) for row in section.rows] == [["ours"]] + [["direct", "ours"]] * 2
    only = conducted([Job(Played(clock, turn=turn), rounds=1, each=1.0, measures=["speed"])], clock)
    assert [row.point for row in only.rows] == [Point("speed")]
    assert only.measures == (SPEED,)


# --- time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "expected"), [(1.0, 1), (7.0, 3), (8.5, 4), (1000.0, 20)])
def test_rounds_are_those_that_fit(seconds: float, expected: int) -> None:
    """None is begun that would end too late, the first is taken in any case."""
    clock = Clock()
    section = conducted([Job(Played(clock), rounds=20, each=1.0)], clock, seconds)
    assert counts(section) == [expected]


@pytest.mark.parametrize(("seconds", "rounds"), [(60.0, [11, 19]), (40.0, [1, 19])])
def test_the_rounds_of_a_verdict_come_first(seconds: float, rounds: list[int]) -> None:
    """Where half of the time is enough for them; its share would be one round in either case."""
    clock = Clock()
    jobs = [
        Job(Played(clock, name="small"), rounds=11, each=1.0),
        Job(Played(clock, name="large"), rounds=300, each=1.0),
    ]
    assert counts(conducted(jobs, clock, seconds)) == rounds


def test_time_is_shared_out_by_what_is_wanted() -> None:
    """A group that wants three times as much gets it, and one that ends early leaves its rest to
    those after it."""
    clock = Clock()
    jobs = [
        Job(Played(clock, name="small"), rounds=10, each=1.0),
        Job(Played(clock, name="large"), rounds=30, each=1.0),
    ]
    assert counts(conducted(jobs, clock, 40.0)) == [5, 15]
    jobs = [
        # It thought that it would take five times as long.
        Job(Played(clock, name="quick", each=0.2), rounds=10, each=1.0),
        Job(Played(clock, name="other"), rounds=50, each=1.0),
    ]
    assert counts(conducted(jobs, clock, 40.0)) == [10, 18]


def test_a_group_that_no_time_is_left_for_says_so() -> None:
    """It is not begun, and every subject has the reason. A machine on which the group before took
    ten times as long as it should will be no faster for this one."""
    clock = Clock()
    late = Played(clock, name="late")
    jobs = [
        Job(Played(clock, each=10.0), rounds=1, each=1.0),
        Job(late, rounds=5, each=3.0),
    ]
    section = conducted(jobs, clock, 12.0)
    assert late.asked == []
    assert {each.subject for each in section.absent} == {"direct", "ours"}
    assert {each.reason for each in section.absent} == {
        "no time was left: 60 s are needed for a round"
    }


@pytest.mark.parametrize("slower", [1.0, 1.5, 3.0, 6.0, 20.0])
def test_a_slow_machine_does_not_take_much_longer(slower: float) -> None:
    """Groups that it cannot afford are left out with a reason; beyond the time goes a round that
    was begun: the first of all, or a third of one."""
    clock = Clock()
    groups = [Played(clock, name=name, each=slower) for name in ("one", "two", "three")]
    section = conducted([Job(each, rounds=20, each=1.0) for each in groups], clock, 20.0)
    assert section.seconds <= 20.0 + max(2 * slower / 3, 2 * slower - 20.0)
    begun = [each.name for each in groups if each.asked]
    assert begun == ["one", "two", "three"][: len(begun)]
    left_out = {each.reason for each in section.absent}
    assert bool(left_out) == (len(begun) < 3)
    assert all("no time was left" in each for each in left_out)


def test_what_was_taken_again_is_said() -> None:
    """Once for each measure and subject, with how often; nothing is said of what was not."""

    def turn(subject: str, number: int) -> dict[Point, Reading]:
        again = number if subject == "ours" else 0
        return {
            Point("speed"): Reading(Figure(1.0), again=again),
            Point("size", 10.0): Reading(Figure(1.0)),
        }

    clock = Clock()
    section = conducted([Job(Played(clock, turn=turn), rounds=2, each=1.0)], clock)
    (note,) = section.notes
    assert note.startswith("speed of ours was taken anew 3× in 2 rounds")


def test_what_goes_on_is_told() -> None:
    """Every turn, every round, with a time that is left and gets less."""
    clock = Clock()
    steps: list[Step] = []
    jobs = [Job(Played(clock, name=name), rounds=2, each=1.0) for name in ("one", "two")]
    Conductor(jobs, seconds=20.0, clock=clock, told=steps.append).run()
    one = [step for step in steps if step.group == "one"]
    assert [step.kind for step in one] == [
        *("began", "turn", "turn", "round", "turn", "turn", "round", "ended")
    ]
    assert [step.rounds for step in one] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert (one[0].number, one[0].groups, one[0].most) == (0, 2, 2)
    assert [step.subject for step in one if step.kind == "turn"][:2] == ["direct", "ours"]
    lefts = [step.left for step in steps]
    assert lefts[0] == 8.0
    assert lefts == sorted(lefts, reverse=True)
    assert lefts[-1] == 0.0
    assert steps[-1].elapsed == 8.0


# --- what goes wrong ----------------------------------------------------------------------------


def failing(
    who: str, at: int, error: BaseException, again: bool = False
) -> Callable[[str, int], dict[Point, Reading]]:
    """A subject whose turn of that number raises; ``again``: and all that follow."""

    def turn(subject: str, number: int) -> dict[Point, Reading]:
        if subject == who and (number == at or (again and number > at)):
            raise error
        return {Point("speed"): Reading(Figure(1.0))}

    return turn


def test_who_cannot_go_on_is_left_out() -> None:
    """The others take their turns; what it had is kept, and why it ended is said."""
    clock = Clock()
    group = Played(
        clock,
        subjects=("direct", "ours", "theirs"),
        turn=failing("ours", 3, CheckFailed("nobody answers"), again=True),
    )
    section = conducted([Job(group, rounds=5, each=1.0)], clock)
    assert [sorted(each) for each in section.rows[0].rounds] == [
        *[["direct", "ours", "theirs"]] * 2,
        *[["direct", "theirs"]] * 3,
    ]
    assert section.notes == ()
    assert section.absent == (
        Absent("ours", "speed", "after 2 rounds: nobody answers"),
        Absent("ours", "size", "after 2 rounds: nobody answers"),
    )
    assert group.asked.count("ours") == 4


@pytest.mark.parametrize("error", [CheckFailed("nobody answers"), OSError("nobody answers")])
def test_who_fails_once_is_missing_once(error: Exception) -> None:
    """Hours are not lost for a hiccup of the machine; that there was one is said."""
    clock = Clock()
    group = Played(clock, subjects=("direct", "ours"), turn=failing("ours", 3, error))
    section = conducted([Job(group, rounds=5, each=1.0)], clock)
    assert [sorted(each) for each in section.rows[0].rounds] == [
        *[["direct", "ours"]] * 2,
        ["direct"],
        *[["direct", "ours"]] * 2,
    ]
    assert section.absent == ()
    (note,) = section.notes
    assert note.endswith("ours is missing in a round: nobody answers")


def test_who_fails_at_once_is_left_out() -> None:
    """It never worked: nothing says that it might."""
    clock = Clock()
    group = Played(clock, subjects=("direct", "ours"), turn=failing("ours", 1, CheckFailed("no")))
    section = conducted([Job(group, rounds=3, each=1.0)], clock)
    assert {each.reason for each in section.absent} == {"no"}
    assert group.asked.count("ours") == 1


def test_without_its_base_a_round_does_not_count() -> None:
    """The group goes on with the next."""
    clock = Clock()
    group = Played(clock, turn=failing("direct", 3, MachineError("no memory")))
    section = conducted([Job(group, rounds=5, each=1.0)], clock)
    assert counts(section) == [4]
    assert section.absent == ()


def test_without_its_base_a_group_ends() -> None:
    """There is nobody to compare with; other groups go on."""
    clock = Clock()
    group = Played(clock, turn=failing("direct", 3, MachineError("no more memory"), again=True))
    other = Played(clock, name="other")
    section = conducted([Job(each, rounds=5, each=1.0) for each in (group, other)], clock)
    assert counts(section) == [2, 5]
    reasons = {each.subject: each.reason for each in section.absent}
    assert reasons["direct"] == "after 2 rounds: no more memory"
    assert "direct could not go on" in reasons["ours"]
    assert not group.inside


def test_a_group_that_cannot_begin() -> None:
    """Its subjects are absent, with its reason."""

    def refuse() -> None:
        raise MachineError("no such device")

    clock = Clock()
    section = conducted([Job(Played(clock, enter=refuse), rounds=5, each=1.0)], clock)
    assert section.rows == ()
    assert {each.reason for each in section.absent} == {"no such device"}


def test_a_figure_that_is_no_number_is_a_failure() -> None:
    """No file could keep it."""
    clock = Clock()

    def turn(subject: str, number: int) -> Mapping[Point, Reading]:
        return {Point("speed"): Reading(Figure(float("nan") if subject == "ours" else 1.0))}

    section = conducted([Job(Played(clock, turn=turn), rounds=2, each=1.0)], clock)
    assert [list(each) for each in section.rows[0].rounds] == [["direct"]] * 2
    assert "nan" in section.absent[0].reason


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), ZeroDivisionError()])
def test_what_ends_the_run_leaves_whole_rounds(error: BaseException) -> None:
    """The group is left, the round that was not whole is gone, the others are kept."""
    clock = Clock()
    group = Played(clock, turn=failing("ours", 3, error))
    conductor = Conductor([Job(group, rounds=9, each=1.0)], clock=clock)
    with pytest.raises(type(error)):
        conductor.run()
    assert not group.inside
    clock.now += 100.0
    section = conductor.section("host", "6.18", {"ours": "it"})
    # What comes after the measuring is none of it.
    assert section.seconds == 5.0
    assert [sorted(each) for each in section.rows[0].rounds] == [["direct", "ours"]] * 2
    assert section.subjects == {"ours": "it"}


# --- for real -----------------------------------------------------------------------------------


class Connects:
    """Connections to a door of this process over the loopback, as many as are asked for."""

    name = "connects"
    base = "direct"
    measures: Sequence[Measure] = (SPEED,)
    subjects: Sequence[str] = ("direct", "direct again", "nobody")
    absent: Sequence[Absent] = ()

    def __enter__(self) -> Self:
        self._door = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._door.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._door.close()

    def _serve(self) -> None:
        while True:
            try:
                self._door.accept()[0].close()
            except OSError:
                return

    def turn(self, subject: str) -> Mapping[Point, Reading]:
        if subject == "nobody":
            raise KproxyError("nobody listens")
        begun = time.perf_counter()
        for _ in range(20):
            socket.create_connection(self._door.getsockname()).close()
        return {Point("speed"): Reading(Figure(20 / (time.perf_counter() - begun), 20))}


@pytest.mark.kernel
@pytest.mark.usefixtures("loopback")
def test_a_real_group() -> None:
    """What is measured comes out as it went in."""
    conductor = Conductor([Job(Connects(), rounds=12, each=0.01)])
    conductor.run()
    section = conductor.section("host", "6.18", {})
    (row,) = section.rows
    assert len(row.rounds) == 12
    assert all(figure.value > 0 for each in row.rounds for figure in each.values())
    assert [each.subject for each in section.absent] == ["nobody"]
