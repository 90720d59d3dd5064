"""What has arrived and no sync has taken in yet. Pure: told of everything, it asks for nothing.

Deltas, the states of files and the objects left out are kept together as the source saw them, so
that a sync that succeeds can say of each file whether it is in force.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kproxy.core.events import Delta, ref_of
from kproxy.core.health.values import Observation
from kproxy.core.objects import Value
from kproxy.core.tracker import Counts
from kproxy.look import Look
from kproxy.status import FileStatus


class Batch(Value, frozen=True):
    """What one sync works on. ``moved``: addresses of this node came or went. ``observations`` are
    what became known of endpoints' health, in order."""

    deltas: tuple[Delta, ...]
    moved: bool
    files: dict[str, FileStatus]
    refusals: tuple[str, ...]
    observations: tuple[Observation, ...] = ()


class Inbox:
    """Filled by the source, by notices of the kernel and by what keeps endpoints' health, emptied
    by each sync."""

    def __init__(self) -> None:
        self._deltas: list[Delta] = []
        self._look = Look()
        self._moved = False
        self._observations: list[Observation] = []

    def put(self, look: Look) -> Sequence[str] | None:
        """A look of the source. None when it says nothing new, else the notices that are new."""
        if look.delta:
            self._deltas.append(look.delta)
        elif msgspec.structs.replace(look, delta=self._look.delta) == self._look:
            return None
        known, self._look = self._look.notices, look
        return [line for line in look.notices if line not in known]

    def addresses_moved(self) -> None:
        self._moved = True

    def observe(self, observations: Sequence[Observation]) -> None:
        """What became known of endpoints' health, later than all that was put here before."""
        self._observations += observations

    @property
    def known(self) -> bool:
        """Whether everything has been listed once."""
        return self._look.known

    @property
    def pending(self) -> Counts:
        """Changed objects that wait, each counted once."""
        refs = {
            ref for delta in self._deltas for ref in (*map(ref_of, delta.upserted), *delta.deleted)
        }
        kinds = [ref.kind for ref in refs]
        return Counts(kinds.count("Service"), kinds.count("EndpointSlice"))

    def take_deltas(self) -> tuple[Delta, ...]:
        """The deltas alone, in order; they no longer wait."""
        deltas, self._deltas = tuple(self._deltas), []
        return deltas

    def take(self) -> Batch:
        """Everything, for one sync."""
        moved, self._moved = self._moved, False
        observed, self._observations = tuple(self._observations), []
        return Batch(self.take_deltas(), moved, self._look.files, self._look.refusals, observed)
