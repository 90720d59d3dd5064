"""What a step waits for: whether it has come."""

from __future__ import annotations

import pytest

from kproxy.health.standing import EndpointStanding, PortStanding, State
from kproxy.lab.scenario.actions import Health

DOWN = EndpointStanding("10.0.0.1:80", State.DOWN)
EJECTED = EndpointStanding("10.0.0.2:80", State.EJECTED)
STARTING = EndpointStanding("10.0.0.3:80", State.STARTING, weight=10)
V6 = EndpointStanding("[fd00::1]:80", State.DOWN)


def port(name: str, up: int, *endpoints: EndpointStanding, panic: bool = False) -> PortStanding:
    return PortStanding(name, "TCP", 4, up, 3, panic, endpoints)


ONE = (port("a/web:http", 2, DOWN, STARTING),)
TWO = (*ONE, port("a/blog", 3))
EMPTY = PortStanding("a/web:http", "TCP", 6, 0, 0)

WAITS = [
    (Health(out=("10.0.0.1:80",)), ONE, True),
    (Health(out=()), ONE, False),
    (Health(out=("10.0.0.1:80", "10.0.0.2:80")), ONE, False),
    (Health(out=("10.0.0.3:80",)), ONE, False),
    (Health(out=("10.0.0.1:80",), up=2, panic=False), ONE, True),
    (Health(out=("10.0.0.1:80",), up=3), ONE, False),
    (Health(panic=True), ONE, False),
    (Health(up=0, panic=True), (port("a/b", 0, DOWN, panic=True),), True),
    (Health(ejected=("10.0.0.2:80",)), (port("a/b", 1, DOWN, EJECTED),), True),
    (Health(ejected=("10.0.0.1:80",)), (port("a/b", 1, DOWN, EJECTED),), False),
    (Health(ejected=()), ONE, True),
    (Health(out=("[fd00:0::1]:80",)), (port("a/b", 2, V6),), True),
    # Every service port that is judged, or those of the one that is named.
    (Health(out=("10.0.0.1:80",)), TWO, False),
    (Health(out=("10.0.0.1:80",), service="a/web"), TWO, True),
    (Health(out=("10.0.0.1:80",), service="a/web:http"), TWO, True),
    (Health(up=3, service="a/blog"), TWO, True),
    # Nobody is judged (yet), or in that family there is nobody.
    (Health(out=()), (), False),
    (Health(out=(), service="a/none"), TWO, False),
    (Health(out=("10.0.0.1:80",)), (*ONE, EMPTY), True),
]


@pytest.mark.parametrize(("health", "ports", "reached"), WAITS)
def test_what_health_has_come_to(
    health: Health, ports: tuple[PortStanding, ...], reached: bool
) -> None:
    """Exactly the endpoints that are named, in every family that has any."""
    assert health.reached(ports) is reached


def test_it_says_what_it_waits_for() -> None:
    """An error shows what never came."""
    text = str(Health(service="a/b", out=("10.0.0.1:80",), panic=True))
    for word in ("a/b", "10.0.0.1:80", "panic"):
        assert word in text
