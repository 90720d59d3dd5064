"""The measurement of fail-over, with real daemons: what is lost is seen, and nothing else is."""

from __future__ import annotations

import pytest

from kproxy.bench import failover as measurement
from kproxy.bench.failover import Row, failover, rolling
from kproxy.errors import CheckFailed

pytestmark = pytest.mark.kernel

#: A second, so that a busy machine can do it.
RATE = 100.0


@pytest.mark.parametrize("mode", ["iptables-nft", "userspace", "fastpath"])
def test_rolling_replacement_loses_nothing(mode: str) -> None:
    """A ready pod comes, the old one drains and ends: no request notices."""
    # Under load all the time: a slow machine needs more of it.
    for seconds in (8, 24, 72):
        try:
            rolled = rolling(mode, rate=RATE, pods=1, load_seconds=seconds)
        except CheckFailed as failed:
            if "longer than there was load" not in str(failed) or seconds == 72:
                raise
        else:
            break
    assert rolled.started == RATE * seconds
    assert rolled.failures == {}


def failed_over(mode: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> Row:
    """What is seen of a fault; on a machine on which the checks are slow, for longer."""
    for after in (measurement.AFTER, 20.0):
        monkeypatch.setattr(measurement, "AFTER", after)
        try:
            return failover(mode, fault, rate=RATE)
        except CheckFailed as failed:
            if "no event says so" not in str(failed):
                raise
    return pytest.fail(f"{fault} is not noticed within {after:g} s")


@pytest.mark.parametrize("fault", ["kill", "refuse"])
def test_refusals_are_seen_where_nobody_tries_again(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel sends a quarter of the connections to the backend that is gone, until the check
    has said so; and only refusals come of it."""
    row = failed_over("iptables-nft", fault, monkeypatch)
    assert row.kind == "down"
    assert 0 < row.failed <= row.started / 2
    assert set(row.kinds) == {"refused"}


@pytest.mark.parametrize("mode", ["userspace", "fastpath"])
@pytest.mark.parametrize("fault", ["kill", "refuse", "vanish"])
def test_another_backend_takes_what_one_refuses(
    mode: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes after the fault is served."""
    row = failed_over(mode, fault, monkeypatch)
    assert row.kinds == {}
    assert row.failed == 0
