"""Passive ejection: growing sentences, the cap, ways back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from kproxy.core.health.outlier import Found, Outliers
from kproxy.core.health.values import Passive
from kproxy.core.objects import PortName, Protocol

NAME = PortName("ns1", "svc1", "http", Protocol.TCP)
PASSIVE = Passive(failures=3, base=10.0, most=25.0, share=0.5)


def place(number):
    return f"10.180.0.{number}", 8080


def machine(count=4, passive=PASSIVE):
    made = Outliers(NAME, passive)
    assert made.stand([place(number) for number in range(1, count + 1)], 0.0) == []
    return made


def bad(number, times=3):
    return [Found(place(number), False, "refused")] * times


def good(number):
    return [Found(place(number), True)]


def brief(told):
    """Who, and whether out."""
    return [(int(each.ip.rpartition(".")[2]), each.out) for each in told]


@pytest.mark.parametrize(
    ("findings", "told"),
    [
        (bad(1, 2), []),
        (bad(1), [(1, True)]),
        (bad(1, 9), [(1, True)]),
        (bad(1, 2) + good(1) + bad(1, 2), []),
        (bad(1, 2) + good(2) + bad(1, 1), [(1, True)]),
        (bad(1) + bad(2), [(1, True), (2, True)]),
        (bad(1) + bad(2) + bad(3), [(1, True), (2, True)]),
        (bad(9), []),
    ],
    ids=[
        *("two are not enough", "three in a row", "once", "a success between", "others count not"),
        *("two of four", "the cap", "not of this port"),
    ],
)
def test_who_is_ejected(findings, told):
    """Three failures in a row eject, as long as no more than half are out."""
    assert brief(machine().found(findings, 1.0)) == told


def test_the_reason_says_what_happened():
    """How many failures, what the last one was, and for how long."""
    (told,) = machine().found(bad(1), 7.0)
    assert told.reason == "3 failures in a row, the last: refused; out for 10 s"
    assert told.at == 7.0
    assert told.name == NAME


@pytest.mark.parametrize(
    ("count", "share", "most"),
    [
        (1, 1.0, 0),
        (2, 0.1, 1),
        (2, 1.0, 1),
        (5, 0.5, 2),
        (10, 0.3, 3),
        (100, 0.29, 29),
        (3, 1.0, 2),
    ],
)
def test_the_cap(count, share, most):
    """The share rounded down, but one wherever there are two, and never all."""
    outliers = machine(count, Passive(failures=1, share=share))
    found = [Found(place(number), False) for number in range(1, count + 1)]
    assert len(outliers.found(found, 1.0)) == most


def test_sentences_grow_with_relapses_and_end():
    """Each ejection soon after the last is longer by the base, up to the most; a good time in
    between makes it the first again."""
    outliers, now, sentences = machine(), 0.0, []
    for _ in range(4):
        (told,) = outliers.found(bad(1), now)
        assert told.out
        assert outliers.tick(outliers.due - 0.001) == []
        sentences.append(outliers.due - now)
        now = outliers.due
        assert brief(outliers.tick(now)) == [(1, False)]
    assert sentences == [10.0, 20.0, 25.0, 25.0]
    now += 25.0
    outliers.found(bad(1), now)
    assert outliers.due - now == 10.0


def test_a_good_check_ends_it_at_once():
    """The active check knows better; what it says of one that is in says nothing."""
    outliers = machine()
    outliers.found(bad(1), 1.0)
    assert brief(outliers.passed(place(1), 2.0)) == [(1, False)]
    assert outliers.passed(place(1), 3.0) == []
    assert outliers.due is None


def test_failures_before_the_ejection_do_not_count_after_it():
    """Who comes back starts anew, and late findings of the time before count for nothing."""
    outliers = machine()
    outliers.found(bad(1) + bad(1), 1.0)
    outliers.tick(11.0)
    assert outliers.found(bad(1, 2), 12.0) == []


def test_who_had_to_stay_goes_with_the_next_failure():
    """When the cap has room again, one more failure is enough."""
    outliers = machine(2)
    assert brief(outliers.found(bad(1) + bad(2), 1.0)) == [(1, True)]
    outliers.passed(place(1), 2.0)
    assert brief(outliers.found(bad(2, 1), 3.0)) == [(2, True)]


def test_fewer_endpoints_let_some_in():
    """When endpoints go, the cap falls: whose time is over first comes in first."""
    outliers = machine(4)
    outliers.found(bad(1), 1.0)
    outliers.found(bad(2), 2.0)
    told = outliers.stand([place(1), place(2), place(3)], 3.0)
    assert brief(told) == [(1, False)]
    assert outliers.stand([place(2)], 4.0)[0].ip == place(2)[0]


def test_the_last_one_that_the_check_leaves_stays():
    """Endpoints that the active check has put out are nobody to go on with."""
    outliers = machine(3)
    outliers.stand([place(1), place(2), place(3)], 1.0, down=[place(2), place(3)])
    assert outliers.found(bad(1, 9), 1.0) == []
    outliers.stand([place(1), place(2), place(3)], 2.0, down=[place(3)])
    assert brief(outliers.found(bad(1, 1), 2.0)) == [(1, True)]
    told = outliers.stand([place(1), place(2), place(3)], 3.0, down=[place(2), place(3)])
    assert brief(told) == [(1, False)]


def test_one_that_is_gone_is_forgotten():
    """An address that comes again is another pod."""
    outliers = machine(3)
    outliers.found(bad(1), 1.0)
    assert outliers.stand([place(2), place(3)], 2.0) == []
    assert outliers.stand([place(1), place(2), place(3)], 3.0) == []
    assert (outliers.due, list(outliers.out)) == (None, [])


def test_who_is_out_already_is_taken_over():
    """After a restart or with other settings: out for the base time, told by nobody again."""
    outliers = machine(3)
    outliers.adopt([place(1), place(9)], 5.0)
    assert (list(outliers.out), outliers.due) == ([place(1)], 15.0)
    assert brief(outliers.tick(15.0)) == [(1, False)]


numbers = st.integers(1, 6)
steps = st.one_of(
    st.tuples(st.just("found"), st.lists(st.tuples(numbers, st.booleans()), max_size=12)),
    st.tuples(st.just("stand"), st.tuples(st.sets(numbers), st.sets(numbers))),
    st.tuples(st.just("passed"), numbers),
    st.tuples(st.just("wait"), st.floats(0, 40)),
)


@budget(deadline=None)
@given(st.lists(steps, max_size=40), st.floats(0.01, 1), st.integers(1, 3))
def test_nothing_ever_breaks_the_cap(history, share, failures):
    """What is told adds up to who is out; never more than the cap, and never the last endpoint that
    the active check leaves."""
    outliers = Outliers(NAME, Passive(failures=failures, share=share))
    places, down, out, now = set(), set(), set(), 0.0
    for kind, what in history:
        match kind:
            case "found":
                told = outliers.found([Found(place(n), ok) for n, ok in what], now)
            case "stand":
                places = {place(n) for n in what[0]}
                down = {place(n) for n in what[1]} & places
                told = outliers.stand(places, now, down)
            case "passed":
                told = outliers.passed(place(what), now)
            case "wait":
                now += what
                told = outliers.tick(now)
        out &= places
        for each in told:
            assert ((each.ip, each.port) in out) is not each.out
            (out.add if each.out else out.discard)((each.ip, each.port))
        assert out == set(outliers.out)
        assert len(out) <= max(1, share * len(places) + 1e-6)
        assert not out or places - out - down
