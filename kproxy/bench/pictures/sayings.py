"""What pictures take from verdicts: who is drawn, how sure that is, what is said instead. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from kproxy.bench import terminal, verdicts, words
from kproxy.bench.results import Row, Section
from kproxy.bench.rounds import VERDICT_LEVEL
from kproxy.bench.verdicts import Said, Word


def said(row: Row, section: Section) -> dict[str, Said]:
    """Of each subject in the row."""
    measure = next(each for each in section.measures if each.name == row.point.measure)
    return verdicts.said(row, measure)


def subjects(rows: Iterable[Row]) -> set[str]:
    """Who has a figure in any of these rows."""
    return {name for row in rows for taken in row.rounds for name in taken}


def bounds(about: Said) -> tuple[float, float]:
    """Ends of its band; both the figure itself when there was one round."""
    if not about.level:
        return about.figure, about.figure
    return about.lowest, about.highest


def ratio(about: Said) -> tuple[float, float, float] | None:
    """To the base, with the ends of its interval; None where there is no comparison."""
    found = about.comparison
    if found is None or not math.isfinite(found.ratio):
        return None
    if not found.level or not math.isfinite(found.high):
        return found.ratio, found.ratio, found.ratio
    return found.ratio, found.low, found.high


def spread_words(marks: str, rows: Iterable[Row]) -> str:
    """What ``marks`` (bands, whiskers) are, by the subject with the fewest rounds."""
    fewest = min((verdicts.counted(row)[0] for row in rows), default=0)
    level = verdicts.level_of(fewest)
    if not level:
        return f"no {marks}: there was one round"
    if level >= VERDICT_LEVEL:
        return f"{marks}: {words.percent(VERDICT_LEVEL)} interval of the median"
    taken = words.plural(fewest, "round")
    return f"{marks}: lowest to highest of {taken}, too few for {words.percent(VERDICT_LEVEL)}"


def round_counts(rows: Iterable[Row]) -> str:
    """``12 rounds``, ``8 to 12 rounds``."""
    counted = [verdicts.counted(row) for row in rows] or [(0, 0)]
    least, most = min(low for low, _ in counted), max(high for _, high in counted)
    return words.plural(most, "round") if least == most else f"{least} to {most} rounds"


def disturbed(section: Section) -> str:
    """A sentence about other work that took part in the figures; "" when there was little."""
    busy = verdicts.foreign(section.rows)
    if busy <= terminal.MUCH:
        return ""
    return f"Other work kept {busy:.1f} processors busy meanwhile: the figures are of that as well."


def failed(about: Said) -> bool:
    return about.word is Word.FAILED


def blamed(found: Mapping[str, Said]) -> list[str]:
    """``nginx failed: 12 of 3,000``."""
    return [f"{name} {each.text}" for name, each in found.items() if failed(each)]
