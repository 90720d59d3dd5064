"""Things that several sources share, counted: what comes, what goes, what stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kproxy.core.tally import Tally

#: Sources by name; a thing may stand in several of them, and twice in one.
plans = st.dictionaries(st.sampled_from("abc"), st.lists(st.sampled_from("xyz"), max_size=3))


def tally(sources):
    return Tally(sources, iter)


def test_what_is_shared_stays_until_the_last_one_goes():
    """One of two goes: nothing changes; then the other."""
    first = tally({"a": ["x"], "b": ["x", "y"]})
    second = first.following({"a": ["x"]}, ["b"])
    third = second.following({}, ["a"])
    assert second.since(first) == (set(), {"y"})
    assert third.since(second) == (set(), {"x"})
    assert third.since(first) == (set(), {"x", "y"})
    assert first.since(first) == (set(), set())


@given(st.lists(plans, min_size=1, max_size=5), st.booleans())
def test_following_equals_counting_anew(history, looks_back):
    """However it got there, and whether or not anybody looks at a predecessor in between."""
    made, before = tally(history[0]), history[0]
    for after in history[1:]:
        names = [name for name in "abc" if before.get(name) != after.get(name)]
        following = made.following(after, names)
        fresh, was = set().union(*after.values()), set().union(*before.values())
        if looks_back:
            assert made.all == was
        assert following.all == fresh
        assert following.since(made) == (fresh - was, was - fresh)
        assert following.since(tally(before)) == (fresh - was, was - fresh)
        made, before = following, after


def test_work_follows_the_change():
    """Sources that are not named are not asked."""
    asked = []

    def things(source):
        asked.append(source)
        return source

    first = Tally({"a": "x", "b": "y"}, things)
    assert first.all == {"x", "y"}
    asked.clear()
    assert first.following({"a": "x", "b": "z"}, ["b"]).all == {"x", "z"}
    assert sorted(asked) == ["y", "z"]
