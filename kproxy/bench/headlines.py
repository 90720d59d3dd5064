"""What a measure shows, in a sentence or two, read off the verdicts: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite

from kproxy.bench import verdicts, words
from kproxy.bench.results import Measure, Row, Section
from kproxy.bench.verdicts import TWINS, Said, Word
from kproxy.core.objects import Value

#: Verdict -> how a list of subjects is introduced; {base} is whom they are compared with.
_INTRODUCED: Mapping[Word, str] = {
    Word.BETTER: "Faster than {base}",
    Word.NONE: "No difference from {base} shown",
    Word.NOISE: "Within the noise of {base}",
    Word.WORSE: "Slower than {base}",
    Word.FEW: "Too few rounds to say",
    Word.ALONE: "Measured, compared with nobody",
}

#: Of several points of a measure the headline is about the hardest: the largest, then these places.
_HARDEST = ("last", "moved", "", "first", "new")


class Headline(Value, frozen=True):
    """``sentences`` about one point of a measure; ``title`` says which."""

    title: str
    sentences: tuple[str, ...]


def headlines(section: Section) -> list[Headline]:
    """Of each measure that has a row, in their order; survival has one for each event."""
    found = [
        _compared(measure, row)
        for measure in section.measures
        if measure.group != "survival" and (row := hardest(section, measure))
    ]
    return found + [_survived(section, event) for event in events(section)]


def hardest(section: Section, measure: Measure) -> Row | None:
    """The row of the largest size that most subjects have reached."""
    rows = [row for row in section.rows if row.point.measure == measure.name and row.rounds]
    if not rows:
        return None
    most = max(len(subjects_of(row)) for row in rows)
    # One that all but one have reached says more than a smaller one of all.
    enough = [row for row in rows if len(subjects_of(row)) >= max(1, most - 1)]
    return max(enough, key=lambda row: (row.point.at or 0, -_HARDEST.index(_place(row))))


def _place(row: Row) -> str:
    return row.point.where if row.point.where in _HARDEST else ""


def subjects_of(row: Row) -> set[str]:
    return {name for taken in row.rounds for name in taken}


def point_words(row: Row, measure: Measure) -> str:
    """``10,000 services, the last service``; "" where a measure has one point."""
    parts = []
    if row.point.at is not None:
        axis = measure.axis.removesuffix("s") if row.point.at == 1 else measure.axis
        parts.append(f"{words.count(row.point.at)} {axis}".strip())
    if row.point.where:
        parts.append(words.PLACES.get(row.point.where, row.point.where))
    return ", ".join(parts)


# --- compared -----------------------------------------------------------------------------------


def _compared(measure: Measure, row: Row) -> Headline:
    found = {name: each for name, each in verdicts.said(row, measure).items() if name != TWINS[1]}
    title = words.capital(measure.title)
    if point := point_words(row, measure):
        title += f" ({point})"
    base = found.get(row.base)
    sentences = []
    if base is not None and base.word is not Word.FAILED:
        sentences.append(f"{row.base}: {words.quantity(base.figure, measure.unit)}.")
    for word, introduced in _INTRODUCED.items():
        listed = _best_first(measure, (each for each in found.values() if each.word is word))
        if listed:
            told = ", ".join(_one(each, measure) for each in listed)
            sentences.append(f"{introduced.format(base=row.base)}: {told}.")
    failed = [each for each in found.values() if each.word is Word.FAILED]
    if failed:
        sentences.append(f"No figure: {', '.join(f'{e.subject} ({e.text})' for e in failed)}.")
    return Headline(title, tuple(sentences))


def _best_first(measure: Measure, found: Iterable[Said]) -> list[Said]:
    """By what is told of them: ratios, or figures where there is no base."""

    def told(about: Said) -> float:
        return about.figure if about.comparison is None else about.comparison.ratio

    return sorted(found, key=told, reverse=measure.better == "higher")


def _one(about: Said, measure: Measure) -> str:
    """By its ratio, without bounds: tables have those. By its figure where there is no base."""
    found = about.comparison
    if found is None or not isfinite(found.ratio):
        return f"{about.subject} {words.quantity(about.figure, measure.unit)}"
    return f"{about.subject} ×{words.number(found.ratio)}"


def ratio_words(about: Said) -> str:
    """``0.75 [0.71, 0.79]``, ``0.75`` where rounds are too few for bounds; "" without a base."""
    found = about.comparison
    if found is None or not isfinite(found.ratio):
        return ""
    if not isfinite(found.high) or found.rounds < 2:
        return words.number(found.ratio)
    low, high = words.number(found.low), words.number(found.high)
    return f"{words.number(found.ratio)} [{low}, {high}]"


# --- survived -----------------------------------------------------------------------------------


def events(section: Section) -> list[str]:
    """What happened to the subjects, in the order of the measures."""
    return list(
        dict.fromkeys(
            measure.name.rpartition("-")[0]
            for measure in section.measures
            if measure.group == "survival" and hardest(section, measure)
        )
    )


def noticed(section: Section, event: str, where: str = "") -> dict[str, dict[str, Said]]:
    """Subject -> ``failed``, ``gap``, ``held`` -> what was found."""
    found: dict[str, dict[str, Said]] = {}
    for measure in section.measures:
        of, _, part = measure.name.rpartition("-")
        if measure.group != "survival" or of != event:
            continue
        for row in section.rows:
            if row.point.measure == measure.name and row.point.where == where:
                for name, each in verdicts.said(row, measure).items():
                    found.setdefault(name, {})[part] = each
    return found


def harm(parts: Mapping[str, Said]) -> list[str]:
    """``2.1 % of new connections failed``; empty when nothing was lost."""
    told = []
    if (failed := parts.get("failed")) and failed.failures:
        told.append(f"{lost_share(failed)} of new connections failed")
    if (held := parts.get("held")) and held.failures:
        told.append(f"{lost_share(held)} of held ones broke")
    return told


def lost_of(about: Said) -> float:
    """Share of all rounds: a median of 0 may hide what failed in the others."""
    return about.failures / max(about.attempts, 1)


def lost_share(about: Said) -> str:
    """The same in words."""
    return words.quantity(lost_of(about), "share", 2)


def _survived(section: Section, event: str) -> Headline:
    found = noticed(section, event)
    spared = [name for name, parts in found.items() if not harm(parts)]
    sentences = []
    if spared:
        times = _times([found[name] for name in spared])
        sentences.append(f"Nothing lost: {', '.join(spared)}{times}.")
    for name, parts in found.items():
        if lost := harm(parts):
            sentences.append(f"{name}: {words.listed(lost)}{_times([parts])}.")
    if both := [parts["both"].figure for parts in found.values() if "both" in parts]:
        sentences.append(f"Rules of both modes stood for {_range(both)}.")
    return Headline(words.SHORT.get(event, words.capital(event)), tuple(sentences))


#: Part of an event, a time that clients notice -> what it is called.
_TIMES: Mapping[str, str] = {"gap": "longest silence", "slowest": "slowest answered connection"}


def _times(everybody: Sequence[Mapping[str, Said]]) -> str:
    """``; longest silence 5 ms to 12 ms``; "" where none was read."""
    told = ""
    for part, name in _TIMES.items():
        if figures := [parts[part].figure for parts in everybody if part in parts]:
            told += f"; {name} {_range(figures)}"
    return told


def _range(values: Sequence[float]) -> str:
    low, high = (words.quantity(end, "s", 2) for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
