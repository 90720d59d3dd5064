"""The first packet at 1 to 30,000 services, of the first and of the last one; README.md says more.

    python -m pytest bench/bench_first_packet.py [-k nftables]

A daemon stands for each number of services. In each round, in an order that turns: 1,000
connections to the service that is looked up first, to the one that is looked up last, and to the
first once more. Compared is what the last takes beside the first with what the first takes beside
itself. ``KPROXY_BENCH_SERVICES`` names other numbers of services, ``KPROXY_BENCH_ROUNDS`` another
one of rounds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from kproxy.bench import measure, report
from kproxy.bench.load import Kind, Load, Place
from kproxy.bench.many import Many
from kproxy.bench.path import Path
from kproxy.bench.peers import running
from kproxy.bench.rounds import Comparison, Figure, Round, compare, middle, take
from kproxy.bench.standing import Standing, prove, ready
from kproxy.core.objects import Family

_DEFAULT = "1,1000,10000,30000"
SIZES = [int(size) for size in os.environ.get("KPROXY_BENCH_SERVICES", _DEFAULT).split(",")]
ROUNDS = int(os.environ.get("KPROXY_BENCH_ROUNDS", "11"))

#: A reset leaves nothing behind that the next connection would have to pass by.
LOAD = Load(Kind.CRR, connections=1, operations=1000, seconds=30.0, closer="reset")

FIRST, LAST, AGAIN = "first", "last", "first again"

#: One place of one of the daemons.
Spot = tuple[Standing, Place]


@pytest.mark.parametrize("mode", ["nftables", "iptables-nft", "iptables-legacy"])
def bench_first_packet(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Median of connect(2), one connection after the other."""
    with ExitStack() as stack:
        spots = dict(_spots(stack, mode))
        rounds = take(lambda name: _taken(*spots[name]), list(spots), rounds=ROUNDS)
    report.save(
        f"first-packet-{mode}",
        {
            "fingerprint": report.fingerprint(),
            "seconds": [{who: one.value for who, one in each.items()} for each in rounds],
        },
    )
    rows = list(_rows(mode, rounds))
    with capsys.disabled():
        sys.stdout.write("".join(f"\n{row}" for row in rows) + "\n")
    assert not any(one.failures for each in rounds for one in each.values())


def _name(size: int, where: str) -> str:
    return f"{where} of {size}"


def _spots(stack: ExitStack, mode: str) -> Iterator[tuple[str, Spot]]:
    """Daemons stand until the stack ends."""
    for size in SIZES:
        subject = Many(mode, size)
        path = stack.enter_context(Path(clients=1))
        stack.enter_context(running(subject, path))
        standing = ready(Standing(path, subject))
        prove(standing, subject.last())
        first = subject.place(Family.IPV4)
        for where, place in ((FIRST, first), (LAST, subject.last()), (AGAIN, first)):
            yield _name(size, where), (standing, place)


def _taken(standing: Standing, place: Place) -> Figure:
    result = measure.on(*standing, LOAD, place=place).result
    standing.path.forget()
    return Figure(result.connect.percentile(50), result.started, result.failed)


def _rows(mode: str, rounds: Sequence[Round]) -> Iterator[str]:
    yield f"first packet, {mode}: median of {LOAD.operations:,} connections, {len(rounds)} rounds"
    for size in SIZES:
        beside = {
            where: compare(rounds, _name(size, where), _name(size, FIRST))
            for where in (LAST, AGAIN)
        }
        micro = {where: 1e6 * middle(rounds, _name(size, where)) for where in (FIRST, LAST)}
        yield (
            f"  {size:7,} services: first {micro[FIRST]:6.1f} us, last {micro[LAST]:6.1f} us; "
            f"last to first {_interval(beside[LAST])}, first to first {_interval(beside[AGAIN])}: "
            f"{'flat' if overlap(beside[LAST], beside[AGAIN]) else 'NOT flat'}"
        )
    for where in (FIRST, LAST):
        names = [_name(size, where) for size in (SIZES[0], SIZES[-1])]
        yield f"  {where} of {SIZES[-1]:,} to {where} of {SIZES[0]:,}: " + _interval(
            compare(rounds, names[1], names[0])
        )


def _interval(found: Comparison) -> str:
    return f"{found.ratio:.3f} [{found.low:.3f}, {found.high:.3f}]"


def overlap(one: Comparison, other: Comparison) -> bool:
    """Whether two intervals have anything in common."""
    return one.low <= other.high and other.low <= one.high
