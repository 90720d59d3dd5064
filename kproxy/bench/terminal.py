"""Results as text: a table for each point of a measure, in at most 100 columns. Pure.

A line is a subject; where its figure would be stands why there is none. Survival has a table for
each event instead, with what is read of it side by side: nothing is compared with a base there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isfinite

from kproxy.bench import verdicts, words
from kproxy.bench.lines import Columns, Line, wrapped
from kproxy.bench.results import Absent, Measure, Point, Results, Row, Section
from kproxy.bench.rounds import VERDICT_LEVEL, needed
from kproxy.bench.verdicts import FLOOR_LEVEL, Said, Word

#: Word -> how a terminal may show it.
_STYLES: Mapping[Word, str] = {
    Word.BETTER: "green",
    Word.WORSE: "yellow",
    Word.FAILED: "bold red",
}

#: Processors with other work that a reader has to know of.
MUCH = 0.3

#: What the columns of costs are.
_LEGEND = (
    "CPU: processors that the subject's own processes kept busy; kernel: that all else did but "
    "client and server; memory: of its processes (PSS), and what the kernel held more."
)


def shown(results: Results) -> Iterator[Line]:
    """All of it, section by section, group by group."""
    if results.partial:
        yield from wrapped(f"Partial: {results.partial}. What follows are whole rounds.", "bold")
        yield Line()
    for section in results.sections:
        yield from _section(section)
    if any(row.costs for section in results.sections for row in section.rows):
        yield from wrapped(_LEGEND, "dim")
    yield from wrapped(_where(results))


def _where(results: Results) -> str:
    machine = results.fingerprint
    memory = words.quantity(machine.memory, "B", 2)
    return (
        f"kproxy {results.kproxy}, {results.date}, profile {results.profile}; {machine.cpu}, "
        f"{words.plural(machine.cores, 'core')}, {memory}, Linux {machine.kernel}; "
        f"load {machine.load:.2f} before it began"
    )


def _section(section: Section) -> Iterator[Line]:
    took = f"measured in {words.duration(section.seconds)}"
    yield Line(f"{words.kernel_name(section)} · {took}", "bold")
    for note in section.notes:
        yield from wrapped(note, "dim")
    busy = verdicts.foreign(section.rows)
    if busy > MUCH:
        yield from wrapped(
            f"Other work kept {busy:.1f} processors busy meanwhile: the figures are of that as "
            "well. Run again when the machine is quiet.",
            "bold yellow",
        )
    for group in dict.fromkeys(measure.group for measure in section.measures):
        yield Line()
        yield from _group(section, group)
    yield Line()


def _group(section: Section, group: str) -> Iterator[Line]:
    """Its head says how many rounds there are and what they allow to be said."""
    measures = {each.name: each for each in section.measures if each.group == group}
    rows = [row for row in section.rows if row.point.measure in measures]
    yield Line(f"{words.GROUPS[group][0]}: {afforded(rows)}", "bold")
    if group == "survival":
        yield from _events(rows, measures)
    else:
        for row in rows:
            yield Line()
            yield from _row(row, measures[row.point.measure])
    missing = list(_missing(section, measures))
    if missing:
        yield Line()
        yield from missing


def afforded(rows: Sequence[Row]) -> str:
    """How many rounds rows have, and how sure they make."""
    counts = [count for row in rows for count in verdicts.counted(row)]
    if not counts or not max(counts):
        return "no round"
    fewest, most = min(counts), max(counts)
    rounds = words.plural(most, "round") if fewest == most else f"{fewest} to {most} rounds"
    if not any(row.base for row in rows) and most < needed(FLOOR_LEVEL):
        return rounds
    level = verdicts.level_of(fewest)
    if level >= VERDICT_LEVEL:
        return f"{rounds}, intervals hold {words.percent(level)}"
    verdict = f"verdicts take {needed(VERDICT_LEVEL)}"
    if most < needed(FLOOR_LEVEL):
        return f"{rounds}, too few for intervals; {verdict}"
    return f"{rounds}, intervals hold {100 * level:.3g} %; {verdict}"


# --- rows ---------------------------------------------------------------------------------------

#: Subject, median, ratio, verdict, CPU, kernel, memory.
_COLUMNS = Columns((16, 11, 25, 22, 6, 6, 8), right=(1, 4, 5, 6))


def _row(row: Row, measure: Measure) -> Iterator[Line]:
    said = verdicts.said(row, measure)
    noise = verdicts.floor(row)
    yield from wrapped(title(measure, row.point) + _floor(noise), "underline")
    base = f"to {row.base}" if row.base else ""
    costs = ("CPU", "kernel", "memory") if row.costs else ("", "", "")
    yield _COLUMNS.line(("", "median", base, "", *costs), "dim")
    for each in said.values():
        yield _COLUMNS.line(_subject(each, measure), _STYLES.get(each.word, ""))


def title(measure: Measure, point: Point) -> str:
    """A row's: ``cold-sync, 1,000 services: all services, from nothing; lower is better``."""
    parts = [measure.name]
    if point.at is not None:
        noun = measure.axis.removesuffix("s") if point.at == 1 else measure.axis
        parts.append(f"{words.count(point.at)} {noun}")
    parts += [point.where] if point.where else []
    return f"{', '.join(parts)}: {measure.title}; {words.better(measure.better)}"


def _floor(noise: float | None) -> str:
    return f"; noise floor {words.number(100 * (noise - 1), 2)} %" if noise else ""


def _subject(said: Said, measure: Measure) -> tuple[str, ...]:
    figure = "–" if said.word is Word.FAILED else words.quantity(said.figure, measure.unit)
    text = "" if said.word in (Word.BASE, Word.ALONE) else said.text
    return said.subject, figure, _ratio(said, measure), text, *_cost(said)


def _ratio(said: Said, measure: Measure) -> str:
    """To the base with its interval; the figure's own interval where there is no base."""
    if said.word in (Word.FAILED, Word.BASE):
        return ""
    sure = said.rounds >= needed(FLOOR_LEVEL)
    compared = said.comparison
    if compared is None:
        ends = (words.quantity(end, measure.unit) for end in (said.lowest, said.highest))
        return f"[{', '.join(ends)}]" if sure else ""
    ratio = words.number(compared.ratio)
    if not sure or not isfinite(compared.high):
        return ratio
    return f"{ratio} [{words.number(compared.low)}, {words.number(compared.high)}]"


def _cost(said: Said) -> tuple[str, str, str]:
    cost = said.cost
    if cost is None:
        return "", "", ""
    memory = cost.memory + cost.kernel_memory
    return (
        _processors(cost.proxy, cost.seconds),
        _processors(cost.kernel, cost.seconds),
        words.quantity(memory, "B", 2) if memory else "",
    )


def _processors(spent: float, seconds: float) -> str:
    return f"{spent / seconds:.2f}" if seconds and spent else ""


# --- events -------------------------------------------------------------------------------------

#: Subject; share that failed and how many; gap and its interval; slowest; share that lives on and
#: how many do not.
_EVENT = Columns((16, 7, 17, 7, 17, 8, 7, 14), right=(1, 3, 5, 6))
_EVENT_HEADS = ("", "failed", "(of new)", "silence", "", "slowest", "live on", "(lost of held)")


def _events(rows: Sequence[Row], measures: Mapping[str, Measure]) -> Iterator[Line]:
    """A table for each event (and mode that is switched to), with what is read of it."""
    events: dict[tuple[str, str], dict[str, dict[str, Said]]] = {}
    for row in rows:
        event, _, what = row.point.measure.rpartition("-")
        said = verdicts.said(row, measures[row.point.measure])
        events.setdefault((event, row.point.where), {})[what] = said
    for (event, where), read in events.items():
        name = next(m.title for m in measures.values() if m.name.startswith(f"{event}-"))
        yield Line()
        to = f", to {where}" if where else ""
        yield from wrapped(f"{event}: {name.partition(':')[0]}{to}", "underline")
        yield _EVENT.line(_EVENT_HEADS, "dim")
        for subject in dict.fromkeys(name for said in read.values() for name in said):
            yield _EVENT.line(
                (
                    subject,
                    *_share(read.get("failed", {}).get(subject)),
                    *_gap(read.get("gap", {}).get(subject)),
                    _time(read.get("slowest", {}).get(subject)),
                    *_share(read.get("held", {}).get(subject)),
                )
            )
        if both := read.get("both"):
            told = ", ".join(f"{subject} {_time(said)}" for subject, said in both.items())
            yield from wrapped(f"Rules of both modes stood, from: {told}")


def _share(said: Said | None) -> tuple[str, str]:
    """The median, and how many it is of how many in all rounds: a median hides what happened in
    fewer than half of them."""
    if said is None:
        return "", ""
    lost = f"({said.failures:,} of {said.attempts:,})" if said.failures else ""
    return words.quantity(said.figure, "share"), lost


def _gap(said: Said | None) -> tuple[str, str]:
    if said is None:
        return "", ""
    interval = ""
    if said.rounds > 1:
        interval = " – ".join(words.quantity(end, "s", 2) for end in (said.lowest, said.highest))
    return _time(said), f"[{interval}]" if interval else ""


def _time(said: Said | None) -> str:
    return "" if said is None else words.quantity(said.figure, "s", 2)


# --- who is not there ---------------------------------------------------------------------------


def _missing(section: Section, measures: Iterable[str]) -> Iterator[Line]:
    """Who has no figure and why: one line for each reason."""
    wanted = list(measures)
    reasons: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for subject, absents in words.missing(section, wanted).items():
        for reason, of in _by_reason(absents, wanted).items():
            key = (reason, () if set(of) >= set(wanted) else of)
            reasons.setdefault(key, []).append(subject)
    for (reason, of), subjects in reasons.items():
        where = f" ({', '.join(of)})" if of else ""
        yield from wrapped(f"– {', '.join(subjects)}{where}: {reason}", "dim")


def _by_reason(absents: Sequence[Absent], wanted: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for each in absents:
        of = (each.measure,) if each.measure else tuple(wanted)
        found[each.reason] = (*found.get(each.reason, ()), *of)
    return found
