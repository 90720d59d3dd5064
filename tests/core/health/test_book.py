"""What is remembered of health, for whom, and until when."""

from __future__ import annotations

import pytest

from kproxy.core.health.book import Book
from kproxy.core.health.values import (
    Check,
    Checked,
    Ejected,
    Http,
    Opinion,
    Pace,
    Passive,
    Policy,
    Ramped,
    Tcp,
    target_of,
)
from kproxy.core.objects import Family, ObjectKey, PortName, Protocol

V4, V6 = Family.IPV4, Family.IPV6
TCP_CHECK = Check(Tcp())
POLICY = Policy(TCP_CHECK, Passive(), slow_start=30.0)
ONE, TWO = ("10.180.0.1", 8080), ("10.180.0.2", 8080)


def name_of(service="svc1", port="http"):
    return PortName("ns1", service, port, Protocol.TCP)


def key(service="svc1"):
    return ObjectKey("ns1", service)


def book_of(*names, policy=POLICY, places=(ONE, TWO)):
    book = Book()
    for name in names or (name_of(),):
        book.register(V4, name, policy, places)
    return book


def checked(up, at=1.0, place=ONE, check=TCP_CHECK, reason="told"):
    return Checked(target_of(check, *place), up, reason, at)


def ejected(out, at=1.0, place=ONE, name=None):
    return Ejected(name or name_of(), *place, out, "told", at)


def ramped(weight, at=1.0, place=ONE, name=None):
    return Ramped(name or name_of(), *place, weight, at)


def test_an_opinion_reaches_every_service_of_its_target():
    """One target, two services and two ports: both services are planned again."""
    book = book_of(name_of(), name_of("svc1", "more"), name_of("svc2"))
    assert book.hear([checked(False)]) == {key(), key("svc2")}
    assert book.opinions(V4, TCP_CHECK) == {ONE: Opinion(False, "told", 1.0)}


def test_equal_targets_are_one():
    """A check of port 8080 and one of the endpoint's own port 8080 are the same, and a check of
    one port is one for all endpoints of an address."""
    book = book_of(name_of())
    named = Policy(Check(Tcp(port=8080)))
    book.register(V4, name_of("svc2"), named, [("10.180.0.1", 9000), ("10.180.0.1", 9001)])
    assert book.hear([checked(False)]) == {key(), key("svc2")}


@pytest.mark.parametrize(
    "stray",
    [
        checked(False, place=("10.180.0.9", 8080)),
        checked(False, place=("10.180.0.1", 9)),
        checked(False, check=Check(Http())),
        checked(False, check=Check(Tcp(), Pace(rise=9))),
        checked(False, place=("fd00::1", 8080)),
        ejected(True, place=("10.180.0.9", 8080)),
        ejected(True, name=name_of("gone")),
        ramped(10, place=("10.180.0.9", 8080)),
        ramped(10, name=name_of("gone")),
    ],
)
def test_what_nobody_looks_at_is_not_kept(stray):
    """Observations of what is gone, or was never asked for, change nothing and leave nothing."""
    book = book_of()
    before = book.known()
    assert book.hear([stray]) == set()
    assert book.known() == before


def test_a_port_without_passive_detection_has_no_ejections():
    """Observations that were under way when the policy changed come to nothing."""
    book = book_of(policy=Policy(TCP_CHECK))
    assert book.hear([ejected(True)]) == set()
    assert book.ejections(V4, name_of()) == {}


def test_later_counts():
    """An older observation than the known one is nothing new, nor is the same one again."""
    book = book_of()
    assert book.hear([checked(False, at=5.0)]) == {key()}
    assert book.hear([checked(True, at=4.0), checked(False, at=5.0)]) == set()
    assert book.hear([ejected(True, at=5.0)]) == {key()}
    assert book.hear([ejected(False, at=4.0), ejected(True, at=5.0)]) == set()
    assert not book.opinions(V4, TCP_CHECK)[ONE].up
    assert not book.ejections(V4, name_of())[ONE].up


@pytest.mark.parametrize("turn", [1, -1])
def test_two_at_the_same_moment(turn):
    """In either order the one that is down counts."""
    book = book_of()
    book.hear([checked(True), checked(False)][::turn])
    assert not book.opinions(V4, TCP_CHECK)[ONE].up


@pytest.mark.parametrize(
    ("heard", "weights"),
    [
        ([checked(True)], {}),
        ([checked(False), checked(True, 2.0)], {ONE: 5}),
        ([ejected(True), ejected(False, 2.0)], {ONE: 5}),
        ([checked(False), checked(True, 2.0), ramped(10, 3.0)], {ONE: 10}),
        ([checked(False), checked(True, 2.0), ramped(10, 1.0)], {ONE: 5}),
        ([checked(False), checked(True, 2.0), ramped(90, 2.0)], {ONE: 5}),
        ([ramped(90, 1.0), checked(False, 2.0), checked(True, 3.0)], {ONE: 5}),
    ],
    ids=[
        *("up all along", "came up", "let in", "a step", "a step of an older ramp", "a tie"),
        "ramps anew",
    ],
)
def test_slow_start(heard, weights):
    """Who comes up starts at the least weight and follows its ramp."""
    book = book_of()
    book.hear(heard)
    assert book.weights(V4, name_of()) == weights


def test_an_endpoint_that_joins_starts_slowly():
    """Those of a new port have served before; one that a known port gets has not."""
    book = book_of(places=[ONE])
    assert book.weights(V4, name_of()) == {}
    book.register(V4, name_of(), POLICY, [ONE, TWO])
    assert book.weights(V4, name_of()) == {TWO: 5}
    assert book.hear([ramped(50, place=TWO)]) == {key()}
    assert book.hear([ramped(100, 2.0, place=TWO)]) == {key()}
    assert book.weights(V4, name_of()) == {TWO: 100}


def test_no_weights_without_slow_start():
    """They go with the policy that asked for them."""
    book = book_of(places=[ONE])
    book.register(V4, name_of(), POLICY, [ONE, TWO])
    book.register(V4, name_of(), Policy(TCP_CHECK), [ONE, TWO])
    assert book.hear([checked(False), checked(True, 2.0), ramped(50, 3.0)]) == {key()}
    assert book.weights(V4, name_of()) == {}


def test_an_endpoint_that_goes_is_forgotten():
    """Its address may come again as another pod: nothing of before is held against it."""
    book = book_of()
    book.hear([checked(False), ejected(True), checked(True, place=TWO)])
    book.register(V4, name_of(), POLICY, [TWO])
    book.register(V4, name_of(), POLICY, [ONE, TWO])
    assert book.opinions(V4, TCP_CHECK) == {TWO: Opinion(True, "told", 1.0)}
    assert book.ejections(V4, name_of()) == {}


def test_a_target_is_kept_while_one_port_looks_at_it():
    """The opinion goes with the last of two ports."""
    book = book_of(name_of(), name_of("svc2"))
    book.hear([checked(False)])
    book.forget(V4, name_of())
    assert ONE in book.opinions(V4, TCP_CHECK)
    book.forget(V4, name_of("svc2"))
    assert book.known() == ()
    assert book.hear([checked(False, 2.0)]) == set()


def test_another_check_is_another_opinion():
    """A changed policy begins with nothing known."""
    book = book_of()
    book.hear([checked(False)])
    other = Check(Http())
    book.register(V4, name_of(), Policy(other), [ONE, TWO])
    assert book.opinions(V4, TCP_CHECK) == {}
    assert book.hear([checked(False, check=other)]) == {key()}


def test_a_successor_knows_what_it_needs():
    """Checks' states and who is out go over; what the first plan does not name is dropped."""
    old = book_of()
    old.hear([checked(False), checked(True, place=TWO), ejected(True, place=TWO)])
    old.hear([ejected(True), ejected(False, 2.0)])
    new = Book()
    new.restore(old.known())
    new.register(V4, name_of(), POLICY, [ONE])
    new.settle(V4, {name_of()})
    assert new.opinions(V4, TCP_CHECK) == {ONE: Opinion(False, "told", 1.0)}
    assert new.ejections(V4, name_of()) == {}
    assert new.weights(V4, name_of()) == {}


def test_settling_drops_the_other_ports_of_the_family_only():
    """The other family's part is its own."""
    book = book_of(name_of(), name_of("svc2"))
    book.register(V6, name_of("svc3"), POLICY, [("fd00::1", 8080)])
    book.hear([checked(False), checked(False, place=("fd00::1", 8080))])
    book.settle(V4, {name_of("svc2")})
    assert book.hear([checked(True, 2.0)]) == {key("svc2")}
    assert book.hear([checked(True, 2.0, place=("fd00::1", 8080))]) == {key("svc3")}
    book.settle(V4, set())
    assert len(book.known()) == 1
