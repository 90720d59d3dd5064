"""What commands share: output formats, tables, and options that are made from tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
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


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> None:
    """Print a table: with rich on a terminal, in plain aligned columns in a pipe."""
    lines = [list(map(str, row)) for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, lines, title)
        return
    if title:
        click.echo(title)
    heads = [column.upper() for column in columns]
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    for line in (heads, *lines):
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
