"""A node's proxy without a kernel: objects and observations in, plans out, as one sync does it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kproxy.core.events import Delta, Ref
from kproxy.core.health.book import Book
from kproxy.core.health.values import Check, Observation, Pace, Policy, Tcp
from kproxy.core.objects import Family, ObjectKey
from kproxy.core.planner import Planner
from kproxy.core.snapshot import Snapshot
from kproxy.core.tracker import Changes, Tracker
from tests.factories import make_settings

#: Quick, and sure of itself at once where nothing is said. Who is dead in tests refuses at once: a
#: time-out would only be that of a busy machine.
PACE = Pace(interval=0.05, timeout=30.0, rise=1, fall=1, fast_interval=0.02)
TCP = Policy(check=Check(Tcp(), PACE))


class Plans:
    """Both families of one node."""

    def __init__(self, *objects: Any) -> None:
        self.book = Book()
        self._tracker = Tracker()
        self._planners = [Planner(family) for family in Family]
        self.now: list[Snapshot] = []
        self.sync(objects)

    def sync(
        self,
        upserted: Iterable[Any] = (),
        *,
        deleted: Iterable[Ref] = (),
        observations: Iterable[Observation] = (),
    ) -> list[Snapshot]:
        """Take in what is new; the plans that are in force then."""
        self._tracker.apply(Delta(tuple(upserted), tuple(deleted)))
        judged: set[ObjectKey] = self.book.hear(observations)
        found = self._tracker.take()
        changes = Changes(found.services | judged, found.nodes, found.counts)
        self.now = [
            planner.plan(self._tracker, make_settings(), changes, self.book)
            for planner in self._planners
        ]
        return self.now

    def used(self) -> set[str]:
        """Every endpoint that some rule may choose, ``address:port``."""
        return {
            str(endpoint)
            for plan in self.now
            for port in plan.ports.values()
            for endpoint in port.endpoints.all
        }
