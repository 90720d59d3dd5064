"""A window: new connections at a steady rate and some that are held, while something happens.

The load is an open loop (connections come whatever becomes of the earlier ones), so nobody who
would have come is left out of the failures, and the longest time without an answer is one in which
a client would have asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from kproxy.bench.agent import Agent
from kproxy.bench.held import Held, Outcome
from kproxy.bench.load import Kind, Load, Place
from kproxy.core.objects import Value
from kproxy.errors import CheckFailed

#: Seconds of load before and after what happens. A connection is lost when it has no answer after
#: ``PATIENCE``, which is longer than a SYN's first retransmission (1 s): who had to wait for that
#: has not failed, but stands in ``slowest``.
BEFORE, AFTER, PATIENCE = 0.4, 0.6, 2.0

#: Times that a window is made again, longer, when what happened took longer than there was load.
_AGAIN = 2


class Seen(Value, frozen=True):
    """What clients saw of something that took so many ``seconds``: ``failed`` of ``started`` new
    connections; ``gap``: the longest time (seconds) in which none was answered; ``slowest``: the
    longest that one took which was, from when it should have been opened; ``held``: what became of
    the others. ``both``: of a switch, seconds in which the rules of both modes stood."""

    seconds: float
    started: int
    failed: int
    gap: float
    slowest: float
    held: Outcome
    both: float | None = None


class Clients:
    """Where the connections of a window come from and go to: ``client`` runs the load, those that
    are held come from ``namespace`` (descriptor or name)."""

    def __init__(
        self,
        client: Agent,
        namespace: int | str,
        target: Place,
        *,
        sources: Sequence[str] = (),
        rate: float,
        held: int,
    ) -> None:
        self.client = client
        self.namespace = namespace
        self.target = target
        self.sources = sources
        self.rate = rate
        self.held = held


def watched(
    clients: Clients,
    happens: Callable[[], object],
    *,
    within: float,
    prepare: Callable[[], object] = lambda: None,
    opened: Callable[[], object] = lambda: None,
) -> Seen:
    """What clients see of what ``happens``, which takes about ``within`` seconds; where it takes
    longer, all is done again in a longer window, and what the shorter one saw counts as well.
    ``prepare`` comes before each, ``opened`` when the connections that are held are there.
    CheckFailed: it took longer each time, or nobody was answered."""
    before: list[Seen] = []
    for _ in range(1 + _AGAIN):
        prepare()
        seen = _watched(clients, happens, opened, BEFORE + within + AFTER)
        if seen.seconds <= within:
            return _together([*before, seen])
        before.append(seen)
        within = 1.5 * seen.seconds
    raise CheckFailed(f"it took {seen.seconds:.1f} s, longer than there was load, each time")


def _together(windows: Sequence[Seen]) -> Seen:
    """What was seen in all of them; ``seconds`` are those of the last."""
    return Seen(
        seconds=windows[-1].seconds,
        started=sum(each.started for each in windows),
        failed=sum(each.failed for each in windows),
        gap=max(each.gap for each in windows),
        slowest=max(each.slowest for each in windows),
        held=Outcome(
            sum(each.held.connections for each in windows),
            sum(each.held.survived for each in windows),
            max(each.held.silence for each in windows),
        ),
    )


def _watched(
    clients: Clients,
    happens: Callable[[], object],
    opened: Callable[[], object],
    seconds: float,
) -> Seen:
    load = Load(
        Kind.CRR,
        # As many as may wait for PATIENCE, twice.
        connections=int(2 * clients.rate * PATIENCE),
        rate=clients.rate,
        seconds=seconds,
        timeout=PATIENCE,
    )
    with Held(clients.namespace, clients.target, clients.held) as held:
        opened()
        clients.client.begin(load, [clients.target], sources=clients.sources)
        time.sleep(BEFORE)
        begun = time.monotonic()
        try:
            happens()
            took = time.monotonic() - begun
        finally:
            # Also of what has failed: else the next window would hear this one's.
            result = clients.client.result()
        outcome = held.end()
    if not result.completed:
        raise CheckFailed(f"nothing was answered, neither before nor after: {result.failures}")
    return Seen(
        seconds=took,
        started=result.started,
        failed=result.failed,
        gap=result.quiet / 1e9,
        slowest=result.latency.percentile(100.0),
        held=outcome,
    )
