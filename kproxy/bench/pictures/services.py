"""The two charts over the number of services: the first packet, and programming."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kproxy.bench import words
from kproxy.bench.pictures import lines, sayings, style
from kproxy.bench.pictures.plan import Picture, rows_of
from kproxy.bench.results import Row
from kproxy.bench.verdicts import TWINS

#: Place of a point -> its panel's title, in the order of panels.
_PLACES: Mapping[str, str] = {
    "first": "To the first service",
    "last": "To the last service",
    "moved": "An endpoint moves",
    "new": "A service is new",
    "": "To a service",
}


def places(canvas: style.Canvas, picture: Picture) -> None:
    """One measure, one panel a place, on one scale."""
    rows = rows_of(picture.chart, picture.section)
    shown = [where for where in _PLACES if any(row.point.where == where for row in rows)]
    panels = [
        lines.lines_of([row for row in rows if row.point.where == where], picture.section)
        for where in shown
    ]
    _draw(canvas, [_PLACES[where] for where in shown], panels, rows, across=True)


def programming(canvas: style.Canvas, picture: Picture) -> None:
    """One panel a measure, each with a scale of its own: a cold sync is seconds, a change none."""
    rows = rows_of(picture.chart, picture.section)
    names = [name for name in picture.chart.measures if any(r.point.measure == name for r in rows)]
    panels = [
        lines.lines_of([row for row in rows if row.point.measure == name], picture.section)
        for name in names
    ]
    _draw(canvas, [words.SHORT[name] for name in names], panels, rows, across=False)


def _draw(
    canvas: style.Canvas,
    titles: list[str],
    panels: list[lines.Lines],
    rows: Sequence[Row],
    *,
    across: bool,
) -> None:
    """``across``: beside each other and on one scale."""
    deep = 1 if across or len(panels) < 4 else 2
    columns = -(-len(panels) // deep)
    sizes = sorted({at for panel in panels for points in panel.values() for at in points})
    axes = canvas.panels(
        deep,
        columns,
        left=0.085 if columns < 3 else 0.075,
        right=0.845 if columns < 3 else 0.86,
        wspace=0.66 if columns < 3 else 1.2,
        hspace=0.42,
        bottom=0.185,
        sharex=True,
    )
    for each in axes[len(panels) :]:
        each.set_visible(False)
    blamed: list[str] = []
    for each, title, panel in zip(axes, titles, panels):
        lines.draw(each, panel, floor=TWINS[0])
        lines.finish(each, panels if across else [panel], sizes=sizes)
        each.set_title(title, loc="left", fontsize=16 if columns < 3 else 15)
        lines.crosses(each, panel)
        style.name_ends(
            each, lines.ends(each, panel), size=14 if deep == 1 and columns < 3 else 12.5
        )
        blamed += [f"{title}: {said}" for said in lines.blamed(panel)]
    for each in axes[-columns:]:
        each.set_xlabel("services")
    if blamed:
        canvas.note(f"✕ {'; '.join(blamed)}.")
    canvas.note(f"Lines: medians; {sayings.spread_words('bands', rows)}. Both axes logarithmic.")
