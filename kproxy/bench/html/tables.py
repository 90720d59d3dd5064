"""The report's tables: every figure with interval, ratio, verdict and cost. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from kproxy.bench import headlines, verdicts, words
from kproxy.bench.html.parts import Html, joined, table, tag
from kproxy.bench.results import Measure, Row, Section
from kproxy.bench.verdicts import Said, Word

#: Word -> class of its cell.
CLASSES: Mapping[Word, str] = {
    Word.BETTER: "better",
    Word.WORSE: "worse",
    Word.FAILED: "failed",
    Word.BASE: "base",
}

#: Word -> what a table says, where that is another word: "worse" of a rate is slower.
_SAID: Mapping[Word, str] = {Word.BETTER: "faster", Word.WORSE: "slower"}

DASH = "–"


def rows_of(section: Section, measure: Measure) -> list[Row]:
    return [row for row in section.rows if row.point.measure == measure.name and row.rounds]


# --- one measure --------------------------------------------------------------------------------

_Cell = Callable[[Said, Measure], str]


def _figure(about: Said, measure: Measure) -> str:
    return DASH if about.word is Word.FAILED else words.quantity(about.figure, measure.unit)


def _bounds(about: Said, measure: Measure) -> str:
    """Of the median."""
    if about.word is Word.FAILED or about.rounds < 2 or not about.level:
        return ""
    low, high = (words.quantity(end, measure.unit) for end in (about.lowest, about.highest))
    return f"{low} to {high}"


def _ratio(about: Said, measure: Measure) -> str:
    return "" if about.word is Word.FAILED else headlines.ratio_words(about)


def _verdict(about: Said, measure: Measure) -> str:
    if about.word is Word.ALONE:
        return ""
    return _SAID.get(about.word, about.text)


def _rounds(about: Said, measure: Measure) -> str:
    return words.count(about.rounds)


def _cpu(which: int) -> _Cell:
    def cell(about: Said, measure: Measure) -> str:
        if about.cost is None or about.word is Word.FAILED:
            return ""
        spent = words.cost(about.cost, about.figure, measure.unit)[which]
        assert isinstance(spent, float)
        return words.quantity(spent, "s", 2) if spent else ""

    return cell


def _memory(which: str) -> _Cell:
    def cell(about: Said, measure: Measure) -> str:
        held = getattr(about.cost, which) if about.cost is not None else 0
        return words.quantity(held, "B", 2) if held else ""

    return cell


def _bought(measure: Measure, found: Iterable[Said]) -> str:
    """What CPU seconds are given for."""
    each = next((each for each in found if each.cost is not None), None)
    if each is None or each.cost is None:
        return ""
    return words.cost(each.cost, each.figure, measure.unit)[2]


def measured(section: Section, measure: Measure) -> Html:
    """All points of a measure; a column that would be empty is left out."""
    rows = rows_of(section, measure)
    found = [verdicts.said(row, measure) for row in rows]
    everybody = [each for said in found for each in said.values()]
    base = words.listed(dict.fromkeys(row.base for row in rows if row.base))
    bought = _bought(measure, everybody)
    columns: list[tuple[str, _Cell, str]] = [
        ("median", _figure, "figure"),
        (f"its interval{_levels(everybody)}", _bounds, "figure"),
        (f"ratio to {base}{_ratio_levels(everybody)}", _ratio, "figure"),
        ("verdict", _verdict, "word"),
        ("rounds", _rounds, "figure"),
        (f"CPU for {bought}: its own", _cpu(0), "figure"),
        ("CPU: kernel's", _cpu(1), "figure"),
        ("memory: its own", _memory("memory"), "figure"),
        ("memory: kernel's", _memory("kernel_memory"), "figure"),
    ]
    shown = [
        (head, cell, class_)
        for head, cell, class_ in columns
        if any(cell(each, measure) for each in everybody)
    ]
    bodies = [_body(row, measure, said, shown) for row, said in zip(rows, found)]
    heads = ["subject", *(head for head, _, _ in shown)]
    return table(_caption(measure), heads, bodies, class_="figures")


def _caption(measure: Measure) -> Html:
    how = words.HOW.get(measure.name)
    return joined(
        tag("strong", words.capital(measure.title)),
        f" – {words.better(measure.better)}. {how or ''}",
    )


def _levels(found: Iterable[Said]) -> str:
    return _level_words(min((each.level for each in found), default=0.0))


def _ratio_levels(found: Iterable[Said]) -> str:
    levels = [each.comparison.level for each in found if each.comparison is not None]
    return _level_words(min(levels, default=0.0))


def _level_words(level: float) -> str:
    """``" [99.9 %]"``; "" when there is none."""
    return f" [{100 * level:.3g}\u00a0%]" if level else ""


def _body(
    row: Row,
    measure: Measure,
    said: Mapping[str, Said],
    columns: Sequence[tuple[str, _Cell, str]],
) -> Html:
    """A point: its own line where a measure has several, then a line a subject."""
    lines = []
    if point := headlines.point_words(row, measure):
        lines.append(
            tag("tr", tag("th", point, colspan=len(columns) + 1, scope="rowgroup"), class_="point")
        )
    lines += [
        tag(
            "tr",
            tag("th", name, scope="row"),
            [_cell(cell(about, measure), class_, about) for _, cell, class_ in columns],
        )
        for name, about in said.items()
    ]
    return tag("tbody", lines)


def _cell(content: str, class_: str, about: Said) -> Html:
    if class_ == "word":
        class_ = f"word {CLASSES.get(about.word, '')}".strip()
    return tag("td", content, class_=class_)


# --- survival -----------------------------------------------------------------------------------


#: Part of survival, a time besides the silence -> its head.
_TIMES: Mapping[str, str] = {
    "slowest": "slowest answered, median",
    "both": "rules of both modes, median",
}


def survived(section: Section) -> list[Html]:
    """One table of all events, and one of all mode switches where each was measured."""
    events = headlines.events(section)
    if not events:
        return []
    noticed = {event: headlines.noticed(section, event) for event in events}
    everything = [parts for of_event in noticed.values() for parts in of_event.values()]
    gaps = [parts["gap"] for parts in everything if "gap" in parts]
    # Results of earlier versions have not all of them.
    times = [part for part in _TIMES if any(part in parts for parts in everything)]
    heads = (
        "subject",
        "new connections that failed",
        "longest silence, median",
        f"its interval{_levels(gaps)}",
        *(_TIMES[part] for part in times),
        "held connections that broke",
        "rounds",
    )
    bodies = [
        tag(
            "tbody",
            tag(
                "tr",
                tag("th", _event_title(event), colspan=len(heads), scope="rowgroup"),
                class_="point",
            ),
            [_noticed(name, parts, times) for name, parts in of_event.items()],
        )
        for event, of_event in noticed.items()
    ]
    caption = joined(
        tag("strong", "What clients notice"),
        " – lower is better. Failures are those of all rounds together.",
    )
    return [table(caption, heads, bodies, class_="figures"), *_switches(section)]


def _event_title(event: str) -> str:
    name, how = words.SHORT.get(event, words.capital(event)), words.HOW.get(event, "")
    return f"{name}. {how}" if how else name


def _noticed(name: str, parts: Mapping[str, Said], times: Iterable[str]) -> Html:
    failed, gap, held = (parts.get(part) for part in ("failed", "gap", "held"))
    low, high = (
        (words.quantity(end, "s", 2) for end in (gap.lowest, gap.highest)) if gap else ("", "")
    )
    return tag(
        "tr",
        tag("th", name, scope="row"),
        _lost(failed),
        _time(gap),
        tag("td", f"{low} to {high}" if gap and gap.rounds > 1 else "", class_="figure"),
        [_time(parts.get(part)) for part in times],
        _lost(held),
        tag("td", words.count(max(each.rounds for each in parts.values())), class_="figure"),
    )


def _time(about: Said | None) -> Html:
    return tag("td", words.quantity(about.figure, "s", 2) if about else "", class_="figure")


def _lost(about: Said | None) -> Html:
    if about is None:
        return tag("td", "", class_="figure")
    if not about.failures:
        return tag("td", f"0 of {words.count(about.attempts)}", class_="figure")
    said = f"{words.count(about.failures)} of {words.count(about.attempts)}"
    return tag("td", f"{said} ({headlines.lost_share(about)})", class_="figure failed")


def _switches(section: Section) -> list[Html]:
    """From whom to whom: longest silence, and failures where there were any."""
    targets = words.ordered(
        {
            row.point.where
            for row in section.rows
            if row.point.measure.startswith("switch-") and row.point.where
        }
    )
    if not targets:
        return []
    to = {target: headlines.noticed(section, "switch", target) for target in targets}
    sources = words.ordered({source for found in to.values() for source in found})
    body = tag(
        "tbody",
        [
            tag(
                "tr",
                tag("th", source, scope="row"),
                [_switch(to[target].get(source)) for target in targets],
            )
            for source in sources
        ],
    )
    caption = joined(
        tag("strong", "Every mode switch"),
        " – from the mode of the line to that of the column: longest silence, for how long the "
        "rules of both stood, medians of the rounds; and what was lost.",
    )
    return [table(caption, ["from \\ to", *targets], [body], class_="figures")]


def _switch(parts: Mapping[str, Said] | None) -> Html:
    if not parts:
        return tag("td", DASH, class_="figure")
    gap, both, lost = parts.get("gap"), parts.get("both"), headlines.harm(parts)
    told = [words.quantity(gap.figure, "s", 2)] if gap else []
    told += [f"both {words.quantity(both.figure, 's', 2)}"] if both else []
    told += [words.listed(lost)] if lost else []
    return tag("td", "; ".join(told), class_="figure failed" if lost else "figure")
