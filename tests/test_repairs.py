"""When to mend: at once, later in a fight; and the schedule that does it."""

from __future__ import annotations

import pytest

from kproxy.backends.xtables.watch import PERIOD as LOOK_PERIOD
from kproxy.repairs import FREE, LONGEST_DELAY, PER_COST, QUIET, SHORTEST_DELAY, Repairs
from kproxy.sync import Run, Schedule


def fight(repairs: Repairs, now: float, rounds: int, cost: float = 0.0) -> list[float]:
    """Delays of repairs, each of which costs so many seconds and is undone at once."""
    delays = []
    for _ in range(rounds):
        due = repairs.noticed(now)
        delays.append(due - now)
        now = due + cost
        repairs.mended(now, cost)
    return delays


def test_a_lone_change_is_mended_at_once() -> None:
    """And so are a few in a row."""
    assert fight(Repairs(), 100.0, FREE) == [0.0] * FREE


@pytest.mark.parametrize(
    ("cost", "delay"),
    [(0.0, SHORTEST_DELAY), (0.05, SHORTEST_DELAY), (1.0, PER_COST), (60.0, LONGEST_DELAY)],
)
def test_a_fight_is_slowed_down(cost: float, delay: float) -> None:
    """Each further repair waits by what the last one cost, however long the fight lasts."""
    assert fight(Repairs(), 100.0, FREE + 12, cost)[FREE:] == pytest.approx([delay] * 12)


def test_a_small_nodes_fight_keeps_to_a_second() -> None:
    """The look at the tables, the wait and a repair of 0.1 s are less than a second together."""
    assert max(fight(Repairs(), 100.0, 100, 0.1)) + LOOK_PERIOD + 0.1 < 1.0


def test_quiet_ends_a_fight() -> None:
    """After a time without changes the next one is mended at once."""
    repairs = Repairs()
    fight(repairs, 100.0, FREE + 4)
    assert fight(repairs, 200.0 + QUIET, 1) == [0.0]


def test_changes_before_the_repair_are_mended_with_it() -> None:
    """They neither hurry nor delay it."""
    repairs = Repairs()
    fight(repairs, 100.0, FREE)
    due = repairs.noticed(101.0)
    assert repairs.pending
    assert repairs.noticed(101.2) == due == 101.0 + SHORTEST_DELAY
    repairs.mended(101.5, 0.1)
    assert not repairs.pending


def schedule() -> Schedule:
    """One whose minimum gap has just been used up."""
    made = Schedule(10.0, 30.0)
    made.request()
    for now in (0.0, 0.0):
        made.start(now)
        made.finish(now, ok=True)
    return made


def test_a_repair_does_not_wait_for_the_minimum_gap() -> None:
    """And serves what was asked for besides."""
    made = schedule()
    made.request()
    assert made.due(1.0) == 10.0
    made.mend(1.5)
    assert made.due(1.0) == 1.5
    assert made.start(1.5) == Run(full=False, mends=True)
    made.finish(1.6, ok=True)
    assert made.due(1.6) == 31.6


def test_repairs_do_not_put_off_the_full_sync() -> None:
    """They read where others are known to have been: what nobody noticed is still found in time."""
    made = schedule()
    for now in (5.0, 15.0, 25.0):
        made.mend(now)
        assert made.start(now) == Run(full=False, mends=True)
        made.finish(now + 1, ok=True)
    assert made.due(26.0) == 30.0
    made.mend(30.0)
    assert made.start(30.0) == Run(full=True, mends=True)


def test_a_repair_that_failed_is_tried_again_in_full() -> None:
    """What is in force is not known then."""
    made = schedule()
    made.mend(5.0)
    made.start(5.0)
    made.finish(6.0, ok=False)
    due = made.due(6.0)
    assert due is not None
    assert made.start(due).full


def test_a_partial_sync_does_not_cancel_a_repair() -> None:
    """What was asked for comes first, the repair at its time; a full sync is the repair."""
    made = schedule()
    made.mend(20.0)
    made.request()
    assert made.due(10.0) == 10.0
    assert made.start(10.0) == Run(full=False)
    made.finish(10.1, ok=True)
    assert made.due(10.1) == 20.0
    made.request(full=True)
    made.start(15.0)
    made.finish(15.1, ok=True)
    assert made.due(15.1) == 45.1
