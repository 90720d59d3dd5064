"""The wheel, beside a plain sorted list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kproxy.health.checks.wheel import TICK, Wheel

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 5), st.floats(0, 3)),
        st.tuples(st.just("drop"), st.integers(0, 5), st.none()),
        st.tuples(st.just("pass"), st.none(), st.floats(0, 1)),
    ),
    max_size=60,
)


@given(OPERATIONS)
def test_everything_comes_once_and_never_early(operations: list[tuple[str, int, float]]) -> None:
    """What is due comes out within a tick after its time, in the order of ticks; the rest stays."""
    wheel: Wheel[int] = Wheel()
    plain: dict[int, float] = {}
    now = 0.0
    for what, entry, seconds in operations:
        if what == "set":
            wheel.set(entry, now + seconds)
            plain[entry] = now + seconds
        elif what == "drop":
            wheel.drop(entry)
            plain.pop(entry, None)
        else:
            now += seconds
            found = wheel.due(now)
            assert [when for when, _ in found] == sorted(when for when, _ in found)
            for when, entries in found:
                assert when <= now
                for each in entries:
                    due = plain.pop(each)
                    assert due < when <= due + 2 * TICK
            assert all(when > now - 2 * TICK for when in plain.values())
        assert len(wheel) == len(plain)
        soonest = wheel.next()
        assert (soonest is None) == (not plain)
        if soonest is not None:
            assert min(plain.values()) < soonest <= min(plain.values()) + 2 * TICK


def test_an_entry_that_is_moved_is_due_once() -> None:
    """Only the last time counts, and what was emptied by it leaves nothing behind."""
    wheel: Wheel[str] = Wheel()
    for when in (1.0, 5.0, 3.0):
        wheel.set("a", when)
    assert wheel.due(2.0) == []
    assert [entries for _, entries in wheel.due(4.0)] == [["a"]]
    assert wheel.next() is None
    assert wheel.due(100.0) == []
