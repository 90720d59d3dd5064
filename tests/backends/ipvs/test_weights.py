"""Endpoints that start slowly have a smaller weight among IPVS's real servers."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from kproxy.backends.ipvs import text
from kproxy.backends.ipvs.diff import diff
from kproxy.backends.ipvs.fixed import Context
from kproxy.backends.ipvs.held import Held, settled
from kproxy.backends.ipvs.plan import UNWEIGHTED, WEIGHTED, server_key, weights_of
from kproxy.backends.ipvs.render import Desired, render
from kproxy.core.health.values import Policy
from kproxy.core.health.verdict import PortHealth
from kproxy.core.servers import (
    SCHEDULER_ANNOTATION,
    SCHEDULERS,
    HeldReal,
    Order,
    Verb,
)
from kproxy.core.snapshot import Endpoint, PortPlan, Snapshot
from tests.backends.iptables.plans import V4, port, settings, snapshot, successor, weighed

KERNEL = (6, 1)
ONE, TWO, THREE = (bytes((10, 180, 0, last)) + b"\0\x50" for last in (1, 2, 3))

#: (scheduler, weights of endpoints) -> weights of real servers, () for 1 each.
WEIGHTS = [
    ("wrr", (100, 100, 100), ()),
    ("wrr", (30, 30), ()),
    ("wrr", (), ()),
    ("wrr", (5,), ()),
    ("wrr", (100, 5), (20, 1)),
    ("wrr", (100, 50), (20, 10)),
    ("wlc", (100, 7, 1), (100, 7, 1)),
    ("mh", (100, 60, 100), (20, 12, 20)),
    ("sh", (100, 10, 100), (20, 2, 20)),
    ("sh", (100,) * 13 + (10,), ()),
    ("rr", (100, 5), ()),
    ("fo", (100, 5), ()),
    ("ovf", (100, 5), ()),
]


@pytest.mark.parametrize(("scheduler", "weights", "wanted"), WEIGHTS)
def test_weights(scheduler: str, weights: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Shares, where the scheduler takes a weight for one, and has room for all."""
    ends = [Endpoint(f"10.180.0.{at}", 80, weight=weight) for at, weight in enumerate(weights)]
    assert weights_of(ends, scheduler) == wanted


def test_full_weights_stay_while_others_grow() -> None:
    """In every step of a slow start, so that a step edits one real server."""
    steps = [5, *range(10, 100, 10)]
    assert {weights_of([Endpoint("a", 1), Endpoint("b", 1, weight=step)], "wrr")[0]
            for step in steps} == {20}  # fmt: skip


def test_every_scheduler_is_known() -> None:
    """One that looks at no weight, or at another thing by that name, has none."""
    assert UNWEIGHTED.issubset(SCHEDULERS)
    assert UNWEIGHTED.issuperset(WEIGHTED)
    assert UNWEIGHTED.isdisjoint(WEIGHTED.values())


def slowly(plan: PortPlan, *weights: int, after: Snapshot | None = None) -> Snapshot:
    """The plan with weights, of a service that asks for slow start."""
    made = weighed(plan, *weights)
    if after is not None:
        found = successor(after, made)
    else:
        found = snapshot(made, settings_=settings(local_addresses=("192.168.0.2",)))
    return replace(found, health={plan.name: PortHealth(Policy(slow_start=30.0), ())})


def whole(wanted: Snapshot, previous: Desired | None = None) -> Desired:
    return render(wanted, Context(V4, wanted.settings), KERNEL, previous)


def key_of(plan: PortPlan) -> bytes:
    return server_key(plan.cluster_ip, plan.port, plan.protocol)


@pytest.mark.parametrize(
    ("own", "used"), [("", "wrr"), ("rr", "wrr"), ("lc", "wlc"), ("sh", "sh"), ("fo", "fo")]
)
def test_scheduler(own: str, used: str) -> None:
    """With slow start that which looks at weights, from the first moment and for good: while the
    kernel changes it, it turns new connections away."""
    plan = port(pods=2)
    if own:
        plan = replace(plan, annotations=((SCHEDULER_ANNOTATION, own),))
    for weights in ((100, 100), (100, 5)):
        virtual, _ = whole(slowly(plan, *weights)).servers[key_of(plan)]
        assert (virtual.scheduling.scheduler, virtual.scheduling.timeout) == (used, 0)


#: Weights before and after -> what is edited.
STEPS = [
    ((100, 100, 100), (100, 100, 5), {ONE: 20, TWO: 20}),
    ((100, 100, 5), (100, 100, 10), {THREE: 2}),
    ((100, 100, 90), (100, 100, 100), {ONE: 1, TWO: 1, THREE: 1}),
    ((100, 5, 10), (100, 10, 20), {TWO: 2, THREE: 4}),
    ((100, 100, 10), (100, 100, 10), {}),
]


@pytest.mark.parametrize(("before", "after", "edited"), STEPS)
@pytest.mark.parametrize("known", ["believed", "read"])
def test_a_step_edits_weights_only(
    before: tuple[int, ...], after: tuple[int, ...], edited: dict[bytes, int], known: str
) -> None:
    """Of those real servers whose weight differs, and nothing else is touched."""
    plan = port(ways="cn", pods=3)
    old = whole(slowly(plan, *before))
    new = whole(slowly(plan, *after, after=old.snapshot), old)
    patch = diff(new, settled(old) if known == "believed" else read(old))
    if not edited:
        assert patch is None
        return
    assert patch is not None
    servers = new.blocks[plan.name].servers
    assert len(servers) == 2
    assert set(patch.orders) == {
        Order(Verb.SET_REAL, server, real, weight)
        for server in servers
        for real, weight in edited.items()
    }
    assert not any((patch.sets, patch.rules, patch.let_go, patch.removals, patch.bound))


def read(desired: Desired) -> Held:
    """What a kernel that is as it should be gives."""
    held = settled(desired)
    return Held(
        servers=held.servers,
        sets={name: set(members) for name, members in held.sets.items() if members is not None},
        addresses=set(held.addresses or ()),
        rules=held.rules,
        sysctls=dict(desired.sysctls),
        timeouts=None,
    )


def test_one_that_comes_slowly() -> None:
    """It is added with its weight, the others get theirs."""
    plan = port(pods=2)
    old = whole(slowly(plan, 100, 100))
    new = whole(slowly(port(pods=3), 100, 100, 5, after=old.snapshot), old)
    patch = diff(new, settled(old))
    assert patch is not None
    key = key_of(plan)
    assert list(patch.orders) == [
        Order(Verb.ADD_REAL, key, THREE, 1),
        Order(Verb.SET_REAL, key, ONE, 20),
        Order(Verb.SET_REAL, key, TWO, 20),
    ]


def test_a_weight_that_somebody_changed() -> None:
    """It is put right, and one that drains is no longer quiet when it is wanted."""
    plan = port(pods=2)
    desired = whole(slowly(plan, 100, 5))
    held = read(desired)
    key = key_of(plan)
    server = held.servers[key]
    found = replace(server, reals={ONE: HeldReal(7), TWO: HeldReal(0)})
    patch = diff(desired, Held(servers={key: found}, desired=None))
    assert patch is not None
    edits = [order for order in patch.orders if order.verb is Verb.SET_REAL]
    assert edits == [Order(Verb.SET_REAL, key, ONE, 20), Order(Verb.SET_REAL, key, TWO, 1)]


def test_text() -> None:
    """As ipvsadm saves it."""
    plan = port(pods=2)
    lines = list(text.servers(whole(slowly(plan, 100, 5))))
    assert lines == [
        "-A -t 172.30.0.41:80 -s wrr\n",
        "-a -t 172.30.0.41:80 -r 10.180.0.1:80 -m -w 20\n",
        "-a -t 172.30.0.41:80 -r 10.180.0.2:80 -m -w 1\n",
    ]
