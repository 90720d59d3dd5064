"""How many tries of a kind are under way at once, and who waits.

A bound alone would let endpoints that never answer, each of which holds its place until its
time-out, keep the others waiting. So who did not answer last time goes in another lane: those hold
at most half of the places, and wait only for each other. Pure.
"""

from __future__ import annotations

from collections.abc import Hashable
from enum import IntEnum
from typing import Generic, TypeVar

Entry = TypeVar("Entry", bound=Hashable)


class Lane(IntEnum):
    ANSWERED = 0
    SILENT = 1


class Gate(Generic[Entry]):
    """``most`` places, at least one for each lane."""

    def __init__(self, most: int) -> None:
        most = max(2, most)
        self._places = (most, most // 2)
        self._inside: dict[Entry, Lane] = {}
        self._silent = 0
        self._waiting: tuple[dict[Entry, None], dict[Entry, None]] = ({}, {})

    def __len__(self) -> int:
        """How many are inside."""
        return len(self._inside)

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting))

    def enter(self, entry: Entry, lane: Lane) -> bool:
        """Take a place; False: it waits, and comes out of :meth:`admitted` when it is its turn."""
        if not self._waiting[lane] and self._free(lane):
            self._take(entry, lane)
            return True
        self._waiting[lane][entry] = None
        return False

    def leave(self, entry: Entry) -> None:
        """It is over, or no longer wanted; fine when it is not here."""
        lane = self._inside.pop(entry, None)
        if lane is Lane.SILENT:
            self._silent -= 1
        if lane is None:
            for waiting in self._waiting:
                waiting.pop(entry, None)

    def admitted(self) -> list[Entry]:
        """Those who waited and have a place now, in turn; they are inside."""
        found = []
        for lane, waiting in zip(Lane, self._waiting):
            while waiting and self._free(lane):
                entry = next(iter(waiting))
                del waiting[entry]
                self._take(entry, lane)
                found.append(entry)
        return found

    def _free(self, lane: Lane) -> bool:
        if len(self._inside) >= self._places[Lane.ANSWERED]:
            return False
        return lane is Lane.ANSWERED or self._silent < self._places[Lane.SILENT]

    def _take(self, entry: Entry, lane: Lane) -> None:
        self._inside[entry] = lane
        self._silent += lane is Lane.SILENT
