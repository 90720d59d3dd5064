"""Who wants which target checked."""

from __future__ import annotations

from kproxy.core.events import Ref
from kproxy.core.health.values import Check, Http, Pace, Policy, Target, Tcp
from kproxy.core.objects import Family
from kproxy.health.roster import Roster
from tests.factories import make_service, make_slice
from tests.health.plans import Plans

POLICY = Policy(check=Check(Tcp()))
CHECK = Check(Tcp())


class Followed:
    """A roster that follows plans."""

    def __init__(self, *objects: object) -> None:
        self.roster, self.plans = Roster(), Plans(*objects)

    def follow(self) -> tuple[set[Target], set[Target]]:
        turns = [
            turn for plan in self.plans.now for turn in self.roster.follow(plan.family, plan.health)
        ]
        added, removed = self.roster.enlist(turns)
        assert len(set(added)) == len(added)
        assert len(set(removed)) == len(removed)
        return set(added), set(removed)


def targets(*addresses: str, check: Check = CHECK, port: int = 8080) -> set[Target]:
    return {Target(check, address, port) for address in addresses}


def test_endpoints_come_and_go() -> None:
    """Each is a target from the plan that has it to the one that has not; twice is no news."""
    followed = Followed(make_service(health=POLICY), make_slice("10.0.0.1", "10.0.0.2"))
    assert followed.follow() == (targets("10.0.0.1", "10.0.0.2"), set())
    assert followed.follow() == (set(), set())
    followed.plans.sync([make_slice("10.0.0.2", "10.0.0.3")])
    assert followed.follow() == (targets("10.0.0.3"), targets("10.0.0.1"))
    followed.plans.sync(deleted=[Ref("Service", make_service().key)])
    assert followed.follow() == (set(), targets("10.0.0.2", "10.0.0.3"))
    assert len(followed.roster) == 0


def test_one_target_for_two_services() -> None:
    """It goes with the last of them, and both are told of by it."""
    services = [
        make_service(name, ip=ip, health=POLICY)
        for name, ip in (("a", "172.30.0.1"), ("b", "172.30.0.2"))
    ]
    slices = [make_slice("10.0.0.1", service=name) for name in ("a", "b")]
    followed = Followed(*services, *slices)
    assert followed.follow() == (targets("10.0.0.1"), set())
    (target,) = targets("10.0.0.1")
    owners = {
        (family, name.name, place) for (family, name), place in followed.roster.owners(target)
    }
    assert owners == {(Family.IPV4, name, ("10.0.0.1", 8080)) for name in ("a", "b")}
    followed.plans.sync(deleted=[Ref("Service", services[0].key)])
    assert followed.follow() == (set(), set())
    followed.plans.sync(deleted=[Ref("Service", services[1].key)])
    assert followed.follow() == (set(), targets("10.0.0.1"))


def test_another_check_is_another_target() -> None:
    """By what it tries, by how often, and by its port."""
    followed = Followed(make_service(health=POLICY), make_slice("10.0.0.1"))
    before = followed.follow()[0]
    for check, port in (
        (Check(Http()), 8080),
        (Check(Http(), Pace(interval=9.0)), 8080),
        (Check(Http(port=9090)), 9090),
    ):
        followed.plans.sync([make_service(health=Policy(check=check))])
        added, removed = followed.follow()
        assert removed == before
        assert {(each.ip, each.port) for each in added} == {("10.0.0.1", port)}
        before = added
    followed.plans.sync([make_service()])
    assert followed.follow() == (set(), before)


def test_what_is_checked_for_an_endpoint() -> None:
    """By service port and place; nothing where there is no check."""
    followed = Followed(make_service(health=POLICY), make_slice("10.0.0.1"))
    followed.follow()
    (name,) = followed.plans.now[0].health
    assert {followed.roster.target(name, "10.0.0.1", 8080)} == targets("10.0.0.1")
    followed.plans.sync([make_service()])
    followed.follow()
    assert followed.roster.target(name, "10.0.0.1", 8080) is None
