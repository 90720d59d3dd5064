"""When to sync: tables of moments, and properties over random histories."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.sync import BURST, FIRST_RETRY, Schedule


def synced(schedule: Schedule, at: float, *, ok: bool = True, takes: float = 0.0) -> bool:
    """One sync at that time; whether it was a full one."""
    run = schedule.start(at)
    schedule.finish(at + takes, ok=ok)
    return run.full


def test_nothing_is_due_before_the_first_request() -> None:
    """Without a request nothing is known that could be written."""
    schedule = Schedule(1, 30)
    assert schedule.due(0) is None
    schedule.request()
    assert schedule.due(0) == 0


def test_the_first_sync_is_full_and_a_change_is_not() -> None:
    """The kernel is read at the start; after that a change costs only itself."""
    schedule = Schedule(1, 30)
    schedule.request()
    assert synced(schedule, 0)
    schedule.request()
    assert not synced(schedule, 5)
    schedule.request(full=True)
    assert synced(schedule, 10)


def test_two_syncs_may_follow_at_once_and_the_third_waits() -> None:
    """The burst of two, then one sync each minimum."""
    schedule = Schedule(1, 30)
    for at in (100.0, 100.25):
        schedule.request()
        assert schedule.due(at) == at
        synced(schedule, at)
    schedule.request()
    # Two tokens were there at 100; at 100.25 a quarter of one had come back.
    assert schedule.due(100.5) == pytest.approx(101.0)
    synced(schedule, 101.0)
    schedule.request()
    assert schedule.due(101.0) == pytest.approx(102.0)


def test_a_minimum_of_zero_holds_up_nothing() -> None:
    """Every change at once."""
    schedule = Schedule(0, 30)
    for at in (0.0, 0.0, 0.001, 0.001):
        schedule.request()
        assert schedule.due(at) == at
        synced(schedule, at)


def test_requests_during_a_sync_become_one_sync_after_it() -> None:
    """Coalescing: nothing is due while one runs, one is due after it."""
    schedule = Schedule(0, 30)
    schedule.request()
    schedule.start(0)
    schedule.request()
    schedule.request()
    assert schedule.due(1) is None
    schedule.finish(2, ok=True)
    assert schedule.due(2) == 2
    synced(schedule, 2)
    assert schedule.due(2) == 32


def test_the_periodic_sync_is_full_and_counts_from_the_last_one() -> None:
    """A quiet period ends in a full sync; any sync starts a new period."""
    schedule = Schedule(1, 30)
    schedule.request()
    synced(schedule, 0, takes=2)
    assert schedule.due(3) == 32
    schedule.request()
    assert not synced(schedule, 10)
    assert schedule.due(11) == 40
    assert synced(schedule, 40)


def test_failures_are_retried_soon_then_less_often_never_later_than_the_period() -> None:
    """Doubling from the first retry, bounded by the period; every try is full; success resets."""
    schedule = Schedule(1, 5)
    schedule.request()
    now, gaps = 0.0, []
    for _ in range(1200):
        synced(schedule, now, ok=False)
        due = schedule.due(now)
        assert due is not None
        gaps.append(due - now)
        now = due
    assert gaps[:6] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5])
    assert gaps[-1] == pytest.approx(5)
    assert synced(schedule, now)
    assert schedule.retry_delay == 0
    assert schedule.due(now) == now + 5
    schedule.request()
    assert not synced(schedule, now + 4)


def test_a_request_does_not_hurry_a_retry() -> None:
    """The reason of the failure is rarely in a new change."""
    schedule = Schedule(0, 30)
    schedule.request()
    synced(schedule, 0, ok=False)
    schedule.request()
    assert schedule.due(0.1) == pytest.approx(FIRST_RETRY)


#: What may happen after some seconds: a request, or a look at the clock.
steps = st.lists(
    st.tuples(st.floats(0, 3), st.booleans(), st.booleans(), st.floats(0, 0.5)), max_size=60
)


@given(minimum=st.sampled_from([0.0, 0.5, 1.0]), steps=steps)
def test_properties_of_any_history(
    minimum: float, steps: list[tuple[float, bool, bool, float]]
) -> None:
    """No window holds more good syncs than allowed; a request never waits longer than it must."""
    period = 10.0
    schedule = Schedule(minimum, period)
    schedule.request()
    now, starts, asked = 0.0, [], 0.0
    waiting, failed = True, False
    for pause, request, ok, takes in steps:
        horizon = now + pause
        while (due := schedule.due(now)) is not None and due <= horizon:
            now = max(now, due)
            if not failed:
                starts.append(now)
                if waiting:
                    assert now - asked <= minimum + 1e-6
            schedule.start(now)
            now += takes
            schedule.finish(now, ok=ok)
            waiting, failed = False, not ok
        now = max(now, horizon)
        if request:
            schedule.request()
            if not waiting:
                asked, waiting = now, True
        due = schedule.due(now)
        assert due is not None
        assert due <= now + period
    if minimum:
        for first, begin in enumerate(starts):
            for last in range(first, len(starts)):
                allowed = BURST + (starts[last] - begin) / minimum
                assert last - first + 1 <= allowed + 1e-6
