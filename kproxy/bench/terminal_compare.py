"""Two results beside each other as text, in at most 100 columns. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite

from kproxy.bench import words
from kproxy.bench.compare import GOOD, Became, Change, Compared
from kproxy.bench.lines import Columns, Line, wrapped
from kproxy.bench.results import Measure, Point
from kproxy.bench.rounds import VERDICT_LEVEL
from kproxy.bench.terminal import title

_STYLES: Mapping[Became, str] = {
    Became.FASTER: "green",
    Became.BETTER: "green",
    Became.MENDED: "green",
    Became.SLOWER: "bold red",
    Became.WORSE: "bold red",
    Became.FAILS: "bold red",
}

#: Subject, before, after, change, verdict.
_COLUMNS = Columns((16, 12, 12, 28, 26), right=(1, 2))

#: Those that compare no speed, because there is none.
_FAILED = (Became.FAILS, Became.FAILED, Became.MENDED)

#: Below this level an interval would only look like one.
_SURE = 0.95


def shown(found: Compared) -> Iterator[Line]:
    """What differs about the runs, then row by row, then what follows from it."""
    if found.differences:
        yield Line("The runs differ:", "bold")
        for each in found.differences:
            yield from wrapped(f"  {each.what}: {each.before} → {each.after}")
        yield Line()
    measures = {measure.name: measure for measure in found.measures}
    rows: dict[tuple[str, Point], list[Change]] = {}
    for change in found.changes:
        rows.setdefault((change.section, change.point), []).append(change)
    for (section, point), changes in rows.items():
        yield from _row(section, measures[point.measure], point, changes)
        yield Line()
    for line in found.alone:
        yield from wrapped(line, "dim")
    for line in found.lost:
        yield from wrapped(line, "red")
    yield from wrapped(_conclusion(found), "bold")


def _row(section: str, measure: Measure, point: Point, changes: Sequence[Change]) -> Iterator[Line]:
    floor = next((change.floor for change in changes if change.floor), None)
    noise = f"; noise floor {words.number(100 * (floor - 1), 2)} %" if floor else ""
    kernel = " (user-mode Linux)" if section == "uml" else ""
    yield from wrapped(f"{title(measure, point)}{kernel}{noise}", "underline")
    base = next((f"to {change.base}" for change in changes if change.base), "")
    how = "after - before" if measure.unit == "share" else "after / before"
    yield _COLUMNS.line((base, "before", "after", how, ""), "dim")
    for change in changes:
        yield _COLUMNS.line(_cells(change, measure), _STYLES.get(change.became, ""))


def _cells(change: Change, measure: Measure) -> tuple[str, ...]:
    if change.became in _FAILED:
        before, after = (words.quantity(each, "share") for each in change.failures)
        return change.subject, before, after, "of the attempts failed", str(change.became)
    medians = (change.before, change.after)
    if change.base:
        before, after = (words.number(each) for each in medians)
    else:
        before, after = (words.quantity(each, measure.unit) for each in medians)
    word = "" if change.became is Became.BASE else str(change.became)
    return change.subject, before, after, _interval(change), word


def _interval(change: Change) -> str:
    if not isfinite(change.change) or change.became in (
        Became.BASE,
        Became.ELSEWHERE,
        Became.OTHERWISE,
    ):
        return ""
    middle = words.number(change.change)
    # A few values on each side reach no level that is worth an interval, or none at all.
    if change.level < _SURE or not (isfinite(change.low) and isfinite(change.high)):
        return middle
    return f"{middle} [{words.number(change.low)}, {words.number(change.high)}]"


def _conclusion(found: Compared) -> str:
    good = sum(change.became in GOOD for change in found.changes)
    judged = len(found.judged)
    few = sum(change.became is Became.FEW for change in found.changes)
    text = (
        f"{len(found.bad)} slower or worse and {good} faster or better of {judged} compared at "
        f"{words.percent(VERDICT_LEVEL)}, by which {judged * (1 - VERDICT_LEVEL):.2g} would be "
        "wrong by chance"
    )
    failed = sum(change.became is Became.FAILED for change in found.changes)
    text += f"; {few} more have too few rounds to say" if few else ""
    return text + (f"; {failed} had failures in one of the runs" if failed else "") + "."
