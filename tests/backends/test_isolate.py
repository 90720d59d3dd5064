"""The search for the members that spoil a change: who is found, and at what price."""

from __future__ import annotations

from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.backends.isolate import LIMIT, isolate
from kproxy.errors import ApplyError, ContentError


class Kernel:
    """Takes any set of members without a bad one; it says who is bad if it ``tells``."""

    def __init__(self, size: int, bad: set[int], *, tells: bool = False) -> None:
        self.names = list(range(size))
        self.bad = bad
        self.tells = tells
        self.tries = 0
        self.in_force: set[int] = set()

    def attempt(self, out: frozenset[int]) -> ContentError | None:
        self.tries += 1
        trial = set(self.names) - out
        if found := sorted(trial & self.bad):
            return ContentError(f"{found[0]} is bad", suspects=found[:1] if self.tells else ())
        self.in_force = trial
        return None

    def search(self) -> dict[int, str]:
        first = self.attempt(frozenset())
        assert first is not None
        found: dict[int, str] = {}
        self.tries = 0
        isolate(self.names, first, self.attempt, found)
        return found


@given(st.integers(1, 200), st.data())
def test_exactly_the_bad_ones_are_left_out(size: int, data: st.DataObject) -> None:
    """Whoever they are, all others are in force, and each reason speaks of its member."""
    bad = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=min(size, 5)))
    for tells in (False, True):
        kernel = Kernel(size, bad, tells=tells)
        found = kernel.search()
        assert set(found) == bad
        assert kernel.in_force == set(kernel.names) - bad
        assert all(why == f"{member} is bad" for member, why in found.items() if len(bad) == 1)


@pytest.mark.parametrize("size", [1, 2, 3, 100, 1000, 5000])
def test_the_price_is_a_logarithm(size: int) -> None:
    """One bad member: log2(n) halvings, one repetition, one empty try, and one for the rest."""
    worst = 0
    for member in {0, 1, size // 3, size // 2, size - 1} & set(range(size)):
        kernel = Kernel(size, {member})
        kernel.search()
        worst = max(worst, kernel.tries)
    assert worst <= ceil(log2(size)) + 3


def test_a_named_member_costs_one_try() -> None:
    """Who is named by the refusal is left out at once."""
    kernel = Kernel(5000, {4321}, tells=True)
    assert kernel.search() == {4321: "4321 is bad"}
    assert kernel.tries == 1


def test_a_refusal_that_passes_blames_nobody() -> None:
    """The same again is taken: nothing is left out."""
    kernel = Kernel(10, set())
    found: dict[int, str] = {}
    isolate(kernel.names, ContentError("once"), kernel.attempt, found)
    assert (found, kernel.tries) == ({}, 1)


def test_what_is_nobodys_fault_is_raised() -> None:
    """When nothing at all is taken, no member is blamed, and few tries are made."""
    tries = 0

    def attempt(out: frozenset[int]) -> ContentError:
        nonlocal tries
        tries += 1
        return ContentError("the kernel lacks something")

    found: dict[int, str] = {}
    with pytest.raises(ContentError, match="lacks something"):
        isolate(range(1000), ContentError("no"), attempt, found)
    assert found == {}
    assert tries <= 1 + ceil(log2(1000)) + 1


def test_other_failures_end_the_search() -> None:
    """A lock that is held is not a matter of members."""

    def attempt(out: frozenset[int]) -> ContentError | None:
        raise ApplyError("the lock is held")

    with pytest.raises(ApplyError, match="lock is held"):
        isolate(range(10), ContentError("no"), attempt, {})


def test_one_search_looks_for_so_many_only() -> None:
    """What it found is kept for the next one, which goes on from there."""
    kernel = Kernel(200, set(range(0, 200, 5)), tells=True)
    found: dict[int, str] = {}
    with pytest.raises(ContentError):
        isolate(kernel.names, kernel.attempt(frozenset()), kernel.attempt, found)  # type: ignore[arg-type]
    assert len(found) == LIMIT
    for _ in range(3):
        try:
            again = kernel.attempt(frozenset(found))
            isolate(kernel.names, again or ContentError("no"), kernel.attempt, found)
        except ContentError:
            continue
    assert set(found) == kernel.bad
