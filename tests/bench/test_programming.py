"""Programming measured on this kernel: from nothing to everything, and from a file to a packet."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from kproxy.bench import convergence, programming_agent
from kproxy.bench.measures.programming import BASES, MEASURES, Programming
from kproxy.bench.prober import Prober
from kproxy.bench.results import Point
from kproxy.errors import CheckFailed
from kproxy.kernel import command, netns

pytestmark = pytest.mark.kernel

#: Those of this host's kernel, whatever way they program it.
MODES = ("iptables-nft", "iptables-legacy", "nftables", "userspace", "fastpath")

HERE = ("127.0.0.1", 7100)


@pytest.fixture
def loopback_fd() -> Iterator[int]:
    """A namespace with nothing but its loopback."""
    with netns.fresh():
        command.run(["ip", "link", "set", "lo", "up"])
        made = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    yield made
    os.close(made)


@pytest.mark.parametrize("mode", MODES)
def test_a_sync_is_timed_from_nothing_to_everything(mode: str) -> None:
    """All services are taken, changes are taken one by one, too few services have no burst."""
    took = programming_agent.measured(mode, 20)
    assert took.refused == 0
    assert took.cold > 0
    assert took.one > 0
    assert took.changes >= 2
    assert took.burst is None
    assert took.cost.seconds == took.cold
    assert took.cost.proxy > 0


def test_a_process_that_fails_is_no_figure() -> None:
    """What it said last is the reason."""
    with pytest.raises(CheckFailed, match="no-such-mode"):
        programming_agent.measured("no-such-mode", 20)


def test_the_first_good_answer_is_seen(loopback_fd: int) -> None:
    """Not before somebody answers, and not when it is somebody else."""
    with Prober(loopback_fd) as pods, Prober(loopback_fd) as client:
        client.watch(HERE, HERE[0])
        begun = time.monotonic_ns()
        pods.serve([HERE])
        assert begun < client.seen(20) < time.monotonic_ns()
        client.watch(HERE, "somebody else")
        # A busy machine may have given no answer at the very end of that second.
        for _ in range(20):
            with pytest.raises(CheckFailed, match="no good answer within 1 s: the last") as refused:
                client.seen(1.0)
            if "the last was 127.0.0.1" in str(refused.value):
                break
        assert "the last was 127.0.0.1" in str(refused.value)


def test_a_manifest_converges() -> None:
    """A moved endpoint and a new service are answered, and the daemon's cost is known."""
    took = convergence.measured("nftables", 5)
    assert took.moved > 0
    assert took.new > 0
    assert took.cost.proxy > 0
    assert took.cost.memory > 1e6


def test_the_group_says_who_is_measured_and_where() -> None:
    """The base comes first, those without rules are absent from each measure with a reason, and a
    turn has its points at each size."""
    wanted = ["direct", "nftables", *reversed(BASES)]
    with Programming(wanted, sizes=(5, 7), converging=()) as group:
        assert list(group.subjects) == [BASES[0], "nftables", BASES[1]]
        assert group.base == BASES[0]
        assert [(each.subject, each.measure) for each in group.absent] == [
            ("direct", measure.name) for measure in MEASURES
        ]
        found = group.turn("nftables")
    assert set(found) == {
        Point(measure, services) for measure in ("cold-sync", "one-change") for services in (5, 7)
    }
    assert found[Point("cold-sync", 5)].figure.attempts == 5
    assert found[Point("cold-sync", 5)].cost is not None


def test_without_the_base_nothing_is_compared() -> None:
    """Ratios to somebody who does not take part would be none."""
    assert Programming(["nftables"], sizes=(5,)).base == ""
