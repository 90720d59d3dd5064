"""The report's tables about all measures: at a glance, how much noise, who took part. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from kproxy.bench import headlines, verdicts, words
from kproxy.bench.html.parts import Html, joined, table, tag
from kproxy.bench.html.tables import CLASSES, DASH, rows_of
from kproxy.bench.results import Measure, Section
from kproxy.bench.verdicts import TWINS, Said, Word

# --- all measures at once -----------------------------------------------------------------------


#: Verdicts that take no side -> how a cell says so.
_MARKS: Mapping[Word, str] = {Word.NONE: "≈", Word.NOISE: "~", Word.FEW: "?"}


def glance(section: Section) -> Html | None:
    """The hardest point of each compared measure: figures, and ratios to the base."""
    chosen = [
        (measure, row)
        for measure in section.measures
        if measure.group != "survival" and (row := headlines.hardest(section, measure))
    ]
    if not chosen:
        return None
    names = words.ordered({name for _, row in chosen for name in headlines.subjects_of(row)})
    names = [name for name in names if name != TWINS[1]]
    lines = []
    for measure, row in chosen:
        said = verdicts.said(row, measure)
        point = headlines.point_words(row, measure)
        title = f"{words.SHORT.get(measure.name) or words.capital(measure.title)}"
        lines.append(
            tag(
                "tr",
                tag("th", f"{title} ({point})" if point else title, scope="row"),
                [_glimpse(said.get(name), measure) for name in names],
            )
        )
    caption = joined(
        tag("strong", "At a glance"),
        " – medians, and below them ratios to the base; measures with several points by their "
        "hardest. ",
        ", ".join(f"{mark}: {word}" for word, mark in _MARKS.items()),
        ".",
    )
    return table(caption, ["", *names], [tag("tbody", lines)], class_="glance")


def _glimpse(about: Said | None, measure: Measure) -> Html:
    if about is None:
        return tag("td", DASH, class_="figure")
    class_ = f"figure {CLASSES.get(about.word, '')}".strip()
    if about.word is Word.FAILED:
        return tag("td", about.text, class_=class_)
    figure = tag("span", words.quantity(about.figure, measure.unit), class_="value")
    ratio = about.comparison.ratio if about.comparison is not None else None
    said = f"×{words.number(ratio)}" if ratio is not None and isfinite(ratio) else ""
    if about.word is Word.BASE:
        said = "base"
    mark = _MARKS.get(about.word)
    marked = ["\u00a0", tag("abbr", mark, title=str(about.word))] if mark else []
    return tag("td", figure, tag("small", said, marked) if said else "", class_=class_)


# --- who, where, how much noise -----------------------------------------------------------------


def noise(section: Section) -> Html | None:
    """Direct routing against itself, for each row that has both."""
    lines = []
    for measure in section.measures:
        for row in rows_of(section, measure):
            said = verdicts.said(row, measure)
            again = said.get(TWINS[1])
            if again is None or again.comparison is None:
                continue
            point = headlines.point_words(row, measure)
            title = words.capital(measure.title)
            floor = f"{100 * (again.floor - 1):.2g} %" if again.floor else "too few rounds"
            lines.append(
                tag(
                    "tr",
                    tag("th", f"{title} ({point})" if point else title, scope="row"),
                    tag("td", words.quantity(said[TWINS[0]].figure, measure.unit), class_="figure"),
                    tag("td", headlines.ratio_words(again), class_="figure"),
                    tag("td", floor, class_="figure"),
                )
            )
    if not lines:
        return None
    caption = joined(
        tag("strong", "Noise floor"),
        " – direct routing measured twice in each round. A difference smaller than the floor means "
        "nothing.",
    )
    heads = ("measure", TWINS[0], "ratio of the second to the first", "floor")
    return table(caption, heads, [tag("tbody", lines)])


def subjects(section: Section) -> Html:
    """Who was measured."""
    lines = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            tag("td", words.SUBJECTS.get(name, "a peer of the user's own")),
            tag("td", section.subjects[name]),
        )
        for name in words.ordered(section.subjects)
    ]
    caption = tag("strong", "Who was measured")
    return table(caption, ("subject", "what it is", "version"), [tag("tbody", lines)])


def absent(section: Section) -> Html | None:
    """Who has no figure of what, and why: those with the same reason in one line."""
    names = [measure.name for measure in section.measures]
    measures: dict[tuple[str, str], list[str]] = {}
    for each in section.absent:
        measures.setdefault((each.subject, each.reason), []).append(each.measure)
    subjects: dict[tuple[str, str], list[str]] = {}
    for (subject, reason), of in measures.items():
        subjects.setdefault((_of(of, names), reason), []).append(subject)
    lines = [
        tag(
            "tr",
            tag("th", ", ".join(words.ordered(who)), scope="row"),
            tag("td", of_what),
            tag("td", reason),
        )
        for (of_what, reason), who in subjects.items()
    ]
    if not lines:
        return None
    caption = tag("strong", "What was not measured, and why")
    return table(caption, ("subjects", "measures", "reason"), [tag("tbody", lines)])


def _of(measures: Sequence[str], every: Sequence[str]) -> str:
    """Names of measures; all that are read of one event as one."""
    if "" in measures or set(measures) >= set(every):
        return "all"
    return ", ".join(dict.fromkeys(_event(name, measures, every) or name for name in measures))


def _event(name: str, measures: Sequence[str], every: Sequence[str]) -> str:
    """That a measure is read of, when none of its measures was; else ""."""
    event, _, part = name.rpartition("-")
    if part not in words.SURVIVAL:
        return ""
    of_event = {f"{event}-{part}" for part in words.SURVIVAL} & set(every)
    return event if of_event <= set(measures) else ""
