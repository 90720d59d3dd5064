"""What the same work costs: CPU and memory, of a subject's own processes and of the kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from kproxy.bench import words
from kproxy.bench.pictures import bars, sayings, style
from kproxy.bench.pictures.plan import Picture, rows_of
from kproxy.bench.results import Row, Unit
from kproxy.bench.verdicts import TWINS, Said

#: Own and the kernel's.
Pair = tuple[float, float]


def draw(canvas: style.Canvas, picture: Picture) -> None:
    """A panel of CPU for each measure, then one of memory."""
    rows = [row for row in rows_of(picture.chart, picture.section) if row.costs]
    names = [
        name
        for name in words.ordered({name for row in rows for name in row.costs})
        if name != TWINS[1]
    ]
    places = bars.places_of(names)
    panels = canvas.panels(
        1, len(rows) + 1, left=0.15, top=0.745, bottom=0.2, wspace=0.14, sharey=True
    )
    units = {measure.name: measure.unit for measure in picture.section.measures}
    for axes, row in zip(panels, rows):
        unit = units[row.point.measure]
        found = sayings.said(row, picture.section)
        bought = next(words.cost(each, 1.0, unit)[2] for each in row.costs.values())
        _panel(axes, found, places, _cpu(unit), "s")
        _title(axes, words.SHORT.get(row.point.measure, row.point.measure), f"CPU for {bought}")
    _panel(panels[-1], _most(rows, picture), places, _memory, "B")
    _title(panels[-1], "Memory", "while it carried them")
    panels[0].set_yticks([places[name] for name in names], [style.label(name) for name in names])
    panels[0].set_ylim(max(places.values(), default=0) + 0.6, -0.6)
    canvas.note(
        "Dark: the subject's own processes. Light: all else but client and server, which is the "
        "kernel and whatever other work the machine had. Medians of the rounds."
    )


def _cpu(unit: Unit) -> Callable[[Said], Pair | None]:
    def pair(about: Said) -> Pair | None:
        if about.cost is None:
            return None
        own, kernel, _ = words.cost(about.cost, about.figure, unit)
        return own, kernel

    return pair


def _memory(about: Said) -> Pair | None:
    return None if about.cost is None else (about.cost.memory, about.cost.kernel_memory)


def _most(rows: Sequence[Row], picture: Picture) -> dict[str, Said]:
    """Of each subject the row in which it held most."""
    found: dict[str, Said] = {}
    for row in rows:
        for name, about in sayings.said(row, picture.section).items():
            if about.cost is None:
                continue
            known = found.get(name)
            if known is None or known.cost is None or known.cost.memory < about.cost.memory:
                found[name] = about
    return found


def _title(axes: Axes, title: str, under: str) -> None:
    axes.set_title(title, loc="left", pad=31, fontsize=15.5)
    axes.annotate(
        under,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 9),
        textcoords="offset points",
        fontsize=13,
        color=style.FAINT,
    )


def _panel(
    axes: Axes,
    found: Mapping[str, Said],
    places: Mapping[str, float],
    pair_of: Callable[[Said], Pair | None],
    unit: Unit,
) -> None:
    pairs = {
        name: pair
        for name, about in found.items()
        # What failed has done less for its CPU seconds; the memory it held it held.
        if (unit == "B" or not sayings.failed(about)) and (pair := pair_of(about)) is not None
    }
    longest = max((sum(pairs[name]) for name in pairs if name in places), default=0.0) or 1.0
    for name, place in places.items():
        if name in pairs:
            _bar(axes, name, place, pairs[name], unit)
        else:
            bars.instead(axes, longest * 0.015, place, found.get(name))
    axes.set_xlim(0, longest * 1.42)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    style.quantities(axes.xaxis, unit)
    axes.grid(True, axis="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _bar(axes: Axes, name: str, place: float, pair: Pair, unit: Unit) -> None:
    own, kernel = pair
    colour = style.look(name).colour
    axes.barh(place, own, height=0.66, color=colour, zorder=3)
    axes.barh(place, kernel, left=own, height=0.66, facecolor=(colour, 0.35), zorder=3)
    bars.figure_at_edge(axes, place, words.quantity(own + kernel, unit, 2))
