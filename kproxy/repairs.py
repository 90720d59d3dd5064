"""When to mend what another program changed: at once, and ever later in a fight. Pure.

Two programs that each undo the other's work would keep both cores busy for nothing. A few repairs
in a row are nobody's fight: one firewall that is reloaded changes several tables one by one.
"""

from __future__ import annotations

#: Repairs in a row that are not held up.
FREE = 5
#: Seconds without a change by others after which a row has ended.
QUIET = 10.0
FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0


class Repairs:
    """Told the time in seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._due: float | None = None
        self._last = float("-inf")
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

    def mended(self, now: float) -> None:
        """A sync has read the kernel and set it right."""
        if self._due is not None:
            self._due, self._last = None, now

    def _delay(self) -> float:
        over = self.row - FREE
        return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(over - 1, 30)) if over > 0 else 0.0
