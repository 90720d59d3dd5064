"""What active checks cost; README.md says how to read the figures.

    python -m pytest bench/bench_checks.py -s

A node and a pod, two namespaces joined by a veth pair. Every address of a /16 is the pod's own, so
one listener answers for all endpoints; those of another /16 swallow what is sent to them. What is
measured is the checker's process: user and system time, which holds nearly all of the network's
work for both sides, since a packet over veth is delivered in its sender's system call.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterator

import pytest

from bench.checks_agent import Side
from kproxy.bench import usage
from kproxy.lab.network import (
    BASE_SYSCTLS,
    FORWARDING_SYSCTLS,
    Address,
    End,
    Host,
    Link,
    Network,
    Route,
    RouteKind,
)
from tests.lab.wired import wired

PORT = 8080
INTERVAL = 2.0
WARM, MEASURED = 5.0, 10.0

#: Share of a core, user plus system, that 5,000 TCP checks every 2 s may take.
BAR = 0.6

#: kind, targets, how many of them never answer, bar.
ROWS = [
    ("tcp", 5000, 0, BAR),
    ("tcp", 5000, 500, BAR),
    ("http", 1000, 0, None),
    ("http", 1000, 100, None),
    ("http", 5000, 0, None),
]


#: The pod's own, and where what is sent is swallowed.
_LIVE, _DEAD = "10.96.{}.{}", "10.97.{}.{}"


@pytest.fixture
def namespaces() -> Iterator[tuple[int, int]]:
    """Descriptors of node and pod."""
    network = Network(
        f"k{secrets.token_hex(3)}",
        (
            Host(
                "node",
                (Address("eth0", "10.77.0.1/24"),),
                (Route("10.96.0.0/15", "eth0", via="10.77.0.2"),),
                BASE_SYSCTLS,
            ),
            Host(
                "pod",
                (Address("eth0", "10.77.0.2/24"),),
                (
                    Route("10.96.0.0/16", "lo", kind=RouteKind.LOCAL),
                    Route("10.97.0.0/16", kind=RouteKind.BLACKHOLE),
                ),
                FORWARDING_SYSCTLS,
            ),
        ),
        (Link(End("node", "eth0"), End("pod", "eth0")),),
    )
    with wired(network) as builder:
        yield builder.fd("node"), builder.fd("pod")


@pytest.mark.parametrize(("kind", "targets", "silent", "bar"), ROWS)
def bench_checks(
    namespaces: tuple[int, int],
    kind: str,
    targets: int,
    silent: int,
    bar: float | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """CPU of the process that checks ``targets`` every 2 s, of which some never answer."""
    node, pod = namespaces
    with Side(pod) as answering, Side(node) as checking:
        answering.serve(PORT)
        checking.check(kind, PORT, _addresses(targets, silent), INTERVAL)
        time.sleep(WARM)
        before, cpu, begun = checking.figures(kind), checking.cpu(), time.monotonic()
        time.sleep(MEASURED)
        after, spent = checking.figures(kind), checking.cpu() - cpu
        seconds = time.monotonic() - begun
        memory = usage.memory([checking.pid])
    good, failed = after.good - before.good, after.failed - before.failed
    share = spent / seconds
    with capsys.disabled():
        sys.stdout.write(
            f"\n{targets} {kind}, {silent} silent: {share * 100:.0f} % of a core,"
            f" {spent / (good + failed) * 1e6:.0f} us each; a second: {good / seconds:.0f} good,"
            f" {failed / seconds:.0f} failed; waiting {after.waiting};"
            f" {memory.rss / 1e6:.0f} MB\n"
        )
    assert after.own == 0
    if bar is not None:
        assert good / seconds > (targets - silent) / INTERVAL * 0.95
        assert failed / seconds >= silent / INTERVAL * 0.9
        assert share < bar


def _addresses(targets: int, silent: int) -> list[str]:
    return [
        (_DEAD if number < silent else _LIVE).format(number // 250, number % 250 + 1)
        for number in range(targets)
    ]
