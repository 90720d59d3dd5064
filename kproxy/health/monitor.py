"""What the daemon tells about itself while it works, and what servers ask.

The event loop's thread calls everything here; each call is short. The metrics library is loaded
when the servers start, which is after the first sync: until then what is to be counted waits in a
list.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from kproxy.core.health_state import PERIODS, FamilyHealth, Verdict, judge
from kproxy.core.objects import Family
from kproxy.core.snapshot import Snapshot
from kproxy.core.tracker import Counts
from kproxy.family import SyncRecord

if TYPE_CHECKING:
    from kproxy.backends.fastpath.figures import EngineFigures
    from kproxy.backends.userspace.estate import Figures
    from kproxy.health.checks.rounds import Figures as CheckFigures
    from kproxy.health.journal import Event
    from kproxy.metrics import Metrics


class Watched(Protocol):
    """Where values come from that are looked at only when somebody asks."""

    @property
    def mode(self) -> str:
        """The mode that the rules are of."""

    @property
    def pending(self) -> Counts:
        """Changes that no sync has taken in."""

    @property
    def seen(self) -> Counts:
        """All changes ever taken in."""

    @property
    def refused(self) -> int:
        """Objects and members that are left out."""

    @property
    def plans(self) -> Iterable[tuple[Snapshot, Any]]:
        """What is in force: the plan of each family, and what the mode made of it."""

    @property
    def relays(self) -> Iterable[Figures]:
        """What the relay of each family has counted, by endpoint too, in modes that have one."""

    @property
    def engines(self) -> Iterable[EngineFigures]:
        """The same of packet engines."""

    @property
    def checks(self) -> CheckFigures | None:
        """What active checks of endpoints have done; None: there was none."""


class Monitor:
    """Health of one proxy, and its metrics once they are loaded.

    ``counting``: somebody may ask for metrics, so events are to be kept.
    """

    def __init__(
        self,
        sync_period: float,
        *,
        counting: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.eligible = True
        self._counting = counting
        self._timeout = PERIODS * sync_period
        self._clock = clock
        self._families: dict[Family, FamilyHealth] = {}
        self._waiting: list[tuple[str, tuple[Any, ...]]] = []
        self._metrics: Metrics | None = None

    def serves(self, families: Iterable[Family]) -> None:
        """These are the families on which the health depends."""
        self._families = dict.fromkeys(families, FamilyHealth())

    def asked(self) -> None:
        """A sync was asked for."""
        now = self._clock()
        self._families = {name: state.asked(now) for name, state in self._families.items()}
        for family in self._families:
            self._count("asked", family, time.time())

    def began(self) -> None:
        """A sync starts."""
        now = self._clock()
        self._families = {name: state.began(now) for name, state in self._families.items()}

    def ended(self, records: Iterable[SyncRecord]) -> None:
        """A sync ended, in every family."""
        now = self._clock()
        for record in records:
            state = self._families.get(record.family, FamilyHealth())
            self._families[record.family] = state.ended(now, ok=record.ok)
            self._count("synced", record)

    def reconciled(self, family: Family, seconds: float, deleted: int) -> None:
        """Stale flows of a family were looked for, and ``deleted`` of them removed."""
        self._count("reconciled", family, seconds, deleted)

    def turned(self, event: Event) -> None:
        """The verdict on an endpoint, or on all of a service port, has changed."""
        self._count("turned", event)

    def answered(self, path: str, status: int) -> None:
        """The health server answered."""
        self._count("answered", path, status)

    def verdict(self) -> Verdict:
        """The health now; ``updated`` in seconds since the epoch."""
        now, wall = self._clock(), time.time()
        found = judge(self._families, now, self._timeout, eligible=self.eligible)

        def shown(moment: float | None) -> float | None:
            return None if moment is None else wall - (now - moment)

        return Verdict(
            found.healthy,
            shown(found.updated),
            found.eligible,
            tuple((family, fine, shown(updated)) for family, fine, updated in found.families),
        )

    def load(self, watched: Watched) -> Metrics:
        """The metrics, with everything counted so far. The first time it imports the library."""
        from kproxy.metrics import Metrics

        self._metrics = Metrics(watched)
        waiting, self._waiting = self._waiting, []
        for name, values in waiting:
            self._count(name, *values)
        return self._metrics

    def _count(self, name: str, *values: Any) -> None:
        if not self._counting:
            return
        if self._metrics is None:
            self._waiting.append((name, values))
        else:
            getattr(self._metrics, name)(*values)
