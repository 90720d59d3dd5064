"""Slow start: few steps, upwards, full at the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.core.health.ramp import LEAST_WEIGHT, MAX_STEPS, next_step, weight_after


@pytest.mark.parametrize(
    ("elapsed", "slow_start", "weight", "wait"),
    [
        (0.0, 30.0, 5, 3.0),
        (2.9, 30.0, 5, 0.1),
        (3.0, 30.0, 10, 3.0),
        (15.0, 30.0, 50, 3.0),
        (29.9, 30.0, 90, 0.1),
        (30.0, 30.0, 100, None),
        (99.0, 30.0, 100, None),
        (0.0, 0.0, 100, None),
        (-1.0, 30.0, 5, 4.0),  # a clock that was set back
        (0.0, 1.0, 5, 0.5),  # no more than two steps a second
        (0.5, 1.0, 50, 0.5),
        (0.0, 0.1, 5, 0.1),
    ],
)
def test_weights_and_waits(elapsed, slow_start, weight, wait):
    """A tenth more after each tenth of the time."""
    assert weight_after(elapsed, slow_start) == weight
    due = next_step(elapsed, slow_start)
    assert due == (None if wait is None else pytest.approx(wait))


@given(st.floats(0.01, 3600))
def test_a_ramp_ends_after_few_steps(slow_start):
    """Waiting for each next step leads upwards to the full weight in at most ten steps, on time."""
    elapsed, weights = 0.0, [weight_after(0.0, slow_start)]
    while (wait := next_step(elapsed, slow_start)) is not None:
        assert wait > 0
        elapsed += wait
        weights.append(weight_after(elapsed, slow_start))
        assert len(weights) < 100
    assert weights == sorted(set(weights))
    assert (weights[0], weights[-1]) == (LEAST_WEIGHT, 100)
    assert len(weights) <= MAX_STEPS + 1
    assert elapsed == pytest.approx(slow_start)
