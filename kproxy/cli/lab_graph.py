"""``kproxy lab graph``: a lab as text, SVG or PNG."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from kproxy.cli.lab_options import chosen_lab, name_option
from kproxy.errors import UsageError

_FORMATS = ("text", "svg", "png")
_SUFFIXES = {"": "text", ".txt": "text", ".svg": "svg", ".png": "png"}


@click.command()
@name_option
@click.option(
    "-o", "--output", "output", type=click.Choice(_FORMATS), help="Format; text by default."
)
@click.option(
    "--file",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write it; its suffix tells the format when -o does not.",
)
def command(lab: str | None, output: str | None, file: Path | None) -> None:
    """Draw the lab: its nodes, pods and clients, and which service sends to whom."""
    from kproxy.lab import state
    from kproxy.lab.controllers import fill
    from kproxy.lab.graph import picture_of

    form = output or _form_of(file)
    if form == "png" and file is None:
        raise UsageError("a PNG picture goes into a file", hint="add --file lab.png")
    there = state.load(chosen_lab(lab))
    picture = picture_of(there, fill(there, state.load_allocations(there.name)))
    if form == "text":
        from kproxy.lab.graph_text import draw

        made = draw(picture, width=shutil.get_terminal_size((100, 24)).columns).encode()
    else:
        from kproxy.lab.graph_svg import draw_svg

        made = draw_svg(picture).encode()
    if form == "png":
        made = _as_png(made)
    if file is None:
        click.echo(made.decode(), nl=False)
        return
    try:
        file.write_bytes(made)
    except OSError as wrong:
        raise UsageError(f"cannot be written: {wrong.strerror}", where=str(file)) from wrong
    click.echo(f"wrote {file} ({len(made)} bytes)")


def _form_of(file: Path | None) -> str:
    """The format that a file's suffix asks for."""
    suffix = file.suffix.lower() if file else ""
    if suffix not in _SUFFIXES:
        raise UsageError(
            f"no format is called {suffix}", where=str(file), hint="use .svg, .png or .txt, or -o"
        )
    return _SUFFIXES[suffix]


def _as_png(svg: bytes) -> bytes:
    """Through librsvg's own tool, at twice the size so that small print stays sharp."""
    from kproxy.kernel.command import run

    return run(["rsvg-convert", "--zoom", "2", "--format", "png"], stdin=svg, timeout=60).stdout
