"""When to mend what another program changed: at once, and a little later in a fight. Pure.

Two programs that each undo the other's work would keep both cores busy for nothing. A few repairs
in a row are nobody's fight: one firewall that is reloaded changes several tables one by one. In a
fight the waits follow what a repair costs, not how long the fight lasts: a firewall that is loaded
every other second must not leave a small node without its services for half a minute.
"""

from __future__ import annotations

#: Repairs in a row that are not held up.
FREE = 5
#: Seconds without a change by others after which a row has ended.
QUIET = 10.0
#: Seconds; with the half second in which a change is noticed, less than one.
SHORTEST_DELAY = 0.25
LONGEST_DELAY = 30.0
#: Waits in a fight, as a multiple of the last repair: a quarter of the time goes into repairs.
PER_COST = 3.0


class Repairs:
    """Told the time in seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._due: float | None = None
        self._last = float("-inf")
        self._cost = 0.0
        #: Repairs in a row.
        self.row = 0

    @property
    def pending(self) -> bool:
        """Whether something that was noticed is not mended yet."""
        return self._due is not None

    def noticed(self, now: float) -> float:
        """Something was changed: when to mend it. What is noticed until then is mended with it."""
        if self._due is None:
            self.row = self.row + 1 if now - self._last <= QUIET else 1
            self._due = now + self._delay()
        return self._due

    def mended(self, now: float, seconds: float) -> None:
        """A sync of so many seconds has read the kernel and set it right."""
        if self._due is not None:
            self._due, self._last, self._cost = None, now, seconds

    def _delay(self) -> float:
        if self.row <= FREE:
            return 0.0
        return min(LONGEST_DELAY, max(SHORTEST_DELAY, PER_COST * self._cost))
