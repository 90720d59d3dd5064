"""Lines over the number of services: the first packet, and programming. Both axes logarithmic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from kproxy.bench import words
from kproxy.bench.pictures import sayings, style
from kproxy.bench.results import Row, Section
from kproxy.bench.verdicts import TWINS, Said

#: Subject -> size -> what was found.
Lines = Mapping[str, Mapping[float, Said]]

#: Where crosses are, as a share of the height.
_CROSS = 0.975


def lines_of(rows: Sequence[Row], section: Section) -> Lines:
    """The points of one measure (and one place), by subject."""
    found: dict[str, dict[float, Said]] = {}
    for row in rows:
        if row.point.at is None:
            continue
        for subject, about in sayings.said(row, section).items():
            found.setdefault(subject, {})[row.point.at] = about
    # The floor twice would be a line over a line.
    return {name: found[name] for name in words.ordered(found) if name != TWINS[1]}


def draw(axes: Axes, lines: Lines, *, floor: str = "", band: bool = True) -> None:
    """All subjects' lines with their bands; ``floor`` names the one that is drawn without a mark.

    A failed point is no figure: the line stops, and a cross at the upper edge says where.
    """
    for name, points in lines.items():
        look = style.look(name)
        good = {at: each for at, each in sorted(points.items()) if not sayings.failed(each)}
        for run in _runs(points):
            sizes = list(run)
            values = [good[at].figure for at in sizes]
            axes.plot(
                sizes,
                values,
                color=look.colour,
                linestyle=style.dashes(name),
                linewidth=2.6 if look.kind == "mode" else 2.0,
                marker=look.marker if name != floor else "",
                markersize=9,
                markeredgecolor="white",
                markeredgewidth=0.9,
                zorder=4 if look.kind == "mode" else 3,
            )
            if band:
                axes.fill_between(
                    sizes,
                    [sayings.bounds(good[at])[0] for at in sizes],
                    [sayings.bounds(good[at])[1] for at in sizes],
                    color=look.colour,
                    alpha=0.18,
                    linewidth=0,
                    zorder=2,
                )


def _runs(points: Mapping[float, Said]) -> list[list[float]]:
    """Sizes between failures: a line over a failed point would say that it was measured."""
    runs: list[list[float]] = [[]]
    for at in sorted(points):
        if sayings.failed(points[at]):
            runs.append([])
        else:
            runs[-1].append(at)
    return [run for run in runs if run]


def finish(axes: Axes, panels: Sequence[Lines], *, sizes: Sequence[float]) -> None:
    """Scales, limits that are shared by ``panels``, ticks and grid."""
    shown = [
        sayings.bounds(each)
        for lines in panels
        for points in lines.values()
        for each in points.values()
        if not sayings.failed(each)
    ]
    low = min((low for low, _ in shown if low > 0), default=1e-6)
    high = max((high for _, high in shown), default=1e-3)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(low / 1.35, high * 1.35)
    # A size alone stands where lines end: beside the names.
    axes.set_xlim(min(sizes) / (1.25 if len(sizes) > 1 else 20), max(sizes) * 1.25)
    style.seconds_axis(axes.yaxis, low, high, upright=True)
    style.counts_axis(axes.xaxis, sizes)
    axes.grid(True, axis="y")


def ends(axes: Axes, lines: Lines) -> dict[str, tuple[float, float]]:
    """Where each line ends, for its name; at the cross where its last point has failed. To be
    called when limits stand."""
    low, high = axes.get_ylim()
    found = {}
    for name, points in lines.items():
        last = max(points)
        failed = sayings.failed(points[last])
        found[name] = (last, low * (high / low) ** _CROSS if failed else points[last].figure)
    return found


def crosses(axes: Axes, lines: Lines) -> None:
    """A cross at the upper edge for each failed point. To be called when limits stand."""
    for name, points in lines.items():
        for at, each in points.items():
            if sayings.failed(each):
                axes.plot(
                    [at],
                    [_CROSS],
                    transform=axes.get_xaxis_transform(),
                    marker="x",
                    markersize=13,
                    markeredgewidth=3,
                    color=style.look(name).colour,
                    clip_on=False,
                    zorder=6,
                )


def blamed(lines: Lines) -> list[str]:
    """``iptables-nft failed 3 of 3 at 10,000``."""
    return [
        f"{name} {each.text} at {at:,.0f} services"
        for name, points in lines.items()
        for at, each in sorted(points.items())
        if sayings.failed(each)
    ]
