"""A comparison's pictures, as PNG files for slides and for the report.

::

    Results ─► plan ─► services | curves | bars | costs | survival ─► PNG
               (which) (how each is drawn; lines, sayings, style help)

They are drawn with matplotlib, which nothing else needs: it is imported when the first picture is
drawn, and :func:`require` says beforehand whether it is there.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from kproxy.bench.pictures import sayings
from kproxy.bench.pictures.plan import Picture, files, planned
from kproxy.bench.results import Results
from kproxy.errors import MachineError

if TYPE_CHECKING:
    from kproxy.bench.pictures.style import Canvas

__all__ = ["Picture", "files", "planned", "require", "write"]


def require() -> None:
    """MachineError: matplotlib is not installed. For those who measure first and draw later."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MachineError(
            "the report's pictures need matplotlib, which is not installed",
            hint="run netns-lab/up, or: pip install 'kproxy[report]'",
        )


def write(results: Results, folder: Path) -> list[Path]:
    """Draw all pictures into ``folder`` (made if need be), named as :func:`planned` says; where
    they are. MachineError: matplotlib is missing."""
    require()
    folder.mkdir(parents=True, exist_ok=True)
    return [_drawn(picture, folder / picture.file) for picture in planned(results)]


def _drawn(picture: Picture, path: Path) -> Path:
    from kproxy.bench.pictures import style

    with style.Canvas(picture.title, picture.subtitle) as canvas:
        _draw(canvas, picture)
        if busy := sayings.disturbed(picture.section):
            canvas.note(busy)
        canvas.save(path)
    return path


def _draw(canvas: Canvas, picture: Picture) -> None:
    from kproxy.bench.pictures import bars, costs, curves, services, survival

    shapes = {
        "bars": bars.draw,
        "costs": costs.draw,
        "curves": curves.draw,
        "places": services.places,
        "programming": services.programming,
        "survival": survival.draw,
    }
    shapes[picture.chart.shape](canvas, picture)
