"""Histograms: both twins agree, a bucket is narrow, percentiles and merging mean what they say."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kproxy.bench.histogram import BUCKETS, Histogram, bounds, bucket, cumulative


@given(value=st.integers(0, 1 << 62))
@example(value=0)
@example(value=2047)
@example(value=2048)
@example(value=(1 << 41) - 1)
@example(value=1 << 41)
def test_twins_agree(generator: ModuleType, value: int) -> None:
    """The generator counts where this module reads."""
    assert generator.bucket(value) == bucket(value)


def test_buckets_follow_each_other() -> None:
    """No value is in two buckets or in none, and each is at most a thousandth wide."""
    end = -1
    for number in range(BUCKETS):
        low, high = bounds(number)
        assert low == end + 1
        assert bucket(low) == bucket(high) == number
        assert (high - low) * 1024 <= low
        end = high


@pytest.mark.parametrize(
    ("share", "expected"), [(0, 1e-6), (50, 50e-6), (99, 99e-6), (99.5, 100e-6), (100, 100e-6)]
)
def test_percentile(share: float, expected: float) -> None:
    """The value that so many percent do not exceed, to three digits."""
    found = Histogram.of(range(1000, 101_000, 1000)).percentile(share)
    assert found == pytest.approx(expected, rel=1e-3)


def test_percentile_of_nothing() -> None:
    """Nothing has no percentile."""
    with pytest.raises(ValueError, match="no operation"):
        Histogram({}).percentile(50)


@given(parts=st.lists(st.lists(st.integers(0, 1 << 40)), min_size=1, max_size=4))
def test_merged_is_as_counted_together(parts: list[list[int]]) -> None:
    """Who counts what does not matter."""
    first, *others = map(Histogram.of, parts)
    assert first.merged(*others) == Histogram.of(value for part in parts for value in part)
    assert first.merged(*others).total == sum(map(len, parts))


def test_cumulative_ends_at_one() -> None:
    """A curve that rises from its first value to all."""
    curve = cumulative(Histogram.of([100, 100, 300, 400]).counts)
    assert curve == [(100e-9, 0.5), (300e-9, 0.75), (400e-9, 1.0)]
