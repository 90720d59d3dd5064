"""Lets the subjects of each group take turns, for as long as there is time, and keeps the rounds.

::

    jobs ─► Conductor ─► Section            (what was measured, whole rounds only)
               └─► Step … Step              (what goes on, and how long it will take)

Time is shared out by what a job would like to have, but so that a group gets the rounds that a
verdict takes where half of what is left is enough for them: one round too few would make all the
others say nothing. A group that comes to its end early leaves its rest to those after it. A round
that was begun is finished; the first is always taken, because a group without any says nothing.
:meth:`Conductor.section` may be asked at any time: after Ctrl-C it has the rounds that were whole.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import median
from typing import Literal

from kproxy.bench import words
from kproxy.bench.histogram import coarser
from kproxy.bench.measures.base import Group, Reading
from kproxy.bench.results import Absent, Cost, Measure, Point, Row, Section
from kproxy.bench.rounds import VERDICT_LEVEL, needed, turns
from kproxy.core.objects import Value
from kproxy.errors import CheckFailed, KproxyError

#: Of one round, by subject.
Readings = Mapping[str, Mapping[Point, Reading]]


class Job:
    """A group and what it should get: ``rounds`` at most, after ``warmup`` ones that are left out;
    ``each`` is about how many seconds one turn takes, ``standing`` what the group takes to be
    entered and left. ``measures``: those wanted, all of the group's when None."""

    def __init__(
        self,
        group: Group,
        *,
        rounds: int,
        each: float,
        warmup: int = 0,
        standing: float = 0.0,
        measures: Collection[str] | None = None,
    ) -> None:
        self.group = group
        self._names = measures
        self.rounds = rounds
        self.each = each
        self.warmup = warmup
        self.standing = standing

    @property
    def measures(self) -> list[Measure]:
        """What is wanted of the group."""
        return [
            each for each in self.group.measures if self._names is None or each.name in self._names
        ]

    @property
    def first(self) -> float:
        """Seconds until one round is there."""
        return self.lasting(1)

    def lasting(self, rounds: int) -> float:
        """Seconds that it would take for so many rounds."""
        return self.standing + (self.warmup + rounds) * self.each * len(self.group.subjects)

    @property
    def wanted(self) -> float:
        """Seconds that it would take in full."""
        return self.lasting(self.rounds)


class Step(Value, frozen=True):
    """What goes on. ``group`` is number ``number`` of ``groups``, with ``rounds`` of at most
    ``most`` taken; ``subject`` has its turn ("": none has). ``took`` are the group's seconds so
    far, ``elapsed`` and ``left`` the section's, ``left`` as far as one can tell. ``note``:
    something that a reader should know at once."""

    kind: Literal["began", "turn", "round", "ended", "note"]
    group: str
    number: int
    groups: int
    rounds: int
    most: int
    took: float
    elapsed: float
    left: float
    subject: str = ""
    note: str = ""


class Conductor:
    """Measures ``jobs`` in ``seconds`` (None: as long as they like); ``told`` hears each Step.

    What a turn raises of :class:`~kproxy.errors.KproxyError` or OSError leaves the subject out of
    that round, which is noted; in its first round, or for the second time, it ends the subject's
    part in the group, and is a reason in the section. When it is the base's, this is the round, and
    the group. All else ends the run.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        seconds: float | None = None,
        told: Callable[[Step], None] = lambda step: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._jobs = jobs
        self._seconds = seconds
        self._told = told
        self._clock = clock
        self._begun = clock()
        self._ended: float | None = None
        self._parts = [_Part(job) for job in jobs]
        #: How many times as long as jobs say this machine takes for a first round, 1 or more.
        self._pace = 1.0

    def run(self) -> None:
        """Measure all of them."""
        self._begun = self._clock()
        try:
            for number, part in enumerate(self._parts):
                self._give(number, part, self._share(number))
        finally:
            self._ended = self._clock()

    def section(
        self, name: Literal["host", "uml"], kernel: str, subjects: Mapping[str, str]
    ) -> Section:
        """What whole rounds have given so far."""
        return Section(
            name=name,
            kernel=kernel,
            subjects=dict(subjects),
            measures=tuple(measure for part in self._parts for measure in part.job.measures),
            rows=tuple(row for part in self._parts for row in part.rows()),
            absent=tuple(absent for part in self._parts for absent in part.absent()),
            seconds=(self._ended or self._clock()) - self._begun,
            notes=tuple(note for part in self._parts for note in part.notes()),
        )

    # --- one group ------------------------------------------------------------------------------

    def _give(self, number: int, part: _Part, share: float | None) -> None:
        """Its share of the time, if that is worth beginning; the first group always begins."""
        first = part.job.first * self._pace
        if number and share is not None and not self._worth(share, first):
            part.leave_out(f"no time was left: {first:.0f} s are needed for a round")
            self._say("note", number, note=f"{part.job.group.name}: {part.reason}")
            return
        self._conduct(number, part, share)

    def _conduct(self, number: int, part: _Part, seconds: float | None) -> None:
        part.begun = begun = self._clock()
        self._say("began", number)
        try:
            with part.job.group as group:
                orders = turns(group.subjects, part.job.warmup + part.job.rounds)
                for at, order in enumerate(orders, -part.job.warmup):
                    start = self._clock()
                    fits = seconds is None or start + part.longest <= begun + seconds
                    if (part.rounds and not fits) or part.over:
                        break
                    taken = self._round(number, part, order)
                    part.longest = max(part.longest, self._clock() - start)
                    if at == 0 and part.job.first:
                        self._pace = max(self._pace, (self._clock() - begun) / part.job.first)
                    if at >= 0 and taken:
                        part.rounds.append(taken)
                        self._say("round", number)
        except KproxyError as failed:
            # Not a turn's: the group could not be entered, or not be left.
            part.leave_out(str(failed))
            self._say("note", number, note=f"{part.job.group.name}: {failed}")
        part.ended = True
        self._say("ended", number)

    def _round(self, number: int, part: _Part, order: Sequence[str]) -> Readings:
        taken: dict[str, Mapping[Point, Reading]] = {}
        for subject in order:
            if subject in part.broken or part.over:
                continue
            self._say("turn", number, subject)
            try:
                taken[subject] = _sound(part.job.group.turn(subject))
            except (KproxyError, OSError) as failed:
                part.fail(subject, str(failed))
                self._say("note", number, note=f"{part.job.group.name}: {subject}: {failed}")
                if subject == part.job.group.base:
                    return {}
        return {} if part.over else taken

    # --- time -----------------------------------------------------------------------------------

    def _worth(self, share: float, first: float) -> bool:
        """Whether a group is begun that needs so many seconds for a round. It may take more than
        its share, but of what is left for all no more than a third too much."""
        assert self._seconds is not None
        left = self._begun + self._seconds - self._clock()
        return share >= first / 2 and left >= 0.75 * first

    def _share(self, number: int) -> float | None:
        """Of what is left, by what this and the later jobs want, or what a verdict takes; None: as
        long as it likes."""
        if self._seconds is None:
            return None
        left = max(0.0, self._begun + self._seconds - self._clock())
        wanted = [part.job.wanted for part in self._parts[number:]]
        share = left * wanted[0] / sum(wanted)
        job, enough = self._parts[number].job, needed(VERDICT_LEVEL)
        verdict = job.lasting(enough) * self._pace
        return max(share, verdict) if job.rounds >= enough and verdict <= left / 2 else share

    def _left(self, number: int) -> float:
        """Seconds, as far as one can tell: what is wanted, but no more than there is."""
        part = self._parts[number]
        later = sum(each.job.wanted for each in self._parts[number + 1 :])
        round_ = part.longest or part.job.each * len(part.job.group.subjects)
        wanted = (part.job.rounds - len(part.rounds)) * round_ * (not part.ended) + later
        if self._seconds is None:
            return wanted
        return max(0.0, min(wanted, self._begun + self._seconds - self._clock()))

    def _say(
        self,
        kind: Literal["began", "turn", "round", "ended", "note"],
        number: int,
        subject: str = "",
        note: str = "",
    ) -> None:
        part = self._parts[number]
        self._told(
            Step(
                kind=kind,
                group=part.job.group.name,
                number=number,
                groups=len(self._parts),
                rounds=len(part.rounds),
                most=part.job.rounds,
                took=self._clock() - part.begun if part.begun is not None else 0.0,
                elapsed=self._clock() - self._begun,
                left=self._left(number),
                subject=subject,
                note=note,
            )
        )


def _sound(readings: Mapping[Point, Reading]) -> Mapping[Point, Reading]:
    """The same. CheckFailed: a figure that is no number, which no file could keep."""
    for point, reading in readings.items():
        if not math.isfinite(reading.figure.value):
            raise CheckFailed(f"gave {reading.figure.value} for {point.measure}")
    return readings


# --- what a group gave --------------------------------------------------------------------------


class _Part:
    """What is known of one job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.rounds: list[Readings] = []
        #: Subject -> why it could not go on; why it is missing in one round.
        self.broken: dict[str, str] = {}
        self.missed: dict[str, str] = {}
        #: Why there is nothing (more) of the whole group.
        self.reason = ""
        #: When it began; seconds of the longest round, which tell what the next will take.
        self.begun: float | None = None
        self.longest = 0.0
        self.ended = False

    @property
    def over(self) -> bool:
        """Nobody is left to compare with, or nobody at all."""
        return self.job.group.base in self.broken or len(self.broken) == len(
            self.job.group.subjects
        )

    def fail(self, subject: str, reason: str) -> None:
        """Its turn has failed: once may be the machine's doing, twice is its own."""
        if subject in self.missed or not any(subject in taken for taken in self.rounds):
            self.broken[subject] = reason
        else:
            self.missed[subject] = reason

    def leave_out(self, reason: str) -> None:
        self.reason = reason

    def rows(self) -> list[Row]:
        """One for each point, in the order of the measures, then as they first came."""
        places = {measure.name: at for at, measure in enumerate(self.job.measures)}
        seen = dict.fromkeys(
            point for taken in self.rounds for of in taken.values() for point in of
        )
        points = sorted(
            (point for point in seen if point.measure in places),
            key=lambda point: places[point.measure],
        )
        return [self._row(point) for point in points]

    def _row(self, point: Point) -> Row:
        rounds = [
            {
                subject: taken[subject][point]
                for subject in self.job.group.subjects
                if subject in taken and point in taken[subject]
            }
            for taken in self.rounds
        ]
        readings: dict[str, list[Reading]] = {}
        for each in rounds:
            for subject, reading in each.items():
                readings.setdefault(subject, []).append(reading)
        return Row(
            point=point,
            base=self.job.group.base,
            rounds=tuple(
                {subject: reading.figure for subject, reading in each.items()}
                for each in rounds
                if each
            ),
            distributions={
                subject: merged for subject, taken in readings.items() if (merged := _merged(taken))
            },
            costs={
                subject: cost
                for subject, taken in readings.items()
                if (cost := _cost(taken)) is not None
            },
        )

    def absent(self) -> list[Absent]:
        """Whom the group left out itself, then who could not go on."""
        names = [measure.name for measure in self.job.measures]
        found = [each for each in self.job.group.absent if each.measure in (*names, "")]
        reasons = dict(self.broken)
        if self.reason:
            reasons = {**dict.fromkeys(self.job.group.subjects, self.reason), **reasons}
        elif self.job.group.base in self.broken:
            why = f"{self.job.group.base} could not go on: {self.broken[self.job.group.base]}"
            reasons = {**dict.fromkeys(self.job.group.subjects, why), **reasons}
        for subject, reason in reasons.items():
            done = sum(subject in taken for taken in self.rounds)
            after = f"after {done} rounds: " if done else ""
            found += [Absent(subject, name, after + reason) for name in names]
        return found

    def notes(self) -> list[str]:
        """What its figures do not show: who is missing in a round, and what was taken again."""
        name = self.job.group.name
        missed = [
            f"{name}: {subject} is missing in a round: {reason}"
            for subject, reason in self.missed.items()
            if subject not in self.broken
        ]
        return missed + self._again()

    def _again(self) -> list[str]:
        again: Counter[tuple[str, str]] = Counter()
        for taken in self.rounds:
            for subject, readings in taken.items():
                for point, reading in readings.items():
                    if reading.again:
                        again[point.measure, subject] += reading.again
        wanted = {measure.name for measure in self.job.measures}
        rounds = words.plural(len(self.rounds), "round")
        return [
            f"{measure} of {subject} was taken anew {times}× in {rounds}, for longer: nothing was "
            "answered the time before, and nothing failed."
            for (measure, subject), times in again.items()
            if measure in wanted
        ]


def _merged(readings: Sequence[Reading]) -> dict[int, int]:
    """Of all rounds; figures are taken from the fine ones, this is to be kept and drawn."""
    whole: Counter[int] = Counter()
    for reading in readings:
        for number, count in reading.histogram.items():
            whole[coarser(number)] += count
    return dict(sorted(whole.items()))


def _cost(readings: Sequence[Reading]) -> Cost | None:
    """Field by field the median of the turns; None when no turn says."""
    costs = [reading.cost for reading in readings if reading.cost is not None]
    if not costs:
        return None
    return Cost(
        **{name: median(getattr(cost, name) for cost in costs) for name in Cost.__struct_fields__}
    )
