"""When to sync: a small state machine that is told the time and touches nothing.

Guarantees, with kube-proxy's meaning of the two periods:

1. Requests coalesce: however many come while a sync runs or waits, one sync serves them all.
2. On average there are at least ``minimum`` seconds between syncs; ``burst`` of them (2) may follow
   at once after a quiet time, so that a lone change is never held up. A minimum of 0 holds up none.
3. Without any request a sync comes ``period`` seconds after the last one, and it is a full one: the
   kernel is read and compared, so that changes by others which nobody noticed are found.
4. A failed sync is tried again after 0.2 s, then 0.4 s, 0.8 s … but never later than ``period``;
   these tries are full and do not wait for ``minimum`` to pass. kube-proxy waits a whole period
   after any failure; most failures here are a lock held for a moment by another tool, and the
   doubling keeps a lasting failure from loading the machine. New requests do not hurry a retry:
   the reason of the failure is rarely in them.
5. What others changed is mended by a sync at the time that :meth:`Schedule.mend` is given,
   whatever ``minimum`` says; it is full if it is due for another reason as well.

Times are seconds of one monotonic clock; only differences matter.
"""

from __future__ import annotations

from kproxy.core.objects import Value

BURST = 2
FIRST_RETRY = 0.2


class Run(Value, frozen=True):
    """A sync that is to be done now. ``full``: read the kernel and compare everything. ``mends``:
    read where others were at work, at least."""

    full: bool
    mends: bool = False


class Schedule:
    """Ask :meth:`due`; at that time call :meth:`start`, do the sync, and call :meth:`finish`."""

    def __init__(self, minimum: float, period: float, *, burst: int = BURST) -> None:
        self.minimum = minimum
        self.period = period
        self._burst = float(burst)
        self._tokens = float(burst)
        self._counted_at: float | None = None
        self._running = False
        self._requested = False
        self._full = True
        self._mend_at = float("inf")
        self._only_mends = False
        self._last_end: float | None = None
        #: When the next full sync is due without any request.
        self._periodic_at = float("inf")
        self._failures = 0

    def request(self, *, full: bool = False) -> None:
        """Something changed. ``full``: and what the kernel holds may not be what we believe."""
        self._requested = True
        self._full = self._full or full

    def mend(self, at: float) -> None:
        """Others have changed what the kernel holds: a sync that mends it is due at ``at``."""
        self._mend_at = min(self._mend_at, at)

    def due(self, now: float) -> float | None:
        """When the next sync may start (``now`` or earlier: at once); None while one runs.

        None too before the first request: nothing is known yet that a sync could write.
        """
        if self._running or (self._last_end is None and not self._requested):
            return None
        if self._failures:
            assert self._last_end is not None
            return self._last_end + self.retry_delay
        asked = self._allowed_at(now) if self._requested else self._periodic_at
        return min(self._periodic_at, asked, self._mend_at)

    def start(self, now: float) -> Run:
        """The sync starts: every request up to now is served by it."""
        assert not self._running
        self._refill(now)
        self._tokens = max(0.0, self._tokens - 1)
        mends = self._mend_at <= now
        # For nothing else: what others do must not put off the full sync.
        self._only_mends = mends and not self._requested and now < self._periodic_at
        full = self._full or self._failures > 0 or not (self._requested or self._only_mends)
        run = Run(full=full, mends=mends or full)
        if run.mends:
            self._mend_at = float("inf")
        self._running, self._requested, self._full = True, False, False
        return run

    def finish(self, now: float, *, ok: bool) -> None:
        """The sync ended. After a failure the next one is due by itself."""
        assert self._running
        self._running = False
        self._last_end = now
        if not self._only_mends:
            self._periodic_at = now + self.period
        self._failures = 0 if ok else self._failures + 1

    @property
    def retry_delay(self) -> float:
        """Seconds from the end of a failed sync to the next try; 0 when the last one was good."""
        if not self._failures:
            return 0.0
        # The exponent is bounded: 2.0 ** 1024 would overflow after a long night of failures.
        return min(self.period, FIRST_RETRY * 2.0 ** min(self._failures - 1, 30))

    def _allowed_at(self, now: float) -> float:
        self._refill(now)
        return now if self._tokens >= 1 else now + (1 - self._tokens) * self.minimum

    def _refill(self, now: float) -> None:
        """A token bucket: one token each ``minimum`` seconds, at most ``burst``."""
        if self.minimum <= 0:
            self._tokens = self._burst
        elif self._counted_at is not None:
            gained = (now - self._counted_at) / self.minimum
            self._tokens = min(self._burst, self._tokens + gained)
        self._counted_at = now
