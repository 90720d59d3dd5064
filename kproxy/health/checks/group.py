"""All targets of one kind of probe: their places, their prober, their figures."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kproxy.core.objects import Value
from kproxy.health.checks.gate import Gate
from kproxy.health.checks.outcome import Outcome
from kproxy.health.checks.probers import Kind, simple
from kproxy.health.checks.tasks import TaskProber

if TYPE_CHECKING:
    from kproxy.health.checks.run import Run


class KindFigures(Value, frozen=True):
    """``going`` and ``waiting`` tries now; ``good``, ``failed`` and ``own`` (this node was not able
    to try) ones since the start."""

    name: str
    targets: int
    going: int
    waiting: int
    good: int
    failed: int
    own: int


class Group:
    """``most`` tries at once. It has a ``simple`` prober, or a ``talker`` once that is loaded."""

    def __init__(self, kind: Kind, most: int) -> None:
        self.kind = kind
        self.simple = simple(kind)
        self.talker: TaskProber | None = None
        self.loading: asyncio.Task[None] | None = None
        #: Runs whose turn it is, while the prober is being loaded.
        self.held: dict[Run, None] = {}
        self.gate: Gate[Run] = Gate(most)
        self.targets = self.good = self.failed = self.own = 0

    def count(self, outcome: Outcome) -> None:
        if outcome.good:
            self.good += 1
        elif outcome.own:
            self.own += 1
        else:
            self.failed += 1

    def figures(self) -> KindFigures:
        return KindFigures(
            self.kind.name,
            self.targets,
            len(self.gate),
            self.gate.waiting + len(self.held),
            self.good,
            self.failed,
            self.own,
        )
