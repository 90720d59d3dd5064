"""Histograms of waits: log-linear, three significant digits, mergeable. Pure.

Values are nanoseconds. Those below 2,048 are counted exactly; above, each doubling has 1,024
buckets, so a bucket is at most 1/1,024 of its value wide. The load generator counts in the same
buckets (kproxy/bench/generator/record.pxi); this module is what reads them, and its slow twin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from kproxy.core.objects import Value

_EXACT = 2048
_STEPS = 1024
_EXACT_BITS = 11
#: Buckets that :func:`coarser` makes one of.
_COARSE = _STEPS // 64
#: Values are cut off here: 36 minutes.
_MOST = (1 << 41) - 1

BUCKETS = _EXACT + _STEPS * (41 - _EXACT_BITS)


def bucket(value: int) -> int:
    """Number of the bucket that a value (ns) falls into."""
    value = min(max(value, 0), _MOST)
    if value < _EXACT:
        return value
    shift = value.bit_length() - _EXACT_BITS
    return _EXACT + (shift - 1) * _STEPS + (value >> shift) - _STEPS


def bounds(number: int) -> tuple[int, int]:
    """Smallest and largest value (ns) of a bucket."""
    if number < _EXACT:
        return number, number
    doubling, step = divmod(number - _EXACT, _STEPS)
    low = (step + _STEPS) << (doubling + 1)
    return low, low + (1 << (doubling + 1)) - 1


def coarser(number: int) -> int:
    """The bucket that stands for it where 64 for each doubling are enough (1.6 %): to be kept and
    drawn."""
    return number if number < _EXACT else number - (number - _EXACT) % _COARSE + _COARSE // 2


class Histogram(Value, frozen=True):
    """``counts``: bucket -> how many, only those that have any."""

    counts: dict[int, int]

    @classmethod
    def of(cls, values: Iterable[int]) -> Histogram:
        """The histogram of values in nanoseconds."""
        return cls(dict(Counter(map(bucket, values))))

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def percentile(self, share: float) -> float:
        """Seconds within which ``share`` percent of the operations ended (the middle of their
        bucket). ValueError: there were none."""
        wanted = max(1, -(-self.total * share // 100))
        seen = 0
        for number in sorted(self.counts):
            seen += self.counts[number]
            if seen >= wanted:
                low, high = bounds(number)
                return (low + high) / 2e9
        raise ValueError("no operation was counted")

    def merged(self, *others: Histogram) -> Histogram:
        """This one and others, as if one client had counted all."""
        whole = Counter(self.counts)
        for other in others:
            whole.update(other.counts)
        return Histogram(dict(whole))


def cumulative(counts: Mapping[int, int]) -> list[tuple[float, float]]:
    """(seconds, share of the operations that took no longer), ascending: the curve of a plot."""
    total, seen, curve = sum(counts.values()), 0, []
    for number in sorted(counts):
        seen += counts[number]
        curve.append((bounds(number)[1] / 1e9, seen / total))
    return curve
