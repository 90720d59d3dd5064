"""The measurement of fail-over, with real daemons: what is lost is seen, and nothing else is."""

from __future__ import annotations

import pytest

from kproxy.bench.failover import failover, rolling

pytestmark = pytest.mark.kernel

#: A second, so that a busy machine can do it.
RATE = 100.0


@pytest.mark.parametrize("mode", ["iptables-nft", "userspace", "fastpath"])
def test_rolling_replacement_loses_nothing(mode: str) -> None:
    """A ready pod comes, the old one drains and ends: no request notices."""
    rolled = rolling(mode, rate=RATE, pods=1, load_seconds=8)
    assert rolled.started == 800
    assert rolled.failures == {}


@pytest.mark.parametrize("fault", ["kill", "refuse"])
def test_refusals_are_seen_where_nobody_tries_again(fault: str) -> None:
    """The kernel sends a quarter of the connections to the backend that is gone, until the check
    has said so; and only refusals come of it."""
    row = failover("iptables-nft", fault, rate=RATE)
    assert row.kind == "down"
    assert 0 < row.failed <= row.started / 2
    assert set(row.kinds) == {"refused"}


@pytest.mark.parametrize("mode", ["userspace", "fastpath"])
@pytest.mark.parametrize("fault", ["kill", "refuse", "vanish"])
def test_another_backend_takes_what_one_refuses(mode: str, fault: str) -> None:
    """Whoever comes after the fault is served."""
    row = failover(mode, fault, rate=RATE)
    assert row.kinds == {}
    assert row.failed == 0
