"""How all pictures look: a canvas with its words, colours, axes in SI units, labels that make way.

Slides are read from the last row and by people who do not see all colours: type is large, each
subject has one colour and one mark everywhere (:data:`LOOKS`), lines are named where they end.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from PIL import Image

from kproxy.bench import words
from kproxy.bench.results import Unit
from kproxy.core.objects import Value

#: Inches and dots: 1,920 x 1,080, a slide.
SIZE, DPI = (12.8, 7.2), 150

#: Margin as a share of the width, letters in a line of a note, colours of a PNG.
_EDGE, _NOTE, _COLOURS = 0.022, 132, 128

INK, FAINT, GRID, ALARM = "#1f2328", "#59636e", "#d9dee3", "#b3261e"


class Look(Value, frozen=True):
    """``kind``: a floor, a mode, or a peer (dashed, hatched)."""

    colour: str
    marker: str
    kind: str = "mode"


#: Modes wear the colours of Okabe and Ito, which people with any colour vision can tell apart;
#: peers darker ones of Paul Tol's, and dashes. Every subject has a mark of its own besides.
LOOKS: Mapping[str, Look] = {
    "direct": Look("#5f6a72", "", "floor"),
    "direct again": Look("#9aa3aa", "", "floor"),
    "userspace": Look("#d55e00", "^"),
    "iptables-legacy": Look("#e69f00", "o"),
    "iptables-nft": Look("#0072b2", "v"),
    "nftables": Look("#56b4e9", "D"),
    "fastpath": Look("#009e73", "s"),
    "ipvs": Look("#cc79a7", "p"),
    "haproxy": Look("#332288", "<", "peer"),
    "nginx": Look("#6f7d1c", ">", "peer"),
    "nft-dnat": Look("#882255", "d", "peer"),
    "ipvsadm": Look("#aa4499", "8", "peer"),
    "relay": Look("#8c5a2b", "h", "peer"),
}
#: Of whom the table does not know, a user's own peer for one.
_STRANGER = Look("#44475a", "*", "peer")

_DARKER = 0.72

#: Letters of a name that there is room for.
_LETTERS = 16

#: Points between a panel and the names of its lines.
_BESIDE = 14

_DASHES: Mapping[str, Any] = {"mode": "-", "peer": (0, (4, 2)), "floor": (0, (1.5, 1.5))}

#: Its keys are literals of one version of matplotlib or another.
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 15.0,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 16.0,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 14.0,
    "ytick.labelsize": 14.0,
    "hatch.linewidth": 0.8,
    "path.simplify": True,
    # Names are data, never mathematics.
    "text.parse_math": False,
}


def look(subject: str) -> Look:
    return LOOKS.get(subject, _STRANGER)


def label(subject: str) -> str:
    """Its name, cut where it is longer than any of ours: a user's peer may be called anything."""
    return subject if len(subject) <= _LETTERS else f"{subject[: _LETTERS - 1]}…"


def ink(subject: str) -> str:
    """Its colour for letters: darker, since light ones cannot be read on white."""
    channels = (int(look(subject).colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(each * _DARKER):02x}" for each in channels)


def dashes(subject: str) -> Any:
    """Line style: solid for modes, dashed for peers, dotted for the floor."""
    return _DASHES[look(subject).kind]


class Canvas:
    """A figure with title, what stands under it, and notes at its foot; used within its style."""

    def __init__(self, title: str, subtitle: str, *, notes: Sequence[str] = ()) -> None:
        self._style = rc_context(_STYLE)
        self._words = title, subtitle
        self.notes = [*notes]
        self.figure: Figure

    def __enter__(self) -> Self:
        self._style.__enter__()
        self.figure = Figure(figsize=SIZE, dpi=DPI, facecolor="white")
        self._canvas: Any = FigureCanvasAgg(self.figure)
        title, subtitle = self._words
        self._fitted(0.97, title, fontsize=23, fontweight="bold")
        self._fitted(0.9, subtitle, fontsize=14, color=FAINT)
        return self

    def __exit__(self, *exc: object) -> None:
        self._style.__exit__(None, None, None)

    def _fitted(self, y: float, words: str, fontsize: float, **more: Any) -> None:
        """A line below ``y``, smaller where it would not fit."""
        drawn = self.figure.text(_EDGE, y, words, va="top", fontsize=fontsize, **more)
        width = drawn.get_window_extent().width
        room = (1 - 2 * _EDGE) * SIZE[0] * DPI
        if width > room:
            drawn.set_fontsize(fontsize * room / width)

    def note(self, text: str) -> None:
        """A line at the foot."""
        self.notes.append(text)

    def panels(
        self,
        rows: int,
        columns: int,
        *,
        left: float = 0.09,
        right: float = 0.97,
        top: float = 0.775,
        bottom: float = 0.16,
        **more: Any,
    ) -> list[Axes]:
        """Axes, row by row; the margins are shares of the figure."""
        space: dict[str, Any] = {key: more.pop(key) for key in ("wspace", "hspace") if key in more}
        grid = self.figure.subplots(
            rows,
            columns,
            squeeze=False,
            gridspec_kw={"left": left, "right": right, "top": top, "bottom": bottom, **space},
            **more,
        )
        return [axes for row in grid for axes in row]

    def save(self, path: Path) -> None:
        """Write the PNG; the same figures give the same bytes."""
        lines = [line for text in self.notes for line in textwrap.wrap(text, _NOTE)]
        for number, text in enumerate(reversed(lines)):
            self.figure.text(
                _EDGE, 0.02 + 0.032 * number, text, fontsize=12.5, color=FAINT, va="bottom"
            )
        self._canvas.draw()
        image = Image.frombuffer(
            "RGBA", self._canvas.get_width_height(), self._canvas.buffer_rgba()
        )
        # A palette is a third of the size, and no eye sees it: there are few colours.
        image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


# --- axes ---------------------------------------------------------------------------------------


#: Decades on an axis, as a share of those that have room for three ticks each -> ticks in a decade.
_TICKS: tuple[tuple[float, tuple[float, ...]], ...] = (
    (0.35, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)),
    (1.0, (1.0, 2.0, 5.0)),
    (1.8, (1.0, 3.0)),
    (math.inf, (1.0,)),
)


def seconds_axis(axis: Axis, low: float, high: float, *, upright: bool = False) -> None:
    """A logarithmic axis of seconds with few, round ticks; ``upright``: a y axis."""
    decades = math.log10(high / low) if low > 0 and high > low else 1.0
    # Labels are wide and not high.
    dense = 2.0 if upright else 1.1
    subs = next(subs for most, subs in _TICKS if decades <= most * dense)
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=30))
    axis.set_minor_locator(NullLocator())
    quantities(axis, "s")


def quantities(axis: Axis, unit: Unit) -> None:
    """Tick labels with their prefix and unit."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, unit)))


def tick(value: float, unit: Unit) -> str:
    """As few digits as say it: ``10 µs``, ``2.5 ms``."""
    written = words.quantity(value, unit, 2)
    amount, _, name = written.partition(" ")
    return f"{amount.rstrip('0').rstrip('.') if '.' in amount else amount} {name}".rstrip()


def counts_axis(axis: Axis, values: Iterable[float]) -> None:
    """A logarithmic axis with a tick at each of these counts and none between."""
    axis.set_major_locator(FixedLocator(sorted(set(values))))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: words.count(value)))


# --- labels -------------------------------------------------------------------------------------


def apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places as near to ``wanted`` as can be, in the same order, ``gap`` apart, within bounds.

    Neighbours that overlap become one block round the mean of what they want, until none does; when
    there is no room for all, the gap shrinks.
    """
    if not wanted:
        return []
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    blocks: list[tuple[float, int]] = []
    for index in order:
        place, size = wanted[index], 1
        while True:
            half = (size - 1) * gap / 2
            place = min(max(place, low + half), high - half)
            if not blocks or blocks[-1][0] + (blocks[-1][1] + size) * gap / 2 <= place + gap * 1e-6:
                break
            before, many = blocks.pop()
            place = (before * many + place * size) / (many + size)
            size += many
        blocks.append((place, size))
    placed = [0.0] * len(wanted)
    numbers = iter(order)
    for place, size in blocks:
        for step in range(size):
            placed[next(numbers)] = place + (step - (size - 1) / 2) * gap
    return placed


def name_ends(axes: Axes, ends: Mapping[str, tuple[float, float]], *, size: float = 14) -> None:
    """Write each line's name right of where it ends (subject -> x, y in data), none over another.

    To be called when scales and limits stand.
    """
    if not ends:
        return
    names = list(ends)
    to_pixels, to_share = axes.transData, axes.transAxes.inverted()
    points = [to_share.transform(to_pixels.transform(ends[name])) for name in names]
    extent, point = axes.get_window_extent(), DPI / 72
    gap = size * 1.18 * point / extent.height
    beside = 1 + _BESIDE * point / extent.width
    for name, (x, y), place in zip(
        names, points, apart([y for _, y in points], gap, 0.0, 1.0), strict=True
    ):
        axes.annotate(
            label(name),
            xy=(x, y),
            xytext=(beside, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=ink(name),
            fontsize=size,
            fontweight="bold",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": look(name).colour,
                "linewidth": 0.9,
                "shrinkA": 1,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )
