"""What clients notice: for each event and mode the longest silence as a bar, failures in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from kproxy.bench import headlines, words
from kproxy.bench.pictures import sayings, style
from kproxy.bench.pictures.plan import EVENTS, Picture, rows_of
from kproxy.bench.verdicts import Said

#: Subject -> part ("failed", "gap", "slowest", "held") -> what was found.
Noticed = Mapping[str, Mapping[str, Said]]


def draw(canvas: style.Canvas, picture: Picture) -> None:
    """A panel for each event, a line for each subject."""
    rows = rows_of(picture.chart, picture.section)
    events: dict[str, dict[str, dict[str, Said]]] = {}
    for row in rows:
        event, _, part = row.point.measure.rpartition("-")
        for name, about in sayings.said(row, picture.section).items():
            events.setdefault(event, {}).setdefault(name, {})[part] = about
    names = words.ordered({name for noticed in events.values() for name in noticed})
    times = [
        parts[part].figure
        for noticed in events.values()
        for parts in noticed.values()
        for part in ("gap", "slowest")
        if part in parts
    ]
    scale = _scale(times)
    panels = canvas.panels(1, len(events), left=0.14, right=0.99, wspace=0.05, sharey=True)
    for axes, event in zip(panels, [event for event in EVENTS if event in events]):
        _panel(axes, words.SHORT[event], events[event], names, scale)
        _ticks(axes, scale, step=2 if len(events) > 3 else 1)
    panels[0].set_yticks(range(len(names)), [style.label(name) for name in names])
    # A few bars alone would be as thick as walls.
    panels[0].set_ylim(max(len(names), 5) - 0.45, -0.62)
    canvas.note(
        "Bars: longest time in which no client was answered; lines: the slowest new connection "
        "that was. Medians of the rounds, logarithmic. Under them, of all rounds: new connections "
        "that failed, held ones that broke."
    )


def _scale(times: Sequence[float]) -> tuple[float, float]:
    """Decades that hold all bars; a bar on a logarithmic axis begins at a decade, not at 0."""
    shown = [each for each in times if each > 0] or [1e-3]
    return 10.0 ** math.floor(math.log10(min(shown) / 1.5)), max(shown)


def _panel(
    axes: Axes, title: str, noticed: Noticed, names: Sequence[str], scale: tuple[float, float]
) -> None:
    low, high = scale
    axes.set_xscale("log")
    # Room for the words right of the longest bar.
    axes.set_xlim(low, high * (high / low) ** 0.75)
    for place, name in enumerate(names):
        parts = noticed.get(name)
        if parts is None:
            axes.text(
                low * 1.15,
                place,
                "not measured",
                va="center",
                fontsize=12.5,
                color=style.FAINT,
                style="italic",
            )
            continue
        _cell(axes, place, name, parts, low)
    axes.set_title(title, loc="left", pad=12)
    axes.grid(True, axis="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _ticks(axes: Axes, scale: tuple[float, float], *, step: int) -> None:
    """At every decade, or at every other where panels are narrow."""
    low, high = (math.floor(math.log10(end)) for end in scale)
    axes.set_xticks([10.0**power for power in range(low, high + 1, step if high > low + 1 else 1)])
    axes.minorticks_off()
    style.quantities(axes.xaxis, "s")


def _cell(axes: Axes, place: int, name: str, parts: Mapping[str, Said], low: float) -> None:
    """One mode's bar, its figure, and how many connections it cost."""
    gap, slowest = parts.get("gap"), parts.get("slowest")
    if slowest is not None:
        end, at = max(slowest.figure, low), place - 0.14
        colour = style.look(name).colour
        axes.hlines(at, low, end, color=colour, linewidth=2.2, zorder=2)
        axes.vlines(end, at - 0.12, at + 0.12, color=colour, linewidth=2.2, zorder=2)
    if gap is not None:
        axes.barh(
            place - 0.14,
            max(gap.figure - low, 0),
            left=low,
            height=0.36,
            color=style.look(name).colour,
            zorder=3,
        )
        axes.annotate(
            words.quantity(gap.figure, "s", 2),
            (max(gap.figure, slowest.figure if slowest else 0.0, low), place - 0.14),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=14,
            fontweight="bold",
            zorder=5,
        )
    harm = _harm(parts)
    axes.annotate(
        harm or "nothing lost",
        (low, place + 0.25),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=11.5,
        color=style.ALARM if harm else style.FAINT,
        zorder=5,
    )


def _harm(parts: Mapping[str, Said]) -> str:
    """``2.1 % failed, 10 % broke``, of all rounds; "" when nothing was lost."""
    told = {"failed": "failed", "held": "broke"}
    return ", ".join(
        f"{style.tick(headlines.lost_of(about), 'share')} {word}"
        for part, word in told.items()
        if (about := parts.get(part)) and about.failures
    )
