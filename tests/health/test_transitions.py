"""What is told of a verdict that has changed."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.core.health.values import Policy
from kproxy.core.health.verdict import Cause, Judged, PortHealth
from kproxy.core.objects import Family, PortName, Protocol
from kproxy.core.snapshot import Endpoint
from kproxy.health.journal import Event, Kind
from kproxy.health.transitions import events_between

NAME = PortName("ns1", "web", "http", Protocol.TCP)
UP, ASSUMED = (True, Cause.CHECK, "connected"), (True, Cause.ASSUMED, "not checked yet")
DOWN, UNKNOWN = (False, Cause.CHECK, "refused"), (False, Cause.ASSUMED, "not checked yet")
OUT, FREE = (False, Cause.PASSIVE, "3 resets"), (True, Cause.NONE, "")


def health(*endpoints: tuple[bool, Cause, str], panic: bool = False) -> PortHealth:
    """Endpoints 10.0.0.0, 10.0.0.1 and so on, with these verdicts."""
    judged = [
        Judged(Endpoint(f"10.0.0.{number}", 80), up, cause, reason, 7.0)
        for number, (up, cause, reason) in enumerate(endpoints)
    ]
    return PortHealth(Policy(), tuple(judged), panic)


def events(before: PortHealth | None, after: PortHealth | None) -> list[Event]:
    return list(events_between(NAME, Family.IPV4, before, after, node="n1", now=9.0))


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (UP, UP, None),
        (ASSUMED, UP, None),
        (ASSUMED, DOWN, (Kind.DOWN, "refused")),
        (UP, DOWN, (Kind.DOWN, "refused")),
        (UNKNOWN, DOWN, (Kind.DOWN, "refused")),
        (UNKNOWN, UP, (Kind.UP, "connected")),
        (DOWN, UP, (Kind.UP, "connected")),
        (DOWN, DOWN, None),
        (UP, OUT, (Kind.EJECTED, "3 resets")),
        (OUT, UP, (Kind.READMITTED, "connected")),
        (OUT, FREE, (Kind.READMITTED, "let in again")),
        (OUT, DOWN, None),
    ],
)
def test_one_endpoint(before: Any, after: Any, told: tuple[Kind, str] | None) -> None:
    """A change of its verdict is one event with the reason; nothing else is any."""
    found = [(each.kind, each.reason) for each in events(health(before), health(after))]
    assert found == ([told] if told else [])


def test_an_event_says_who_and_when() -> None:
    """The moment is that of the opinion, whenever the sync was."""
    (event,) = events(health(UP), health(DOWN))
    assert (event.node, event.family, event.service, event.port) == ("n1", 4, "ns1/web", "http")
    assert (event.endpoint, event.time.timestamp()) == ("10.0.0.0:80", 7.0)


@pytest.mark.parametrize(
    ("before", "after", "kinds"),
    [
        (health(UP, UP), health(DOWN, DOWN, panic=True), [Kind.DOWN, Kind.DOWN, Kind.PANIC]),
        (health(DOWN, panic=True), health(UP), [Kind.UP, Kind.CALM]),
        (None, health(DOWN, panic=True), [Kind.PANIC]),
        (None, health(panic=True), []),
        (health(DOWN, panic=True), health(panic=True), []),
        (health(DOWN, panic=True), None, []),
    ],
)
def test_panic_is_an_event(
    before: PortHealth | None, after: PortHealth | None, kinds: list[Kind]
) -> None:
    """Of the service port, after those of its endpoints; without endpoints there is no panic."""
    assert [each.kind for each in events(before, after)] == kinds


def test_what_comes_and_goes_is_no_event() -> None:
    """The cluster said so, and a new service may name an endpoint that is known to be down."""
    assert events(None, health(DOWN, UP)) == []
    assert events(health(UP), health(UP, DOWN)) == []
    assert events(health(UP, DOWN), health(UP)) == []
    assert events(health(UP), None) == []


def test_the_share_is_told() -> None:
    """How many are up, and that all are used."""
    event = events(health(UP, UP), health(UP, DOWN, panic=True))[-1]
    assert (event.endpoint, event.reason) == ("", "1 of 2 endpoints up: all are used")


@pytest.mark.parametrize(("at", "time"), [(7.0, 7.0), (0.0, 9.0), (4e9, 9.0)])
def test_no_event_is_of_the_future(at: float, time: float) -> None:
    """An opinion's moment may be that of a clock which has been put right since."""
    after = PortHealth(Policy(), (Judged(Endpoint("10.0.0.0", 80), False, Cause.CHECK, "x", at),))
    (event,) = events(health(UP), after)
    assert event.time.timestamp() == time
