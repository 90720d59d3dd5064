"""What may be said of a row: each subject beside its base, in one word. Pure.

Three things stand between a figure and a verdict:

* what failed is no figure of speed, however fast it was;
* a difference is *shown* when the 99.9 % interval of the paired ratios leaves 1 out
  (:mod:`kproxy.bench.rounds`): a report has a hundred rows, and one in twenty would be wrong with
  95 %;
* it must exceed the *noise floor*: direct routing is measured twice in each round, and what makes
  two equals differ (who comes after whom, which pages are warm) makes others differ as well. The
  interval of the subject's median says nothing about that, since more rounds make it ever smaller.

The floor is a factor: the wider end of the 95 % interval of direct against direct, 1.04 say; then
neither 1.04 nor 1 / 1.04 is a difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from statistics import median

from kproxy.bench.results import Cost, Measure, Row
from kproxy.bench.rounds import (
    VERDICT_LEVEL,
    Comparison,
    Figure,
    Verdict,
    compare,
    interval,
    needed,
    reach,
)
from kproxy.core.objects import Value

#: The two that are the same.
TWINS = ("direct", "direct again")

#: Of the interval whose wider end is the noise floor.
FLOOR_LEVEL = 0.95


class Word(StrEnum):
    """What a row says of a subject."""

    BASE = "base"
    BETTER = "better"
    WORSE = "worse"
    NONE = "no difference shown"
    NOISE = "within the noise"
    FEW = "too few rounds"
    FAILED = "failed"
    ALONE = "no base"


class Said(Value, frozen=True):
    """A subject in a row. ``figure`` is the median of its ``rounds``, ``lowest`` and ``highest`` an
    interval of it with ``level`` or more (the figures' own range when so few rounds reach no more).

    ``comparison`` is with the row's base in the rounds that have both, None without one; ``floor``
    the factor below which a difference means nothing here, None when it is not known.
    ``failures`` of ``attempts`` are the subject's own.
    """

    subject: str
    word: Word
    figure: float
    lowest: float
    highest: float
    level: float
    rounds: int
    comparison: Comparison | None = None
    floor: float | None = None
    failures: int = 0
    attempts: int = 0
    cost: Cost | None = None

    @property
    def text(self) -> str:
        """The word, and what makes it one."""
        if self.word is Word.FAILED and self.failures:
            return f"failed: {self.failures:,} of {self.attempts:,}"
        if self.word is Word.FAILED:
            return "its base failed"
        return str(self.word)


def said(row: Row, measure: Measure) -> dict[str, Said]:
    """Each subject that the row has a figure of, in the row's order."""
    names = dict.fromkeys(name for each in row.rounds for name in each)
    noise = floor(row)
    return {name: _said(row, measure, name, noise) for name in names}


def floor(row: Row) -> float | None:
    """The row's noise floor as a factor of 1 or more; None without both twins, or with too few
    rounds of them."""
    both = _of_both(row, *TWINS)
    if len(both) < needed(FLOOR_LEVEL):
        return None
    found = compare(both, TWINS[1], TWINS[0], level=FLOOR_LEVEL, tolerance=1.0)
    return max(found.high, 1 / found.low) if found.low > 0 else None


def level_of(rounds: int) -> float:
    """What an interval of so many rounds is given with: the verdicts' level where there are enough,
    else as much as they reach."""
    return VERDICT_LEVEL if rounds >= needed(VERDICT_LEVEL) else reach(rounds)


def counted(row: Row) -> tuple[int, int]:
    """Fewest and most rounds that a subject of the row has."""
    names = {name for each in row.rounds for name in each}
    counts = [sum(name in each for each in row.rounds) for name in names]
    return (min(counts), max(counts)) if counts else (0, 0)


def foreign(rows: Iterable[Row]) -> float:
    """Processors that other work kept busy while direct routing was measured: what neither it nor
    client and server used. Near 0.1 on a quiet machine; 0 when it is not known."""
    shares = [
        cost.kernel / cost.seconds
        for row in rows
        if (cost := row.costs.get(TWINS[0])) is not None and cost.seconds
    ]
    return median(shares) if shares else 0.0


# --- one subject --------------------------------------------------------------------------------


def _said(row: Row, measure: Measure, name: str, noise: float | None) -> Said:
    own = [each[name] for each in row.rounds if name in each]
    values = [figure.value for figure in own]
    level = level_of(len(own))
    # One round has no interval: its figure is all that there is.
    lowest, highest = interval(values, level) if level else (values[0], values[0])
    comparison = _comparison(row, name)
    return Said(
        subject=name,
        word=_word(row, measure, name, comparison, noise, own),
        figure=median(values),
        lowest=lowest,
        highest=highest,
        level=level,
        rounds=len(own),
        comparison=comparison,
        floor=noise,
        failures=sum(figure.failures for figure in own),
        attempts=sum(figure.attempts for figure in own),
        cost=row.costs.get(name),
    )


def _comparison(row: Row, name: str) -> Comparison | None:
    """With the base; None for the base itself, and where there is none."""
    both = _of_both(row, name, row.base)
    if name == row.base or not both:
        return None
    verdict = compare(both, name, row.base, level=VERDICT_LEVEL)
    if verdict.verdict is not Verdict.FEW:
        return verdict
    return compare(both, name, row.base, level=reach(len(both)))


def _word(
    row: Row,
    measure: Measure,
    name: str,
    comparison: Comparison | None,
    noise: float | None,
    own: Sequence[Figure],
) -> Word:
    if any(figure.failures for figure in own) and measure.unit != "share":
        return Word.FAILED
    if name == row.base:
        return Word.BASE
    if comparison is None:
        return Word.ALONE
    if comparison.verdict is Verdict.FAILED:
        return Word.FAILED
    if comparison.level < VERDICT_LEVEL:
        return Word.FEW
    if comparison.verdict is Verdict.NONE:
        return Word.NONE
    if noise is None and row.base == TWINS[0] and name not in TWINS:
        return Word.FEW  # of direct routing beside itself
    if noise and 1 / noise <= comparison.ratio <= noise and name not in TWINS:
        return Word.NOISE
    higher = comparison.verdict is Verdict.HIGHER
    return Word.BETTER if higher == (measure.better == "higher") else Word.WORSE


def _of_both(row: Row, one: str, other: str) -> list[Mapping[str, Figure]]:
    return [each for each in row.rounds if one in each and other in each]
