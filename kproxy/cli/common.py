"""What commands share: output formats, tables, and options that are made from tables."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])


def output_option(*formats: str) -> Callable[[_F], _F]:
    """``-o FORMAT`` out of ``formats``; the parameter is ``output`` (None: the human table)."""
    return click.option(
        "-o",
        "--output",
        "output",
        type=click.Choice(formats),
        help="Format; a table when not given.",
    )


def manifests_option(*, required: bool) -> Callable[[_F], _F]:
    """``-f PATH``, several times; the parameter is ``filenames``."""
    return click.option(
        "-f",
        "--filename",
        "filenames",
        multiple=True,
        required=required,
        metavar="PATH",
        help="Manifest file or folder, - for standard input; may be given several times.",
    )


def emit(data: object, output: str) -> None:
    """Print plain data as JSON or YAML."""
    if output == "json":
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        import yaml

        click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)


def own_name() -> str:
    """What to type, where the user stands, to call this very program: in a fresh clone the shell
    does not find it by its name."""
    script = Path(sys.prefix) / "bin" / "kproxy"
    found = shutil.which("kproxy")
    if not script.exists() or (found and os.path.samefile(found, script)):
        return "kproxy"
    return min(os.path.relpath(script), str(script), key=len)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> None:
    """Print a table: with rich on a terminal, in plain aligned columns in a pipe. A heading may
    have several lines."""
    lines = [list(map(str, row)) for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, lines, title)
        return
    if title:
        click.echo(title)
    heads = zip_longest(*(column.upper().splitlines() for column in columns), fillvalue="")
    lines = [*map(list, heads), *lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("   ".join(padded).rstrip())


def _rich_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, title_justify="left", header_style="bold")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console().print(drawn)


#: Cells that a reader looks for first.
_STYLES = {"yes": "green", "no": "red", "\u2713": "green", "\u2717": "red"}
