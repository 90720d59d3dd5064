"""Endpoints that start slowly have a smaller chance in iptables' rules."""

from __future__ import annotations

import pytest

from kproxy.backends.iptables.render import render
from kproxy.backends.iptables.service import chances
from kproxy.core.snapshot import Endpoint
from tests.backends.iptables.plans import LOCAL, context, port, snapshot, successor, weighed

#: Weights -> the digits that the save tool prints for each but the last.
CHANCES = [
    ((), []),
    ((100,), [""]),
    ((5,), [""]),
    ((100, 100), ["0.50000000000", ""]),
    ((100, 100, 100), ["0.33333333349", "0.50000000000", ""]),
    ((30, 30, 30), ["0.33333333349", "0.50000000000", ""]),
    ((100, 25), ["0.79999999981", ""]),
    ((25, 100), ["0.20000000019", ""]),
    ((50, 100, 100), ["0.20000000019", "0.50000000000", ""]),
    ((100, 100, 50), ["0.39999999991", "0.66666666651", ""]),
]


@pytest.mark.parametrize(("weights", "wanted"), CHANCES)
def test_chances(weights: tuple[int, ...], wanted: list[str]) -> None:
    """Its part of the weights that are left; the last one takes what falls through."""
    ends = [Endpoint(f"10.180.0.{at}", 80, weight=weight) for at, weight in enumerate(weights)]
    assert chances(ends) == wanted


def test_equal_weights_change_nothing() -> None:
    """Whatever they are, the text is that of full weights."""
    plan, its = port(ways="cnel", external=LOCAL, pods=3, affinity=60), context()
    full, slow = (
        render(snapshot(each), its, None).blocks[plan.name]
        for each in (plan, weighed(plan, 5, 5, 5))
    )
    assert full.chains == slow.chains
    assert full.dispatch == slow.dispatch


def test_only_the_choice_is_rewritten() -> None:
    """Of a service port whose weights changed: endpoints' chains and the dispatch stay."""
    plan, its = port(ways="cn", pods=3), context()
    before = render(snapshot(plan), its, None)
    slow = weighed(plan, 100, 100, 10)
    after = render(successor(before.snapshot, slow), its, before)
    old, new = before.blocks[plan.name].chains, after.blocks[plan.name].chains
    assert [chain for chain in old if old[chain] != new[chain]] == [
        after.blocks[plan.name].names.cluster
    ]
    assert after.dispatch is before.dispatch
