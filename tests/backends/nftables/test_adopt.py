"""A new process leaves endpoints in the slots in which it finds them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from kproxy.backends.nftables.adopt import adopted
from kproxy.backends.nftables.elements import KINDS, Record, unpack
from kproxy.backends.nftables.held import Held, diff, settled
from kproxy.backends.nftables.plan import CHOICE_ANNOTATION
from kproxy.backends.nftables.render import Desired, render
from kproxy.core.objects import Family
from kproxy.core.policy import Use
from tests.backends.iptables.plans import port, snapshot, successor
from tests.backends.nftables.changes import Kernel, changes

V4 = Family.IPV4


def found(desired: Desired, **elements: set[Record]) -> Held:
    """What another process reads."""
    there = {**desired.elements(), **elements}
    return Held(chains=desired.chains, elements=there, family=desired.frame.family)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", Family)
def test_nothing_is_written_after_a_restart(family: Family, seed: int) -> None:
    """After any changes; and what follows is a change like any other."""
    previous = None
    for now in changes(family, 100 + seed, 40):
        desired = render(now, previous)
        fresh = adopted(render(now, None), found(desired))
        assert diff(fresh, found(desired)) is None
        assert fresh.elements() == desired.elements()
        assert fresh.own == desired.own
        previous = fresh


@pytest.mark.parametrize("affinity", [None, 60])
def test_what_others_spoiled_is_mended(affinity: int | None) -> None:
    """Somebody took a slot away and gave another one to a stranger: the rest stays."""
    plan = port(pods=3, affinity=affinity)
    first = render(snapshot(port(pods=2, affinity=affinity)), None)
    moved = replace(plan.endpoints, cluster=plan.endpoints.all[1:], all=plan.endpoints.all[1:])
    # 3, 2: the third came for the first.
    second = render(successor(first.snapshot, replace(plan, endpoints=moved)), first)
    desired = render(successor(second.snapshot, plan), second)
    name = "ids" if affinity else "endpoints"
    slots = {unpack(KINDS[name], record, V4).key[-1]: record for record in desired.elements()[name]}
    kernel = Kernel()
    kernel.take(diff(desired, Held(table=False)))  # type: ignore[arg-type]
    spoiled = found(desired, **{name: {slots[0], slots[2]}})
    key = next(key for key, record in kernel.elements[name].items() if record == slots[1])
    del kernel.elements[name][key]
    fresh = adopted(render(desired.snapshot, None), spoiled)
    patch = diff(fresh, spoiled)
    assert patch is not None
    kernel.take(patch)
    assert kernel.held(V4) == settled(fresh)
    assert slots[0] in fresh.elements()[name]


def test_where_the_client_decides_all_nodes_choose_alike() -> None:
    """Endpoints are in the order of the plan, whatever was before, in the kernel too."""
    asks = replace(port(pods=3), annotations=((CHOICE_ANNOTATION, "hash"),))
    first = render(snapshot(replace(asks, endpoints=port(pods=1).endpoints)), None)
    ends = port(pods=3).endpoints.all[1:]
    fewer = replace(asks.endpoints, cluster=ends, all=ends)
    second = render(successor(first.snapshot, replace(asks, endpoints=fewer)), first)
    third = render(successor(second.snapshot, asks), second)
    assert third.elements() == render(snapshot(asks), None).elements()
    assert third.blocks[asks.name].seats == {}
    random = render(successor(third.snapshot, replace(asks, annotations=())), third)
    assert Use.CLUSTER not in random.blocks[asks.name].seats


def test_nothing_is_adopted_from_nothing() -> None:
    """Without a table, and from one that is known to be ours."""
    desired = render(snapshot(port(pods=3)), None)
    assert adopted(desired, Held(table=False)) is desired
    assert adopted(desired, settled(desired)) is desired
    assert adopted(desired, found(desired)) is desired
