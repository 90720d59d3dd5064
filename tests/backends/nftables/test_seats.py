"""Slots: endpoints stay where they are, and everybody has as many as his weight says."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from kproxy.backends.nftables.seats import NO_PAST, Past, in_order, seated
from kproxy.core.policy import Use
from tests.backends.iptables.plans import port, weighed


def slots(text: str) -> tuple[bytes, ...]:
    return tuple(letter.encode() for letter in text)


@pytest.mark.parametrize(
    ("before", "wanted", "after"),
    [
        ("", "abc", "abc"),
        ("abc", "abc", "abc"),
        ("cab", "abc", "cab"),
        ("abc", "bcd", "dbc"),
        ("abc", "bc", "cb"),
        ("abc", "ab", "ab"),
        ("abc", "abcd", "abcd"),
        ("cab", "abcde", "cabde"),
        ("abc", "de", "de"),
        ("abc", "", ""),
        # Two leave and two come, one leaves and two come, two leave and one comes.
        ("abcd", "bdef", "ebfd"),
        ("abc", "bcde", "dbce"),
        ("abcd", "bde", "dbe"),
        # By weight: a has one slot of four, then two, then one of two.
        ("ab", "abbb", "abbb"),
        ("abbb", "aabb", "abba"),
        ("abba", "ab", "ab"),
        ("aab", "bba", "abb"),
    ],
)
def test_who_stays_keeps_his_slot(before: str, wanted: str, after: str) -> None:
    """Those that come, and those beyond the last slot, take the free ones."""
    assert seated(slots(wanted), slots(before)) == slots(after)


def test_no_more_is_moved_than_has_to_be() -> None:
    """Whatever comes and goes, each has its share, and as many slots as possible stay as they
    were."""
    dice = random.Random(7)
    before: tuple[bytes, ...] = ()
    for _ in range(3000):
        wanted = tuple(bytes([dice.randrange(12)]) for _ in range(dice.randrange(10)))
        after = seated(wanted, before)
        assert Counter(after) == Counter(wanted)
        stayed = Counter(one for one, other in zip(after, before, strict=False) if one == other)
        assert stayed == Counter(wanted) & Counter(before[: len(wanted)])
        before = after


def test_the_past_is_what_was_or_the_order_of_the_plan() -> None:
    """Seats that are known count; a set without any has the order that its plan had."""
    plan = weighed(port(pods=2), 10, 30)
    one, other, *_ = in_order(plan.endpoints, Use.CLUSTER)
    assert in_order(plan.endpoints, Use.CLUSTER) == (one, other, other, other)
    assert in_order(plan.endpoints, Use.LOCAL) == ()
    assert Past({}, plan).of(Use.CLUSTER) == (one, other, other, other)
    assert Past({Use.CLUSTER: (other, one)}, plan).of(Use.CLUSTER) == (other, one)
    assert NO_PAST.of(Use.CLUSTER) == ()
