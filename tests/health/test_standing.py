"""How endpoints stand, as the status tells it."""

from __future__ import annotations

import msgspec

from kproxy.core.health.values import Checked, Ejected, Passive, Policy, Ramped, target_of
from kproxy.core.objects import PortName, Protocol
from kproxy.health.standing import EndpointStanding, PortStanding, Standings, State
from tests.factories import make_service, make_slice
from tests.health.plans import TCP, Plans

NAME = PortName("ns1", "svc1", "http", Protocol.TCP)
POLICY = Policy(TCP.check, Passive(), slow_start=10.0)


def plans() -> Plans:
    made = Plans(
        make_service(health=POLICY, ip=("172.30.0.41", "fd00:30::41")),
        make_slice("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"),
        make_slice("fd00:10::1", name="six"),
        make_service("bare", ip="172.30.0.42"),
    )
    assert POLICY.check is not None
    made.sync(
        observations=[
            Checked(target_of(POLICY.check, "10.0.0.2", 8080), False, "refused", 5.0),
            Ejected(NAME, "10.0.0.3", 8080, True, "3 resets", 6.0),
            Checked(target_of(POLICY.check, "10.0.0.4", 8080), False, "refused", 5.0),
            Checked(target_of(POLICY.check, "10.0.0.4", 8080), True, "connected", 7.0),
            Ramped(NAME, "10.0.0.4", 8080, 40, 8.0),
        ]
    )
    return made


def test_what_is_not_plainly_up_is_told() -> None:
    """By family; ports without a policy are not there."""
    four, six = Standings().of(plans().now)
    assert four == PortStanding(
        name="ns1/svc1:http",
        protocol="TCP",
        family=4,
        up=2,
        of=4,
        endpoints=(
            EndpointStanding("10.0.0.2:8080", State.DOWN, "refused", 5.0, 0),
            EndpointStanding("10.0.0.3:8080", State.EJECTED, "3 resets", 6.0, 0),
            EndpointStanding("10.0.0.4:8080", State.STARTING, "connected", 7.0, 40),
        ),
    )
    assert (six.family, six.up, six.of, six.endpoints) == (6, 1, 1, ())
    assert msgspec.json.decode(msgspec.json.encode(four), type=PortStanding) == four


def test_what_has_not_changed_is_kept() -> None:
    """A status is written after every sync: the work follows what differs."""
    made, standings = plans(), Standings()
    first = standings.of(made.now)
    made.sync([make_slice("fd00:10::1", "fd00:10::2", name="six")])
    again = standings.of(made.now)
    assert again[0] is first[0]
    assert (again[1].up, again[1].of) == (2, 2)
    made.sync([make_service(ip=("172.30.0.41", "fd00:30::41"))])
    assert standings.of(made.now) == ()
