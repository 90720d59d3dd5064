"""``kproxy lab capture``: see or store the packets of a node, client or pod."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from types import FrameType
from typing import IO, TYPE_CHECKING

import click

from kproxy.cli.lab_options import chosen_lab, complete_hosts, name_option
from kproxy.errors import LabError, UsageError

if TYPE_CHECKING:
    from kproxy.lab.capture import Tap


@click.command(context_settings={"allow_interspersed_args": True})
@name_option
@click.option("-w", "--write", "file", metavar="FILE.pcap", help="Store packets (- for stdout).")
@click.option("-i", "--interface", default="", metavar="IFACE", help="One interface only.")
@click.option("-c", "--count", type=click.IntRange(min=1), help="End after so many packets.")
@click.argument("host", metavar="NODE-OR-POD", shell_complete=complete_hosts)
@click.argument("expression", metavar="[FILTER]", nargs=-1)
def command(
    lab: str | None,
    file: str | None,
    interface: str,
    count: int | None,
    host: str,
    expression: tuple[str, ...],
) -> None:
    """Show the packets of a node, client or pod as they pass, or store them with -w.

    FILTER is written as for tcpdump (tcp port 80). A packet that a node forwards is seen twice:
    coming in at one interface, going out at another, translated or not. Ctrl-C ends it.
    """
    from kproxy.lab import state
    from kproxy.lab.capture import Tap

    there = state.load(chosen_lab(lab))
    names = [known.name for known in there.network.hosts]
    if host not in names:
        raise LabError(f"lab {there.name} has no {host}", hint=f"it has: {', '.join(names)}")
    # SIGTERM ends it as Ctrl-C does: whole file, counts printed.
    signal.signal(signal.SIGTERM, _interrupt)
    with ExitStack() as stack:
        out = _open(file, stack) if file else None
        tap = stack.enter_context(
            Tap(there.network.namespace(host), interface, " ".join(expression))
        )
        where = interface or "all interfaces"
        click.echo(f"capturing on {host}, {where}; Ctrl-C ends it", err=True)
        seen = _copy(tap, out, count)
        dropped = tap.count_dropped()
    lost = f", {dropped} lost because they came too fast" if dropped else ""
    click.echo(f"{seen} packet{'' if seen == 1 else 's'}{lost}", err=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _open(name: str, stack: ExitStack) -> IO[bytes]:
    if name == "-":
        return sys.stdout.buffer
    try:
        # What passes in a lab may be anybody's password.
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as wrong:
        raise UsageError(f"cannot be written: {wrong.strerror}", where=name) from wrong
    return stack.enter_context(os.fdopen(fd, "wb"))


def _copy(tap: Tap, out: IO[bytes] | None, count: int | None) -> int:
    """Packets to the file or the screen until ``count`` or Ctrl-C; how many there were."""
    from kproxy.lab.capture import Decoder, Store

    seen = 0
    try:
        store = Store(out) if out is not None else None
        decoder = Decoder() if store is None else None
        for frame in tap.frames():
            if store is not None:
                store.add(frame)
            if decoder is not None:
                click.echo(decoder.line(frame))
            seen += 1
            if seen == count:
                break
    except KeyboardInterrupt:
        # The end that the user asked for; the terminal has written ^C.
        click.echo(err=True)
    return seen
