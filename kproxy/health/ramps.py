"""Slow starts that are under way: when which endpoint gets how much more. Told the time.

An endpoint that comes up has the least weight from the plan on; from there its weight goes up by
:mod:`kproxy.core.health.ramp` until it is full.
"""

from __future__ import annotations

from kproxy.core.health import ramp
from kproxy.core.health.values import Place, Ramped
from kproxy.core.health.verdict import PortHealth
from kproxy.health.roster import Owner
from kproxy.health.transitions import grows


class _Ramp:
    """``seen`` is the weight of the last plan: one that falls tells of a new start."""

    __slots__ = ("began", "due", "seconds", "seen")

    def __init__(self, began: float, seconds: float, seen: int) -> None:
        self.began, self.seconds, self.seen = began, seconds, seen
        self.due: float | None = None
        self.plan(began)

    def plan(self, now: float) -> None:
        wait = ramp.next_step(now - self.began, self.seconds)
        self.due = None if wait is None else now + wait


class Ramps:
    """Of all service ports of both families. Times are seconds since the epoch."""

    def __init__(self) -> None:
        self._ramps: dict[Owner, dict[Place, _Ramp]] = {}

    def follow(self, owner: Owner, health: PortHealth | None, now: float) -> None:
        """The verdict on a service port as it is now."""
        seconds = health.policy.slow_start if health is not None else 0.0
        growing = {
            (each.endpoint.ip, each.endpoint.port): each.weight
            for each in (health.judged if health is not None and seconds else ())
            if grows(each)
        }
        if not growing:
            self._ramps.pop(owner, None)
            return
        before = self._ramps.get(owner, {})
        ramps: dict[Place, _Ramp] = {}
        for place, weight in growing.items():
            known = before.get(place)
            if known is None or known.seconds != seconds or weight < known.seen:
                known = _Ramp(now, seconds, weight)
            known.seen = weight
            ramps[place] = known
        self._ramps[owner] = ramps

    def tick(self, now: float) -> list[Ramped]:
        """The steps that are due."""
        steps = []
        for (_, name), ramps in self._ramps.items():
            for (ip, port), one in ramps.items():
                if one.due is not None and one.due <= now:
                    weight = ramp.weight_after(now - one.began, one.seconds)
                    steps.append(Ramped(name, ip, port, weight, now))
                    one.plan(now)
        return steps

    @property
    def due(self) -> float | None:
        """When to call :meth:`tick` next; None: nothing grows."""
        times = (one.due for ramps in self._ramps.values() for one in ramps.values())
        return min((time for time in times if time is not None), default=None)
