"""Keeps the health of endpoints: follows the plans in force, has their targets checked, and sends
what it finds out as observations to the next sync.

Three things are found out: what active checks say (:mod:`kproxy.health.checks`, in a thread of its
own), which endpoints fail real connections (what the data path witnessed, looked at ten times a
second while a service port wants passive detection), and which endpoints are to get a greater
share because they have been up for a while. All of it is of the event loop's thread, and nothing
runs, nor is any library loaded, before a plan asks for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from kproxy.backends.base import Finding
from kproxy.core.health.values import Checked, Ejected, Observation, Target
from kproxy.core.snapshot import Snapshot
from kproxy.health.ejections import Ejections
from kproxy.health.ramps import Ramps
from kproxy.health.roster import Roster, Turn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kproxy.health.checks.rounds import Figures

#: Seconds between two looks at what the data path witnessed.
LOOK = 0.1

#: Seconds between two messages: the first after a quiet time goes at once, and many that come one
#: by one are some syncs and not as many.
SPACING = 0.1

#: Seconds that a result may wait which says what was assumed: no rule follows from it.
UNHURRIED = 1.0

#: The least step between two moments of observations, which seconds since the epoch in a float can
#: still tell apart.
_TICK = 1e-6


class Checks(Protocol):
    """What does the checking: :class:`kproxy.health.checks.checker.Checker`."""

    def change(
        self,
        added: Iterable[Target] = (),
        removed: Iterable[Target] = (),
        known: Mapping[Target, bool] | None = None,
    ) -> None: ...
    def figures(self) -> Figures: ...
    def close(self) -> None: ...


class Keeper:
    """Made in the event loop. ``tell`` gets the observations, in an order in which each is later
    than those before. ``checks`` makes what checks, of a function to be called in any thread;
    ``findings`` is what the data path witnessed since it was last asked, None: it sees nothing."""

    def __init__(
        self,
        tell: Callable[[Sequence[Observation]], None],
        checks: Callable[[Callable[[list[Checked]], None]], Checks],
        findings: Callable[[], Collection[Finding]] | None = None,
    ) -> None:
        self._tell = tell
        self._make = checks
        self._findings = findings
        self._loop = asyncio.get_running_loop()
        # The clock may be set; durations must not follow it.
        self._epoch = time.time() - self._loop.time()
        self._stamp = 0.0
        self._roster = Roster()
        self._ejections = Ejections()
        self._ramps = Ramps()
        self._checks: Checks | None = None
        self._opinions: dict[Target, Checked] = {}
        #: Counts changes of :attr:`known`, for who keeps record of them.
        self.changes = 0
        #: Targets of endpoints that are ejected -> when their next success is asked for.
        self._asked: dict[Target, float] = {}
        self._waiting: list[Observation] = []
        self._flushed = float("-inf")
        self._flush_timer: asyncio.TimerHandle | None = None
        self._step_timer: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None

    # --- from the daemon -----------------------------------------------------------------------

    def believe(self, known: Iterable[Checked | Ejected]) -> None:
        """Before the first plan: where checks begin, and who is ejected. What that plan does not
        ask for is dropped."""
        for each in known:
            self._stamp = max(self._stamp, each.at)
            if isinstance(each, Checked):
                self._opinions[each.target] = each
            else:
                self._ejections.believe([each])

    def follow(self, snapshots: Iterable[Snapshot]) -> list[Turn]:
        """These plans are in force now; what differs of their verdicts."""
        follow = self._roster.follow
        turns = [turn for each in snapshots for turn in follow(each.family, each.health)]
        if not turns:
            return []
        now = self._now()
        self._enlist(*self._roster.enlist(turns))
        ejected: list[Ejected] = []
        for owner, _, after in turns:
            ejected += self._ejections.follow(owner, after, now)
            self._ramps.follow(owner, after, now)
        self._ejected(ejected)
        self._set_step()
        self._set_look()
        return turns

    @property
    def known(self) -> Iterator[Checked | Ejected]:
        """What a successor should know: the states of checks, and who is ejected."""
        yield from self._opinions.values()
        yield from self._ejections.known

    def __len__(self) -> int:
        """How many targets are checked or known of."""
        return len(self._opinions)

    def figures(self) -> Figures | None:
        """What checks have done; None before there was one."""
        return self._checks.figures() if self._checks is not None else None

    async def close(self) -> None:
        """Check nothing any more, and tell nothing."""
        for timer in (self._flush_timer, self._step_timer, self._look_timer):
            if timer is not None:
                timer.cancel()
        checks, self._checks = self._checks, None
        if checks is not None:
            await asyncio.to_thread(checks.close)

    # --- active checks -------------------------------------------------------------------------

    def _enlist(self, added: Collection[Target], removed: Collection[Target]) -> None:
        for target in removed:
            self._opinions.pop(target, None)
            self._asked.pop(target, None)
        known = {each: self._opinions[each].up for each in added if each in self._opinions}
        if len(self._opinions) > len(self._roster):
            # Believed from before, and wanted by nobody.
            self._opinions = {t: one for t, one in self._opinions.items() if t in self._roster}
        if not added and not removed:
            return
        self.changes += 1
        if self._checks is None:
            self._checks = self._make(self._came)
        self._checks.change(added, removed, known)

    def _came(self, news: list[Checked]) -> None:
        """In the thread of the checks."""
        with suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(self._checked, news)

    def _checked(self, news: list[Checked]) -> None:
        urgent, told = False, []
        for each in news:
            target = each.target
            if target not in self._roster:
                continue
            before = self._opinions.get(target)
            known = before.up if before is not None else target.check.pace.initial
            urgent = urgent or each.up is not known
            found = replace(each, at=self._later(each.at))
            self._opinions[target] = found
            told.append(found)
        if not told:
            return
        self.changes += 1
        self._pass_on(told, urgent=urgent)
        if self._asked:
            self._readmit([each.target for each in told if each.up])

    # --- passive detection ---------------------------------------------------------------------

    def _look(self) -> None:
        assert self._findings is not None
        # First: a fault of ours must not end it.
        self._look_timer = self._loop.call_later(LOOK, self._look)
        if found := self._findings():
            self._ejected(self._ejections.heard(found, self._now()))
            self._set_step()

    def _set_look(self) -> None:
        if self._findings is None:
            return
        if not self._ejections:
            if self._look_timer is not None:
                self._look_timer.cancel()
                self._look_timer = None
        elif self._look_timer is None:
            # What was seen before anybody wanted to know may be old.
            self._findings()
            self._look_timer = self._loop.call_later(LOOK, self._look)

    def _ejected(self, ejected: Collection[Ejected]) -> None:
        if not ejected:
            return
        self.changes += 1
        now = self._now()
        for each in ejected:
            target = self._roster.target(each.name, each.ip, each.port)
            if each.out and target is not None:
                # Not at once: what failed a moment ago may be able to open a connection and no
                # more. A check's own pace is what its author trusts.
                self._asked.setdefault(target, now + target.check.pace.interval)
        self._pass_on([replace(each, at=self._later(time.time())) for each in ejected])

    def _ask(self, now: float) -> None:
        """Begin checks afresh of which the next success is wanted: that is told, while a steady
        state is not."""
        due = [target for target, when in self._asked.items() if when <= now]
        known = {}
        for target in due:
            self._asked[target] = float("inf")
            opinion = self._opinions.get(target)
            if opinion is None or opinion.up:
                known[target] = True
        if known and self._checks is not None:
            self._checks.change(tuple(known), tuple(known), known)

    def _readmit(self, targets: Iterable[Target]) -> None:
        now = self._now()
        let_in: list[Ejected] = []
        for target in targets:
            if self._asked.pop(target, None) is not None:
                for owner, place in self._roster.owners(target):
                    let_in += self._ejections.passed(owner, place, now)
        self._ejected(let_in)
        self._set_step()

    # --- time ----------------------------------------------------------------------------------

    def _now(self) -> float:
        """Seconds since the epoch as they were counted at the start, and steady from there: for
        what lasts. What is told has the time of the clock, which may have been put right since."""
        return self._epoch + self._loop.time()

    def _later(self, at: float) -> float:
        """The moment, moved where the clock was set back: what is told last has to count."""
        self._stamp = max(at, self._stamp + _TICK)
        return self._stamp

    def _set_step(self) -> None:
        """One timer for all that is due by itself."""
        asked = min(self._asked.values(), default=float("inf"))
        times = (self._ejections.due, self._ramps.due, asked)
        due = min((time for time in times if time is not None), default=float("inf"))
        if self._step_timer is not None:
            self._step_timer.cancel()
            self._step_timer = None
        if due < float("inf"):
            self._step_timer = self._loop.call_later(max(0.0, due - self._now()), self._step)

    def _step(self) -> None:
        self._step_timer = None
        now = self._now()
        self._ejected(self._ejections.tick(now))
        self._ask(now)
        steps = self._ramps.tick(now)
        self._pass_on([replace(each, at=self._later(time.time())) for each in steps])
        self._set_step()

    # --- telling -------------------------------------------------------------------------------

    def _pass_on(self, observations: Collection[Observation], *, urgent: bool = True) -> None:
        if not observations:
            return
        self._waiting += observations
        now = self._loop.time()
        when = max(now, self._flushed + SPACING) if urgent else now + UNHURRIED
        if self._flush_timer is not None:
            if self._flush_timer.when() <= when:
                return
            self._flush_timer.cancel()
            self._flush_timer = None
        if when <= now:
            self._flush()
        else:
            self._flush_timer = self._loop.call_at(when, self._flush)

    def _flush(self) -> None:
        self._flush_timer = None
        self._flushed = self._loop.time()
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._tell(waiting)
