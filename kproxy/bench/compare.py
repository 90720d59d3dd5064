"""Two results beside each other: what has become faster or slower, and whether that is shown. Pure.

The rounds of two runs are not paired, and between them the machine may have become another one. So
where direct routing was measured it is the *ratios to direct* of each run that are compared: what
slows a whole run down is in both of its halves. Where it was not (programming, whose base is a mode
that may have changed as well; survival) it is the figures, and only when both runs were taken on
the same kind of machine.

The method is that of :mod:`kproxy.bench.ranks`, at 99.9 %. As in a result
(:mod:`kproxy.bench.verdicts`) a difference must exceed the noise floor as well: how far the ratio
of direct against direct has moved from one run to the other, at most, with 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from statistics import median

from kproxy.bench import ranks
from kproxy.bench.results import Fingerprint, Measure, Point, Results, Row, Section
from kproxy.bench.rounds import VERDICT_LEVEL, Figure
from kproxy.bench.verdicts import FLOOR_LEVEL, TWINS, foreign
from kproxy.core.objects import Value

#: Fields of a fingerprint that figures of two runs may not differ in to be compared as they are.
_MACHINE = ("cpu", "cores")


class Became(StrEnum):
    """What is shown of a subject from the first run to the second."""

    FASTER = "faster"
    SLOWER = "slower"
    BETTER = "better"
    WORSE = "worse"
    NONE = "no difference shown"
    NOISE = "within the noise"
    FEW = "too few rounds"
    FAILS = "fails more"
    FAILED = "failed"
    MENDED = "fails less"
    ELSEWHERE = "another machine"
    OTHERWISE = "another load"
    BASE = "base"


#: Processors with other work by which a run is another one.
_BUSIER = 0.3

#: Those that a run should not have: ``kproxy bench compare`` ends with 1.
BAD = frozenset({Became.SLOWER, Became.WORSE, Became.FAILS})

#: And those that it may boast of.
GOOD = frozenset({Became.FASTER, Became.BETTER, Became.MENDED})

#: What better and worse are called, of shares and of all else.
_SHARE = (Became.BETTER, Became.WORSE)
_SPEED = (Became.FASTER, Became.SLOWER)


class Change(Value, frozen=True):
    """One subject in one row. ``before`` and ``after`` are medians: of the ratios to ``base``, of
    the figures when that is "". ``change`` is after / before with the interval that holds with
    ``level`` (for shares: after - before); ``floor`` the factor that a change must exceed, None
    when it is not known. ``failures`` are shares of the attempts, before and after.
    """

    section: str
    point: Point
    subject: str
    base: str
    before: float
    after: float
    change: float
    low: float
    high: float
    level: float
    became: Became
    floor: float | None = None
    failures: tuple[float, float] = (0.0, 0.0)


class Difference(Value, frozen=True):
    """Something of where and how the runs were taken that is not the same."""

    what: str
    before: str
    after: str


class Compared(Value, frozen=True):
    """``differences`` first. ``measures`` are of the rows that both have; ``alone`` names what only
    one of them has, ``lost`` what the second has tried and could not measure any more."""

    differences: tuple[Difference, ...]
    measures: tuple[Measure, ...]
    changes: tuple[Change, ...]
    alone: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    @property
    def bad(self) -> tuple[Change, ...]:
        """What has become slower or fails more."""
        return tuple(change for change in self.changes if change.became in BAD)

    @property
    def judged(self) -> tuple[Change, ...]:
        """Those that a verdict was possible of."""
        silent = (Became.BASE, Became.FEW, Became.ELSEWHERE, Became.OTHERWISE, Became.FAILED)
        return tuple(change for change in self.changes if change.became not in silent)


def compared(before: Results, after: Results) -> Compared:
    """All that both have, section by section."""
    differences = tuple(_differences(before, after))
    alike = not any(each.what in _MACHINE for each in differences)
    pairs = [
        (one, other)
        for one in before.sections
        for other in after.sections
        if one.name == other.name
    ]
    return Compared(
        differences=differences,
        measures=tuple(dict.fromkeys(each for _, other in pairs for each in other.measures)),
        changes=tuple(
            each
            for one, other in pairs
            for each in _changes(
                one, other, alike and one.kernel == other.kernel, before.profile == after.profile
            )
        ),
        alone=tuple(_alone(before, after)),
        lost=tuple(each for one, other in pairs for each in _lost(one, other)),
    )


# --- where they were taken ----------------------------------------------------------------------


def _differences(before: Results, after: Results) -> Iterator[Difference]:
    """The versions of kproxy first: they are what is compared, most of the time."""
    for what in ("kproxy", "profile"):
        one, other = getattr(before, what), getattr(after, what)
        if one != other:
            yield Difference(what, one, other)
    yield from _of_fingerprints(before.fingerprint, after.fingerprint)
    if before.partial or after.partial:
        yield Difference("ended early", before.partial or "no", after.partial or "no")
    busy = [
        foreign(row for section in run.sections for row in section.rows) for run in (before, after)
    ]
    if abs(busy[0] - busy[1]) > _BUSIER:
        yield Difference("processors with other work", f"{busy[0]:.1f}", f"{busy[1]:.1f}")
    # The host's is in the fingerprint.
    first, second = (
        next((section.kernel for section in run.sections if section.name == "uml"), "")
        for run in (before, after)
    )
    if first and second and first != second:
        yield Difference("kernel (uml)", first, second)


def _of_fingerprints(before: Fingerprint, after: Fingerprint) -> Iterator[Difference]:
    """Field by field; the load before a run is no property of the machine."""
    for what in ("cpu", "cores", "kernel", "memory", "python"):
        one, other = getattr(before, what), getattr(after, what)
        # What a kernel keeps for itself differs from boot to boot.
        if one != other and not (what == "memory" and math.isclose(one, other, rel_tol=0.01)):
            yield Difference(what, str(one), str(other))
    for kind in ("tools", "sysctls"):
        one, other = getattr(before, kind), getattr(after, kind)
        for name in sorted(one.keys() | other.keys()):
            if one.get(name) != other.get(name):
                yield Difference(name, one.get(name, "none"), other.get(name, "none"))


def _alone(before: Results, after: Results) -> Iterator[str]:
    """What cannot be compared because only one run has it."""
    first, second = (
        {
            (section.name, name, row.point.measure)
            for section in each.sections
            for row in section.rows
            for taken in row.rounds
            for name in taken
        }
        for each in (before, after)
    )
    for has, lacks, where in ((first, second, "the first"), (second, first, "the second")):
        found: dict[tuple[str, str], list[str]] = {}
        for kernel, name, measure in sorted(has - lacks):
            found.setdefault((kernel, name), []).append(measure)
        for (section, who), measures in found.items():
            yield f"only in {where}: {who} ({section}): {', '.join(measures)}"


def _lost(before: Section, after: Section) -> Iterator[str]:
    """Those of the first run that the second has a reason for instead of a figure."""
    had = {(name, row.point.measure) for row in before.rows for each in row.rounds for name in each}
    has = {(name, row.point.measure) for row in after.rows for each in row.rounds for name in each}
    for absent in after.absent:
        for name, measure in sorted(had - has):
            if name == absent.subject and absent.measure in ("", measure):
                yield f"no longer measured: {name} ({after.name}), {measure}: {absent.reason}"


# --- rows ---------------------------------------------------------------------------------------


def _changes(before: Section, after: Section, alike: bool, loads: bool) -> Iterator[Change]:
    """``alike``: on the same kind of machine; ``loads``: those of traffic are the same."""
    rows = {row.point: row for row in before.rows}
    measures = {measure.name: measure for measure in after.measures}
    for row in after.rows:
        if row.point in rows:
            measure = measures[row.point.measure]
            same = loads or measure.group != "traffic"
            yield from _Pair(after.name, measure, rows[row.point], row, alike, same).changes()


class _Pair:
    """The same row of both runs."""

    def __init__(
        self, section: str, measure: Measure, before: Row, after: Row, alike: bool, loads: bool
    ) -> None:
        self._section = section
        self._measure = measure
        self._rows = (before, after)
        self._base = after.base if before.base == after.base == TWINS[0] else ""
        self._alike = alike
        self._loads = loads
        self._scale = _SCALES["share" if measure.unit == "share" else ""]
        self._floor = self._noise()

    def changes(self) -> Iterator[Change]:
        first, second = (
            dict.fromkeys(name for each in row.rounds for name in each) for row in self._rows
        )
        for name in first:
            if name in second:
                yield self._change(name)

    def _change(self, name: str) -> Change:
        base = "" if name == self._base else self._base
        samples = [_values(row, name, base) for row in self._rows]
        failures = [_shares(row, name, base) for row in self._rows]
        level = _level(*map(len, samples))
        moved = self._moved(samples, level)
        return Change(
            section=self._section,
            point=self._rows[1].point,
            subject=name,
            base=base,
            before=median(samples[0]) if samples[0] else math.nan,
            after=median(samples[1]) if samples[1] else math.nan,
            change=moved.estimate,
            low=moved.low,
            high=moved.high,
            level=level,
            became=self._became(name, samples, failures, moved),
            floor=self._floor,
            failures=(_mean(failures[0]), _mean(failures[1])),
        )

    def _became(
        self,
        name: str,
        samples: Sequence[Sequence[float]],
        failures: Sequence[Sequence[float]],
        moved: ranks.Shift,
    ) -> Became:
        if name == self._base:
            return Became.BASE
        if any(map(any, failures)) and self._measure.unit != "share":
            return _of_failures(failures)
        if not all(samples) or not all(map(self._scale.takes, samples)):
            return Became.FAILED
        if not self._base and not self._alike:
            return Became.ELSEWHERE
        if not self._loads:
            return Became.OTHERWISE
        if moved.level < VERDICT_LEVEL:
            return Became.FEW
        same = self._scale.same
        if moved.low <= same <= moved.high:
            return Became.NONE
        if self._floor and name not in TWINS and 1 / self._floor <= moved.estimate <= self._floor:
            return Became.NOISE
        words = _SHARE if self._measure.unit == "share" else _SPEED
        return words[(moved.estimate > same) != (self._measure.better == "higher")]

    def _moved(self, samples: Sequence[Sequence[float]], level: float) -> ranks.Shift:
        """After over before on the measure's own scale; level 0 when there is nothing to say."""
        if not all(samples) or not all(map(self._scale.takes, samples)):
            return ranks.Shift(math.nan, math.nan, math.nan, 0.0)
        first, second = ([self._scale.to(value) for value in each] for each in samples)
        found = ranks.shift(first, second, level)
        back = self._scale.back
        return ranks.Shift(back(found.estimate), back(found.low), back(found.high), level)

    def _noise(self) -> float | None:
        """How far the ratio of the twins may have moved, as a factor; None: not known."""
        samples = [_values(row, TWINS[1], TWINS[0]) for row in self._rows]
        if self._base != TWINS[0] or min(map(len, samples)) < ranks.needed(FLOOR_LEVEL):
            return None
        if not all(value > 0 for each in samples for value in each):
            return None
        found = self._moved(samples, FLOOR_LEVEL)
        return max(found.high, 1 / found.low)


class _Scale(Value, frozen=True):
    """Where differences are taken: ``to`` it and ``back``; ``same`` is what no change gives, and
    ``takes`` says whether all of some values are on it."""

    to: Callable[[float], float]
    back: Callable[[float], float]
    takes: Callable[[Sequence[float]], bool]
    same: float


#: Speeds differ by factors, shares (which may be 0) by what is between them.
_SCALES: Mapping[str, _Scale] = {
    "": _Scale(math.log, math.exp, lambda values: min(values) > 0, 1.0),
    "share": _Scale(float, float, lambda values: True, 0.0),
}


def _of_failures(failures: Sequence[Sequence[float]]) -> Became:
    """By the shares of each round: one bad round out of many is no more than that. Where there were
    none before or are none after, as few rounds as there may be say enough when half of them had
    some."""
    if not all(failures):
        return Became.FAILED
    before, after = failures
    if not any(before) and _many(after):
        return Became.FAILS
    if not any(after) and _many(before):
        return Became.MENDED
    found = ranks.shift(before, after, VERDICT_LEVEL)
    if found.low > 0:
        return Became.FAILS
    return Became.MENDED if found.high < 0 else Became.FAILED


def _many(shares: Sequence[float]) -> bool:
    return 2 * sum(map(bool, shares)) >= len(shares)


def _level(first: int, second: int) -> float:
    """What an interval is given with: the verdicts' level, or the most that the rounds reach."""
    most = max(0.0, 1 - 2 / math.comb(first + second, first)) if first and second else 0.0
    return min(VERDICT_LEVEL, most)


def _values(row: Row, name: str, base: str) -> list[float]:
    """Of each round: the figure, or its ratio to the base's; rounds in which either failed count,
    as failures do that are judged apart."""
    if not base:
        return [each[name].value for each in row.rounds if name in each]
    return [
        each[name].value / each[base].value
        for each in row.rounds
        if name in each and base in each and each[base].value
    ]


def _shares(row: Row, name: str, base: str) -> list[float]:
    """Of each round: the share of attempts that failed, of the worse of subject and base."""
    return [
        max(_share(each[who]) for who in (name, base) if who in each)
        for each in row.rounds
        if name in each
    ]


def _share(figure: Figure) -> float:
    return figure.failures / max(figure.attempts, figure.failures, 1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
