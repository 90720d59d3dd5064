"""Two samples that are not paired: how far one lies from the other, by ranks alone. Pure.

Rounds of two runs have nothing to do with each other, so there are no ratios within a round. The
estimate is Hodges and Lehmann's: the median of all differences between a value of one and a value
of the other. Its interval comes from the Mann-Whitney statistic: how many of these differences are
below 0 depends on nothing but the number of values as long as both samples scatter alike, whatever
that scatter is. 99.9 % takes at least 7 values in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import comb
from statistics import median

from kproxy.core.objects import Value


class Shift(Value, frozen=True):
    """``estimate`` of how far the second sample lies above the first; between ``low`` and ``high``
    with probability ``level`` or more (infinite ends: too few values to say)."""

    estimate: float
    low: float
    high: float
    level: float

    @property
    def shown(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def shift(first: Sequence[float], second: Sequence[float], level: float) -> Shift:
    """Of ``second`` over ``first``. ValueError: one of them is empty."""
    if not first or not second:
        raise ValueError("no values to compare")
    apart = sorted(high - low for low in first for high in second)
    k = cut(len(first), len(second), level)
    low, high = (apart[k - 1], apart[-k]) if k else (-float("inf"), float("inf"))
    return Shift(median(apart), low, high, level)


@lru_cache(maxsize=256)
def cut(first: int, second: int, level: float) -> int:
    """k for which the k-th smallest and the k-th largest of all differences hold the true shift
    between them with probability ``level`` or more; 0: no k does.

    The shift is below the k-th smallest when fewer than k differences are, and their number has the
    distribution of U: 2 * P(U < k).
    """
    ways, whole = _ways(first, second), comb(first + second, first)
    below, found = 0, 0
    for k in range(1, first * second // 2 + 1):
        below += ways[k - 1]
        if 2 * below > (1 - level) * whole:
            break
        found = k
    return found


def needed(level: float) -> int:
    """Fewest values on each side that can show a difference at this level."""
    count = 1
    while not cut(count, count, level):
        count += 1
    return count


def _ways(first: int, second: int) -> list[int]:
    """In how many of all orders of two samples U is 0, 1, …: the coefficients of the Gaussian
    binomial, the product of (1 - q^(second + i)) / (1 - q^i) for i = 1 … first."""
    size = first * second + 1
    ways = [1] + [0] * (size - 1)
    for i in range(1, first + 1):
        for at in range(size - 1, second + i - 1, -1):
            ways[at] -= ways[at - second - i]
        for at in range(i, size):
            ways[at] += ways[at - i]
    return ways
