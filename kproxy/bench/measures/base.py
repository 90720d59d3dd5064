"""The shape of a group of measures: what stands for all its rounds, and one subject's turn.

A group is entered once, then the conductor (:mod:`kproxy.bench.conductor`) lets its subjects take
turns, round after round in changing order, for as long as its share of the time allows. One turn
may give readings at many points. What a subject cannot do it says before (:meth:`Group.absent`),
never by a figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, Self

from msgspec import field

from kproxy.bench.results import Absent, Cost, Measure, Point
from kproxy.bench.rounds import Figure
from kproxy.core.objects import Value


class Reading(Value, frozen=True):
    """Of one point in one turn. ``histogram``: bucket -> count (:mod:`kproxy.bench.histogram`);
    ``again``: how many times it was taken anew, because nothing came of the time before."""

    figure: Figure
    histogram: dict[int, int] = field(default_factory=dict)
    cost: Cost | None = None
    again: int = 0


class Group(Protocol):
    """A context manager: what stands for all rounds is there within."""

    @property
    def name(self) -> str:
        """For progress and tables."""

    @property
    def measures(self) -> Sequence[Measure]:
        """All that its points belong to."""

    @property
    def subjects(self) -> Sequence[str]:
        """Who takes turns, the base first."""

    @property
    def base(self) -> str:
        """Who others are compared with: "" when there is no base."""

    @property
    def absent(self) -> Sequence[Absent]:
        """Why a wanted subject is left out, or out of one measure."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def turn(self, subject: str) -> Mapping[Point, Reading]:
        """Measure one subject once. CheckFailed, MachineError: this subject cannot go on; the
        conductor leaves it out of the group's later rounds and says why."""
        ...
