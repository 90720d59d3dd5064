"""``kproxy events``: what became of endpoints, told by the daemons of a lab or of this node."""

from __future__ import annotations

import json
import select
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from kproxy.cli.common import output_option, table
from kproxy.cli.lab_options import called, chosen_lab, name_option
from kproxy.errors import LabError, UsageError
from kproxy.status import DEFAULT_STATE_DIR

if TYPE_CHECKING:
    from kproxy.health.journal import Event
    from kproxy.health.tail import Tail

_COLUMNS = ("time", "node", "service", "endpoint", "what", "reason")

#: Widths in a stream of lines, of which nobody knows what comes; the last column has no end.
_WIDTHS = (23, 8, 24, 24, 10, 0)

#: Seconds between two looks. A look at a journal costs some system calls.
_LOOK = 0.2


@click.command()
@name_option
@click.option("--node", metavar="NODE", help="Of this node only.")
@click.option(
    "--state-dir",
    metavar="DIR",
    help=f"Of the kproxy run with this state directory [{DEFAULT_STATE_DIR} where no lab is up].",
)
@click.option("-w", "--watch", is_flag=True, help="Go on, and print what happens as it does.")
@output_option("json")
def command(
    lab: str | None, node: str | None, state_dir: str | None, watch: bool, output: str | None
) -> None:
    """Print when and why endpoints were taken out of their services, and came back.

    By default of all nodes of the lab that is up, else of this node's kproxy run. Times are local;
    -o json prints one object a line, with times in UTC.
    """
    from kproxy.health.tail import Tail

    chosen = _chosen(lab, state_dir)
    if chosen is not None:
        from kproxy.lab.uml import resident

        if resident.find(chosen) is not None:
            from kproxy.cli.lab_carry import carry

            carry(chosen, feeds=False)
    folders = _of_lab(chosen, node) if chosen is not None else [_of_node(state_dir)]
    with ExitStack() as stack:
        tails = [stack.enter_context(closing(Tail(folder))) for folder in folders]
        # A reader that has had enough ends us without a word, as it does any filter.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        if watch:
            _watch(tails, node, output)
        else:
            _print(_new(tails, node), output)
        if unreadable := sum(tail.unreadable for tail in tails):
            click.echo(
                f"lines that cannot be read, damaged or of another version of kproxy: {unreadable}",
                err=True,
            )


# --- whose ------------------------------------------------------------------------------------


def _chosen(lab: str | None, state_dir: str | None) -> str | None:
    """The lab that is meant; None: a state directory is."""
    from kproxy.lab import state

    if state_dir is not None:
        if click.get_current_context().get_parameter_source("lab") is ParameterSource.COMMANDLINE:
            raise UsageError("--name and --state-dir name two things", hint="give one of them")
        return None
    return chosen_lab(lab) if lab is not None or state.list_labs() else None


def _of_lab(lab: str, node: str | None) -> list[Path]:
    from kproxy.lab import daemons, state

    names = [each.name for each in state.load(lab).topology.nodes]
    if node is not None and node not in names:
        raise LabError(f"{called(lab)} has no node {node}", hint=f"it has: {', '.join(names)}")
    return [daemons.proxy_state_dir(lab, name) for name in names if node in (None, name)]


def _of_node(state_dir: str | None) -> Path:
    folder = Path(state_dir or DEFAULT_STATE_DIR)
    if not folder.is_dir():
        raise UsageError(
            "no kproxy has run with this state directory",
            where=str(folder),
            hint="name another with --state-dir, or try: kproxy lab up",
        )
    return folder


# --- reading ----------------------------------------------------------------------------------


def _new(tails: Iterable[Tail], node: str | None) -> list[Event]:
    """What the journals have that was not read yet, oldest first."""
    events = [event for tail in tails for event in tail.read() if node in (None, event.node)]
    return sorted(events, key=lambda event: event.time)


def _watch(tails: Sequence[Tail], node: str | None, output: str | None) -> None:
    """Until Ctrl-C, or until the reader or what is read has gone."""
    signal.signal(signal.SIGTERM, _interrupt)
    write = _json if output == "json" else _line
    try:
        if output is None:
            _say([_padded([column.upper() for column in _COLUMNS])])
        while True:
            _say(map(write, _new(tails, node)))
            if not any(tail.folder.is_dir() for tail in tails):
                raise LabError("what was watched is gone", where=str(tails[0].folder))
            if _reader_left(_LOOK):
                return
    except KeyboardInterrupt:
        # The end that the user asked for; the terminal has written ^C.
        click.echo(err=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _reader_left(seconds: float) -> bool:
    """Whether nobody reads our output any more, found out within some seconds: it may be long
    until there is something to write."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(seconds * 1000))


# --- writing ----------------------------------------------------------------------------------


def _print(events: Sequence[Event], output: str | None) -> None:
    if output == "json":
        _say(map(_json, events))
    elif events:
        table(_COLUMNS, map(_row, events))
    else:
        click.echo("no events yet")


def _say(lines: Iterable[str]) -> None:
    """All of them with one call, at once: whoever reads a pipe is not to wait for more."""
    if text := "".join(f"{line}\n" for line in lines):
        sys.stdout.write(text)
        sys.stdout.flush()


def _json(event: Event) -> str:
    import msgspec

    # ASCII only: a reason may quote what a stranger's server says, to whatever terminal.
    return json.dumps(msgspec.to_builtins(event))


def _row(event: Event) -> tuple[str, ...]:
    name = f"{event.service}:{event.port}" if event.port else event.service
    return (
        f"{event.time.astimezone():%Y-%m-%d %H:%M:%S}.{event.time.microsecond // 1000:03d}",
        event.node,
        name if event.protocol == "TCP" else f"{name}/{event.protocol}",
        event.endpoint or f"all (IPv{event.family})",
        event.kind,
        "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}"
                for letter in event.reason),
    )  # fmt: skip


def _line(event: Event) -> str:
    return _padded(_row(event))


def _padded(cells: Sequence[str]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True))
    return "  ".join(padded).rstrip()
