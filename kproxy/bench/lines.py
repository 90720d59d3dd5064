"""Lines of text with a style, and cells in columns: what tables on a terminal are made of. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from kproxy.core.objects import Value

#: Columns that a table has at most.
WIDTH = 100


class Line(Value, frozen=True):
    """``style`` is rich's name of how a terminal may show it, "" for none."""

    text: str = ""
    style: str = ""


class Columns(Value, frozen=True):
    """Widths of columns, with a space in between; those in ``right`` are set to the right."""

    widths: tuple[int, ...]
    right: tuple[int, ...] = ()

    def line(self, cells: Sequence[str], style: str = "") -> Line:
        """A cell for each column; one that is too long moves those after it."""
        padded = [
            cell.rjust(width) if at in self.right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(cells, self.widths, strict=True))
        ]
        return Line(" ".join(padded).rstrip(), style)


def wrapped(text: str, style: str = "") -> Iterator[Line]:
    """A sentence in as many lines as it takes."""
    for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False):
        yield Line(line, style)
