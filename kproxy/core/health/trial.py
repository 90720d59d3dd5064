"""The state of one active check: results in a row bring a target up or down. Pure.

A :class:`Trial` is told each result and the time; it says whether the target is up, and when to
try again. A steady target costs nothing: the same object comes back.
"""

from __future__ import annotations

from kproxy.core.health.values import Pace
from kproxy.core.objects import Value


class Trial(Value, frozen=True, gc=False):
    """``up`` is the state and ``since`` when it began; ``streak`` how many results in a row were
    against it. ``confirmed``: some result has been for the state, or has made it; before that it is
    only assumed. ``reason`` is what the last result that mattered said.
    """

    pace: Pace
    up: bool
    since: float
    streak: int = 0
    confirmed: bool = False
    reason: str = ""

    @property
    def unsure(self) -> bool:
        """The state is only assumed, or the last result was against it: try again soon."""
        return self.streak > 0 or not self.confirmed

    def heard(self, good: bool, reason: str, now: float) -> Trial:
        """The state after one more result."""
        if good is self.up:
            if not self.streak and self.confirmed:
                return self
            return Trial(self.pace, self.up, self.since, 0, True, reason)
        streak = self.streak + 1
        if streak >= (self.pace.rise if good else self.pace.fall):
            return Trial(self.pace, good, now, 0, True, reason)
        return Trial(self.pace, self.up, self.since, streak, self.confirmed, self.reason)

    def wait(self, draw: float) -> float:
        """Seconds from the start of the last try to the start of the next.

        ``draw`` is a random number from 0 to 1: without it all checks of a machine that was busy
        once would go on in step for ever.
        """
        interval = self.pace.fast_interval if self.unsure else self.pace.interval
        return interval * (1.0 + self.pace.jitter * (2.0 * draw - 1.0))


def begin(pace: Pace, now: float, up: bool | None = None) -> Trial:
    """Nothing heard yet. ``up``: what is believed from before, None: what ``pace`` says."""
    return Trial(pace, pace.initial if up is None else up, now)


def is_news(before: Trial, after: Trial) -> bool:
    """Whether others should hear of it: the state changed, or is known now and was assumed.

    A first result *against* an assumed state is none: it has not changed it yet.
    """
    return after.up is not before.up or after.confirmed is not before.confirmed
