"""Bars of rates beside direct routing: one panel a measure, one line a subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from kproxy.bench import verdicts, words
from kproxy.bench.pictures import sayings, style
from kproxy.bench.pictures.plan import Picture, rows_of
from kproxy.bench.results import Measure, Row
from kproxy.bench.verdicts import TWINS, Said, Word

#: Peers stand a little apart from the modes.
_APART = 0.45

#: Width of a panel beside its longest bar: the figures' column is right of it.
_ROOM = 1.5

#: Fewest places for bars, less one.
_SLOTS = 4


def draw(canvas: style.Canvas, picture: Picture) -> None:
    """All panels of the chart; ratios where a row has a base, else figures."""
    rows = rows_of(picture.chart, picture.section)
    measures = {measure.name: measure for measure in picture.section.measures}
    absent = words.missing(picture.section, [row.point.measure for row in rows])
    names = [
        name for name in words.ordered(sayings.subjects(rows) | set(absent)) if name not in TWINS
    ]
    places = places_of(names)
    panels = canvas.panels(1, len(rows), left=0.15, top=0.745, bottom=0.2, wspace=0.14, sharey=True)
    for axes, row in zip(panels, rows):
        found = sayings.said(row, picture.section)
        _panel(axes, row, measures[row.point.measure], found, places)
    panels[0].set_yticks([places[name] for name in names], [style.label(name) for name in names])
    # A few bars alone would be as thick as walls.
    panels[0].set_ylim(max([*places.values(), _SLOTS]) + 0.6, -0.6)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    what = "ratio to direct routing in the same round" if any(r.base for r in rows) else "medians"
    canvas.note(f"Bars: {what}; {sayings.spread_words('whiskers', rows)}.")
    if any(verdicts.floor(row) for row in rows):
        canvas.note("Grey band: direct routing against itself, the noise.")


def places_of(names: Sequence[str]) -> dict[str, float]:
    """Where each subject's bar is, peers after a gap."""
    places: dict[str, float] = {}
    place = 0.0
    for before, name in zip(["", *names], names):
        if before and style.look(name).kind != style.look(before).kind:
            place += _APART
        places[name] = place
        place += 1
    return places


def _panel(
    axes: Axes,
    row: Row,
    measure: Measure,
    found: Mapping[str, Said],
    places: Mapping[str, float],
) -> None:
    drawn = {name: _length(about, row) for name, about in found.items() if name in places}
    # One wide whisker must not make all bars short: beyond this it is cut off, with an arrow.
    ends = [min(max(each), each[0] * 1.5) for each in drawn.values() if each is not None]
    longest = max([*ends, 1.0 if row.base else 0.0]) or 1.0
    for name, place in places.items():
        length = drawn.get(name)
        if length is None:
            instead(axes, longest * 0.015, place, found.get(name))
        else:
            _bar(axes, name, place, length, longest)
            figure_at_edge(axes, place, words.quantity(found[name].figure, measure.unit))
    # The title, and under it whom the bars are measured by.
    title = words.SHORT.get(measure.name, words.capital(measure.title))
    axes.set_title(title, loc="left", pad=31, fontsize=15.5)
    axes.set_xlim(0, longest * _ROOM)
    if row.base:
        _floor(axes, found, row, measure)
        axes.xaxis.set_major_locator(MultipleLocator(0.5 if longest < 3 else 1))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel(f"ratio to {row.base}", loc="left", fontsize=13, color=style.FAINT)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
        style.quantities(axes.xaxis, measure.unit)
    axes.grid(True, axis="x")


def _length(about: Said, row: Row) -> tuple[float, float, float] | None:
    """Length of a bar and ends of its whisker; None: there is no figure of speed."""
    if about.word is Word.FAILED:
        return None
    return sayings.ratio(about) if row.base else (about.figure, *sayings.bounds(about))


def instead(axes: Axes, start: float, place: float, about: Said | None) -> None:
    """In place of a bar."""
    said, colour = ("not measured", style.FAINT) if about is None else (about.text, style.ALARM)
    axes.text(
        start,
        place,
        said if about is None else f"✕ {said}",
        va="center",
        fontsize=13,
        color=colour,
        style="italic" if about is None else "normal",
        zorder=6,
    )


def _bar(
    axes: Axes, name: str, place: float, length: tuple[float, float, float], longest: float
) -> None:
    """The bar with its whisker."""
    look = style.look(name)
    value, low, high = length
    peer = look.kind == "peer"
    axes.barh(
        place,
        value,
        height=0.66,
        facecolor=(look.colour, 0.35 if peer else 0.95),
        hatch="///" if peer else None,
        edgecolor=look.colour,
        linewidth=0,
        zorder=3,
    )
    if low == high:
        return
    shown = min(high, longest)
    axes.plot([low, shown], [place, place], color=style.INK, linewidth=1.8, zorder=5)
    for end in {low, shown} - ({shown} if high > longest else set()):
        axes.plot(
            [end, end], [place - 0.13, place + 0.13], color=style.INK, linewidth=1.8, zorder=5
        )
    if high > longest:
        axes.plot([shown], [place], marker=">", markersize=8, color=style.INK, zorder=5)


def figure_at_edge(axes: Axes, place: float, figure: str) -> None:
    """All figures of a panel stand in a column at its right."""
    axes.annotate(
        figure,
        (1, place),
        xycoords=axes.get_yaxis_transform(),
        ha="right",
        va="center",
        fontsize=14,
        fontweight="bold",
        zorder=6,
    )


def _floor(axes: Axes, found: Mapping[str, Said], row: Row, measure: Measure) -> None:
    """The base: a line at 1, as wide as its noise."""
    colour = style.look(row.base).colour
    base = found[row.base]
    if base.floor is not None:
        axes.axvspan(1 / base.floor, base.floor, color=colour, alpha=0.25, linewidth=0, zorder=1)
    axes.axvline(1, color=colour, linewidth=2, zorder=2)
    figure = base.text if base.word is Word.FAILED else words.quantity(base.figure, measure.unit)
    axes.annotate(
        f"{row.base} {figure}",
        (1, 1),
        xycoords=axes.get_xaxis_transform(),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        fontsize=13,
        color=style.FAINT,
    )
