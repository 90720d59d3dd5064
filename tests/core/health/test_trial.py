"""Rise and fall of one target."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.core.health.trial import begin, is_news
from kproxy.core.health.values import Pace


def run(trial, results, at=0.0):
    """The trial after results written as + and -."""
    for result in results:
        trial = trial.heard(result == "+", "ok" if result == "+" else "refused", at)
    return trial


@pytest.mark.parametrize(
    ("initial", "results", "up", "unsure"),
    [
        (True, "", True, True),
        (False, "", False, True),
        (True, "+", True, False),
        (True, "-", True, True),
        (True, "--", True, True),
        (True, "---", False, False),
        (True, "--+--", True, True),
        (True, "---+", False, True),
        (True, "---++", True, False),
        (True, "---+-+", False, True),
        (False, "-", False, False),
        (False, "+", False, True),
        (False, "++", True, False),
        (False, "++--", True, True),
        (False, "++---", False, False),
    ],
)
def test_rise_and_fall(initial, results, up, unsure):
    """Two good results in a row bring up, three bad ones down; a try soon follows any doubt."""
    trial = run(begin(Pace(rise=2, fall=3, initial=initial), 0.0), results)
    assert (trial.up, trial.unsure) == (up, unsure)


@pytest.mark.parametrize(("believed", "up"), [(None, False), (True, True), (False, False)])
def test_it_begins_with_what_is_believed(believed, up):
    """What was known before a restart counts for more than the policy's first guess."""
    assert begin(Pace(initial=False), 0.0, believed).up is up


def test_a_steady_target_costs_nothing():
    """A result that says nothing new gives the same object back."""
    trial = run(begin(Pace(), 0.0), "+")
    assert trial.heard(True, "other words", 9.0) is trial


def test_since_and_reason_are_of_the_change():
    """A transition has the time and the words of the result that made it."""
    trial = begin(Pace(fall=2), 1.0).heard(False, "first", 2.0)
    assert (trial.since, trial.reason) == (1.0, "")
    trial = trial.heard(False, "second", 3.0)
    assert (trial.up, trial.since, trial.reason) == (False, 3.0, "second")


@pytest.mark.parametrize(
    ("results", "news"),
    [
        ("+", "!"),
        ("-", "."),
        ("--", ".."),
        ("---", "..!"),
        ("+---++", "!..!.!"),
        ("++--+", "!...."),
    ],
)
def test_what_is_news(results, news):
    """Told are the first result for the state, and each change; never a doubt."""
    trial, told = begin(Pace(rise=2, fall=3), 0.0), ""
    for result in results:
        after = run(trial, result)
        told += "!" if is_news(trial, after) else "."
        trial = after
    assert told == news


@pytest.mark.parametrize(
    ("results", "draw", "seconds"),
    [("+", 0.5, 2.0), ("+", 0.0, 1.8), ("+", 1.0, 2.2), ("", 0.5, 0.4), ("+-", 1.0, 0.44)],
)
def test_waiting(results, draw, seconds):
    """The interval, or the fast one in doubt, give or take the jitter."""
    pace = Pace(interval=2.0, fast_interval=0.4, jitter=0.1)
    assert run(begin(pace, 0.0), results).wait(draw) == pytest.approx(seconds)


@given(
    st.text("+-", max_size=60),
    st.integers(1, 5),
    st.integers(1, 5),
    st.booleans(),
)
def test_flapping_is_damped(results, rise, fall, initial):
    """Between two changes there are at least as many results as rise or fall asks for, all of them
    at the end of the run for the new state."""
    trial = begin(Pace(rise=rise, fall=fall, initial=initial), 0.0)
    last = 0
    for number, result in enumerate(results, 1):
        before, trial = trial, run(trial, result)
        if trial.up is not before.up:
            wanted = rise if trial.up else fall
            assert number - last >= wanted
            assert set(results[number - wanted : number]) == {"+" if trial.up else "-"}
            last = number
