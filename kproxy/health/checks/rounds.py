"""The rounds of all checks: who is tried when, what comes of it, who is told. Of one event loop.

A try begins when the wheel says so and its kind has a place for it; the wheel then holds its
time-out. Afterwards the trial says what the result means and when the next try is.

Time that this thread was held up (another thread had the interpreter, the machine stood still) is
not the endpoint's: what has come meanwhile is taken before any time is called over, and who was
about to run out is given that time once more.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from kproxy import logs
from kproxy.core.health.trial import begin, is_news
from kproxy.core.health.values import Checked, Target
from kproxy.core.objects import Value
from kproxy.health.checks.descriptors import Descriptors
from kproxy.health.checks.gate import Lane
from kproxy.health.checks.group import Group, KindFigures
from kproxy.health.checks.outcome import Outcome, own
from kproxy.health.checks.probers import KINDS, load
from kproxy.health.checks.run import Phase, Run
from kproxy.health.checks.tasks import Tasks
from kproxy.health.checks.wheel import Wheel

_log = logs.get("checks")

Told = Callable[[list[Checked]], None]

#: Targets that come together begin a millisecond after each other, or closer where an interval
#: would not hold them all; jitter then keeps them apart.
_APART = 0.001

#: Tries begun before the loop looks at other work.
_BATCH = 128

#: Seconds late from which this thread counts as held up. A tick is 0.01 s, a switch between threads
#: 0.005 s.
_HELD_UP = 0.1

#: Seconds at least until the next try, after one that this node was not able to make.
_AGAIN = 1.0

#: Seconds between two log lines about the same fault of this node.
_QUIET = 60.0

#: Different faults that are counted each: they may quote what stands in annotations.
_MOST_TROUBLES = 100


class Figures(Value, frozen=True):
    """``late``: seconds that the thread is behind: those when it last woke, or since it should have
    woken. ``troubles``: this node's own faults, each with how many tries it cost."""

    kinds: tuple[KindFigures, ...] = ()
    late: float = 0.0
    troubles: tuple[tuple[str, int], ...] = ()


class Rounds:
    """All methods but :meth:`figures` are for the loop's thread. ``most`` tries of a kind at once
    where the kind has no bound of its own; ``programs``: whether exec checks are run at all."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, told: Told, *, most: int, programs: bool
    ) -> None:
        self._loop = loop
        self._told = told
        self._most = most
        self._programs = programs
        self._runs: dict[Target, Run] = {}
        self._groups: dict[str, Group] = {}
        self._wheel: Wheel[Run] = Wheel()
        self._queue: deque[Run] = deque()
        self._draining = self._closed = False
        self._news: list[Checked] = []
        self._timer: asyncio.TimerHandle | None = None
        self._late = 0.0
        #: Fault of this node's -> tries that it cost, and when it was last logged.
        self._troubles: dict[str, int] = {}
        self._logged: dict[str, float] = {}
        self._descriptors = Descriptors(loop, self._ended)
        self._tasks = Tasks(loop, self._ended)

    # --- from outside ------------------------------------------------------------------------

    def change(
        self,
        added: Iterable[Target],
        removed: Iterable[Target] = (),
        known: Mapping[Target, bool] | None = None,
    ) -> None:
        """Check ``added`` from now on, ``removed`` no more. ``known``: states from before."""
        # What was found out before is told before.
        self._flush()
        for target in removed:
            run = self._runs.pop(target, None)
            if run is not None:
                self._forget(run)
        fresh = [target for target in dict.fromkeys(added) if target not in self._runs]
        now, wall = self._loop.time(), time.time()
        for number, target in enumerate(fresh):
            pace = target.check.pace
            group = self._group_of(target)
            state = (known or {}).get(target)
            run = self._runs[target] = Run(target, begin(pace, wall, state), group)
            group.targets += 1
            self._wheel.set(run, now + number * min(_APART, pace.interval / len(fresh)))
        self._set_timer()

    def figures(self) -> Figures:
        """From any thread."""
        return Figures(
            tuple(group.figures() for group in list(self._groups.values())),
            self._lateness(),
            tuple(dict(self._troubles).items()),
        )

    def _lateness(self) -> float:
        """Asked for, and not noted when the thread wakes: it may never wake again. The timer tells
        what the wheel would, which must not be looked through from another thread."""
        timer = self._timer
        return 0.0 if timer is None else max(self._late, self._loop.time() - timer.when())

    async def close(self) -> None:
        """End all that is under way; nobody is told of it."""
        self._closed = True
        for run in self._runs.values():
            self._forget(run)
        self._runs.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._descriptors.close()
        await self._tasks.close()
        for group in self._groups.values():
            if group.loading is not None:
                group.loading.cancel()
                await asyncio.wait([group.loading])
            if group.talker is not None:
                await group.talker.close()
        # A transport that was aborted closes its socket in the loop's next turn.
        await asyncio.sleep(0)
        self._flush()

    # --- time --------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        when = self._wheel.next()
        if self._timer is not None:
            if when is not None and self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = None if when is None else self._loop.call_at(when, self._tick)

    def _wait(self, run: Run, when: float) -> None:
        self._wheel.set(run, when)
        if self._timer is None or when < self._timer.when():
            self._set_timer()

    def _tick(self) -> None:
        try:
            self._turn()
        finally:
            # A fault of ours costs what was due, and not all checks for ever.
            self._timer = None
            self._set_timer()

    def _turn(self) -> None:
        now = self._loop.time()
        self._late = max(0.0, now - (self._wheel.next() or now))
        self._descriptors.gather()
        for when, entries in self._wheel.due(now):
            late = now - when
            for run in entries:
                if run.phase is not Phase.TRYING:
                    self._queue.append(run)
                elif late > _HELD_UP and not run.spared:
                    run.spared = True
                    self._wheel.set(run, now + late)
                elif run.descriptor >= 0:
                    self._descriptors.expire(run)
                else:
                    self._tasks.expire(run)
        self._drain()

    # --- tries -------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Begin the tries whose turn it is."""
        self._draining = False
        if self._closed:
            return
        for _ in range(min(_BATCH, len(self._queue))):
            run = self._queue.popleft()
            if run.phase is not Phase.GONE:
                self._begin(run)
        # Where the other side is near, answers are there already, with no wake-up for them.
        self._descriptors.gather()
        if self._queue:
            self._drain_soon()

    def _drain_soon(self) -> None:
        if not self._draining:
            self._draining = True
            self._loop.call_soon(self._drain)

    def _begin(self, run: Run) -> None:
        group = run.group
        if run.phase is not Phase.TRYING:
            if group.simple is None and group.talker is None:
                run.phase = Phase.WAITING
                self._hold(group, run)
                return
            if not group.gate.enter(run, run.lane):
                run.phase = Phase.WAITING
                return
            run.phase = Phase.TRYING
        run.began = self._loop.time()
        self._wait(run, run.began + run.target.check.pace.timeout)
        if group.simple is not None:
            self._descriptors.start(run, group.simple)
        elif group.talker is not None:
            self._tasks.start(run, group.talker)

    def _ended(self, run: Run, outcome: Outcome) -> None:
        if run.phase is Phase.GONE:
            return
        now = self._loop.time()
        group, pace = run.group, run.target.check.pace
        run.phase = Phase.RESTING
        run.expired = run.spared = False
        # Who held its place to the end is one of the silent ones, whatever it says.
        run.lane = Lane(not outcome.good and now - run.began >= pace.timeout)
        group.gate.leave(run)
        group.count(outcome)
        if outcome.own:
            self._troubled(run, outcome.reason, now)
            pause = max(_AGAIN, run.trial.wait(random.random()))
        else:
            before = run.trial
            run.trial = before.heard(outcome.good, outcome.reason, time.time())
            if run.trial is not before and is_news(before, run.trial):
                self._tell(run)
            pause = run.trial.wait(random.random())
        self._wait(run, max(now, run.began + pause))
        self._let_in(group)

    def _let_in(self, group: Group) -> None:
        if group.gate.waiting:
            for other in group.gate.admitted():
                other.phase = Phase.TRYING
                self._queue.append(other)
        if self._queue:
            self._drain_soon()

    def _forget(self, run: Run) -> None:
        group = run.group
        group.targets -= 1
        self._wheel.drop(run)
        if run.descriptor >= 0:
            self._descriptors.stop(run)
        elif run.task is not None:
            self._tasks.stop(run)
        run.phase = Phase.GONE
        group.held.pop(run, None)
        group.gate.leave(run)
        self._let_in(group)

    # --- probers that are loaded ---------------------------------------------------------------

    def _group_of(self, target: Target) -> Group:
        kind = KINDS[type(target.check.probe)]
        group = self._groups.get(kind.name)
        if group is None:
            most = self._most if kind.most is None else min(kind.most, self._most)
            group = self._groups[kind.name] = Group(kind, most)
        return group

    def _hold(self, group: Group, run: Run) -> None:
        group.held[run] = None
        if group.loading is None:
            group.loading = self._loop.create_task(self._load(group))

    async def _load(self, group: Group) -> None:
        fault = ""
        if group.kind.name == "exec" and not self._programs:
            fault = "this node runs no programs as checks"
        else:
            try:
                group.talker = await load(group.kind)
            except ImportError as error:
                fault = f"cannot load what {group.kind.name} checks need: {error}"
        group.loading = None
        held, group.held = group.held, {}
        for run in held:
            run.phase = Phase.RESTING
            if fault:
                run.began = self._loop.time()
                self._ended(run, own(fault))
            else:
                self._queue.append(run)
        self._drain_soon()

    # --- telling -----------------------------------------------------------------------------

    def _tell(self, run: Run) -> None:
        trial = run.trial
        if not self._news:
            self._loop.call_soon(self._flush)
        self._news.append(Checked(run.target, trial.up, trial.reason, time.time()))

    def _flush(self) -> None:
        if not self._news:
            return
        news, self._news = self._news, []
        try:
            self._told(news)
        except Exception as error:  # noqa: BLE001
            _log.fault("nobody could be told of results", error, results=len(news))

    def _troubled(self, run: Run, reason: str, now: float) -> None:
        if reason not in self._troubles and len(self._troubles) >= _MOST_TROUBLES:
            reason = "other faults of this node"
        self._troubles[reason] = self._troubles.get(reason, 0) + 1
        last = self._logged.get(reason)
        if last is None or now - last >= _QUIET:
            self._logged[reason] = now
            _log.warning(
                "cannot check", why=reason, target=run.target, so_far=self._troubles[reason]
            )
