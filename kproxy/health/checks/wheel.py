"""When what is due: many entries, each with one time, and time in ticks.

A heap entry or a timer of the event loop for each check would cost more than the check: here,
setting a time, moving it and forgetting it are one dict operation each, and a whole tick is taken
out at once. Pure: the time is given.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

Entry = TypeVar("Entry", bound=Hashable)

#: Seconds of one tick. Checks are a matter of tenths of seconds; a hundred wake-ups a second at
#: most are all that it costs.
TICK = 0.01


class Wheel(Generic[Entry]):
    """Each entry is in it at most once; times are seconds of any steady clock."""

    def __init__(self) -> None:
        self._at: dict[Entry, int] = {}
        self._ticks: dict[int, dict[Entry, None]] = {}
        #: Ticks that have entries, or had some once.
        self._order: list[int] = []

    def __len__(self) -> int:
        return len(self._at)

    def set(self, entry: Entry, when: float) -> None:
        """Due at the end of the tick of ``when``: never early, up to a tick late."""
        self.drop(entry)
        tick = int(when / TICK) + 1
        bucket = self._ticks.get(tick)
        if bucket is None:
            bucket = self._ticks[tick] = {}
            heapq.heappush(self._order, tick)
        bucket[entry] = None
        self._at[entry] = tick

    def drop(self, entry: Entry) -> None:
        """Forget it; fine when it is not there."""
        tick = self._at.pop(entry, None)
        if tick is not None:
            del self._ticks[tick][entry]

    def next(self) -> float | None:
        """When something is due; None: nothing ever."""
        while self._order:
            tick = self._order[0]
            if self._ticks[tick]:
                return tick * TICK
            heapq.heappop(self._order)
            del self._ticks[tick]
        return None

    def due(self, now: float) -> list[tuple[float, list[Entry]]]:
        """Take out what is due, oldest tick first: (when it was, entries as they were set)."""
        found = []
        while (when := self.next()) is not None and when <= now:
            tick = heapq.heappop(self._order)
            entries = list(self._ticks.pop(tick))
            for entry in entries:
                del self._at[entry]
            found.append((when, entries))
        return found
