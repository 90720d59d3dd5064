"""The daemon's part in the health of endpoints: what it begins with, follows, tells and leaves.

The daemon that holds the state directory does this and no other: a successor begins where the one
before it has stopped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kproxy import logs
from kproxy.backends.base import Finding
from kproxy.core.health.values import Checked, Ejected, Observation
from kproxy.core.snapshot import Snapshot
from kproxy.health.journal import Event, Journal, Kind
from kproxy.health.keeper import Keeper
from kproxy.health.memory import REFRESH, Memory
from kproxy.health.transitions import events_between

if TYPE_CHECKING:
    from kproxy.health.checks.checker import Checker
    from kproxy.health.checks.rounds import Figures

_log = logs.get("health")

#: So many transitions of a kind at a time have a line each; of more, so many are named.
MOST_LINES = 3

#: Seconds that the thread of the checks may be behind without a word. On a busy node it is tenths.
STALLED = 5.0

#: Seconds between two savings of what is known, when there is something new.
SAVING = 1.0

_TOLD: dict[Kind, tuple[Callable[..., None], str]] = {
    Kind.UP: (_log.info, "endpoint is up"),
    Kind.DOWN: (_log.warning, "endpoint is down"),
    Kind.EJECTED: (_log.warning, "endpoint is ejected"),
    Kind.READMITTED: (_log.info, "endpoint is let in again"),
    Kind.PANIC: (_log.warning, "too few endpoints are up"),
    Kind.CALM: (_log.info, "enough endpoints are up again"),
}


class Care:
    """One daemon's. ``observed`` gets what is to be taken into the next sync, ``counted`` every
    transition. ``programs``: checks may run programs on the node."""

    def __init__(
        self,
        node: str,
        observed: Callable[[Sequence[Observation]], None],
        counted: Callable[[Event], None],
        *,
        programs: bool = False,
    ) -> None:
        self._node = node
        self._observed = observed
        self._counted = counted
        self._programs = programs
        self._keeper: Keeper | None = None
        self._journal: Journal | None = None
        self._memory: Memory | None = None
        self._saved = 0
        self._stalled = False
        self._timer: asyncio.TimerHandle | None = None

    def begin(
        self, folder: Path, findings: Callable[[], Collection[Finding]] | None
    ) -> tuple[Checked | Ejected, ...]:
        """In the event loop, before the first sync, as holder of the state directory. What is
        believed from before. ``findings``: see :class:`kproxy.health.keeper.Keeper`."""
        self._memory = Memory(folder)
        self._journal = Journal(folder)
        self._keeper = Keeper(self._observed, self._checker, findings)
        believed = self._memory.recall()
        self._keeper.believe(believed)
        if believed:
            checked = [each for each in believed if isinstance(each, Checked)]
            down = sum(not each.up for each in checked)
            ejected = len(believed) - len(checked)
            _log.info("known from before", checks=len(checked), down=down, ejected=ejected)
        return believed

    def synced(self, plans: Iterable[Snapshot]) -> None:
        """A sync has ended, and these are in force."""
        try:
            self._follow(plans)
        except Exception as fault:  # noqa: BLE001
            # A fault of ours must not end the proxy of a node.
            _log.fault("following endpoints' health broke off", fault)

    def _follow(self, plans: Iterable[Snapshot]) -> None:
        assert self._keeper is not None
        now = time.time()
        events = [
            event
            for (family, name), before, after in self._keeper.follow(plans)
            for event in events_between(name, family, before, after, node=self._node, now=now)
        ]
        if events:
            self._tell(events)
        if self._keeper.changes != self._saved:
            self._save_in(SAVING)
        self._look_after(self._keeper.figures())

    def save(self, *, last: bool = False) -> None:
        """A successor may want to know what is known. ``last``: it writes from now on, unless this
        is called again."""
        self._stop_timer()
        self._look_after(self.checks)
        if self._keeper is not None and self._memory is not None and self._keeper.changes:
            self._memory.keep(self._keeper.known)
            self._saved = self._keeper.changes
            if len(self._keeper) and not last:
                self._save_in(REFRESH)

    async def end(self, *, handed_over: bool) -> None:
        """No sync comes any more. ``handed_over``: the directory is a successor's."""
        if not handed_over:
            self.save(last=True)
        self._stop_timer()
        if self._journal is not None:
            self._journal.close()
        if self._keeper is not None:
            await self._keeper.close()

    @property
    def checks(self) -> Figures | None:
        """What active checks have done; None: there was none."""
        figures = self._keeper.figures() if self._keeper is not None else None
        self._look_after(figures)
        return figures

    def _look_after(self, figures: Figures | None) -> None:
        """Say once that checks stand still: the thread that makes them cannot. Whoever asks for
        figures, each sync, and each saving (once a minute at least) looks."""
        stalled = figures is not None and figures.late > STALLED
        if figures is not None and stalled and not self._stalled:
            _log.warning("checks have stalled", seconds=round(figures.late, 1))
        self._stalled = stalled

    def _save_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is None or self._timer.when() > loop.time() + seconds:
            self._stop_timer()
            self._timer = loop.call_later(seconds, self.save)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _checker(self, told: Callable[[list[Checked]], None]) -> Checker:
        from kproxy.health.checks.checker import Checker

        return Checker(told, programs=self._programs)

    def _tell(self, events: Sequence[Event]) -> None:
        assert self._journal is not None
        self._journal.add(events)
        for event in events:
            self._counted(event)
        for kind, (log, message) in _TOLD.items():
            _log_all(log, message, [event for event in events if event.kind is kind])


def _log_all(log: Callable[..., None], message: str, events: Sequence[Event]) -> None:
    """Each, or many at a time as one line with the first of them; then each is a detail."""
    if len(events) > MOST_LINES:
        first = [f"{_subject(event)}: {event.reason}" for event in events[:MOST_LINES]]
        more = f"and {len(events) - MOST_LINES} more"
        log(message, count=len(events), what="; ".join([*first, more]))
        log = _log.detail
    for event in events:
        fields = {"endpoint": event.endpoint} if event.endpoint else {}
        log(message, service=_service(event), **fields, why=event.reason)


def _subject(event: Event) -> str:
    return f"{event.endpoint} of {_service(event)}" if event.endpoint else _service(event)


def _service(event: Event) -> str:
    return f"{event.service}:{event.port}" if event.port else event.service
