"""How waits are distributed: what is usual on the left, the slowest on the right."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from kproxy.bench import words
from kproxy.bench.histogram import Histogram, cumulative
from kproxy.bench.pictures import sayings, style
from kproxy.bench.pictures.plan import Picture, rows_of
from kproxy.bench.verdicts import TWINS

#: Beyond this share of the operations one of them would make the line.
_LEAST = 1e-4


def draw(canvas: style.Canvas, picture: Picture) -> None:
    """Both panels, and a legend that gives each subject's median and 99th percentile."""
    rows = rows_of(picture.chart, picture.section)
    counts = next(row.distributions for row in rows if row.distributions)
    failed: dict[str, str] = {}
    for row in rows:
        for name, about in sayings.said(row, picture.section).items():
            if sayings.failed(about):
                failed.setdefault(name, about.text)
    shown = {
        name: counts[name]
        for name in words.ordered(counts)
        # The floor twice would be a line over a line.
        if counts[name] and name not in failed and name != TWINS[1]
    }
    usual, tail = canvas.panels(1, 2, left=0.075, right=0.755, wspace=0.26)
    for name, waits in shown.items():
        _line(usual, name, cumulative(waits))
        _line(tail, name, [(wait, 1 - share) for wait, share in cumulative(waits)])
    _finish(usual, tail, shown)
    _legend(canvas, usual, shown)
    if failed:
        canvas.note(
            "Not drawn, because requests failed: "
            + "; ".join(f"{name} ({blame})" for name, blame in failed.items())
            + "."
        )
    canvas.note("All operations of all rounds; a closed loop: who waits sends nothing meanwhile.")


def _line(axes: Axes, name: str, curve: list[tuple[float, float]]) -> None:
    look = style.look(name)
    axes.plot(
        [wait for wait, _ in curve],
        [share for _, share in curve],
        color=look.colour,
        linestyle=style.dashes(name),
        linewidth=2.8 if look.kind == "mode" else 2.2,
        zorder=4 if look.kind == "mode" else 3,
    )


def _finish(usual: Axes, tail: Axes, shown: Mapping[str, Mapping[int, int]]) -> None:
    """Scales and limits: the left panel up to the slowest 99th percentile, the right to 99.99."""
    histograms = [Histogram(dict(waits)) for waits in shown.values()]
    low = min((each.percentile(0.1) for each in histograms), default=1e-6)
    for axes, upto in ((usual, 99.0), (tail, 99.99)):
        high = max((each.percentile(upto) for each in histograms), default=1e-3)
        begin = (
            low
            if axes is usual
            else min((each.percentile(50) for each in histograms), default=1e-6)
        )
        axes.set_xscale("log")
        axes.set_xlim(begin / 1.1, high * 1.15)
        style.seconds_axis(axes.xaxis, begin, high)
        axes.grid(True)
    usual.set_ylim(0, 1.01)
    style.quantities(usual.yaxis, "share")
    usual.set_title("Took no longer", loc="left")
    tail.set_yscale("log")
    tail.set_ylim(_LEAST, 0.5)
    tail.yaxis.set_major_locator(FixedLocator([1e-4, 1e-3, 1e-2, 1e-1, 0.5]))
    tail.yaxis.set_minor_locator(NullLocator())
    style.quantities(tail.yaxis, "share")
    tail.set_title("Took longer: the slowest", loc="left")


def _legend(canvas: style.Canvas, axes: Axes, shown: Mapping[str, Mapping[int, int]]) -> None:
    """Fastest median first."""
    histograms = {name: Histogram(dict(waits)) for name, waits in shown.items()}
    names = sorted(histograms, key=lambda name: histograms[name].percentile(50))
    handles = [
        Line2D(
            [],
            [],
            color=style.look(name).colour,
            linestyle=style.dashes(name),
            linewidth=3,
            label=f"{style.label(name)}\n{_percentiles(histograms[name])}",
        )
        for name in names
    ]
    canvas.figure.legend(
        handles=handles,
        title="median, 99th percentile",
        loc="upper left",
        bbox_to_anchor=(0.77, 0.86),
        frameon=False,
        fontsize=12.5,
        title_fontsize=12.5,
        alignment="left",
        labelspacing=0.55,
        handlelength=1.9,
    )


def _percentiles(waits: Histogram) -> str:
    usual, slow = (words.quantity(waits.percentile(share), "s", 2) for share in (50, 99))
    return f"{usual}, p99 {slow}"
