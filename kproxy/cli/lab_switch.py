"""``kproxy lab switch``: another mode on nodes while traffic flows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from kproxy.cli.common import output_option
from kproxy.cli.lab_options import chosen_lab, complete_hosts, name_option
from kproxy.cli.lab_up import complete_modes, progress

if TYPE_CHECKING:
    from kproxy.lab.switching import Switched


@click.command()
@name_option
@click.option(
    "--mode",
    required=True,
    shell_complete=complete_modes,
    help="How kproxy works from now on, with the variant or without: iptables, iptables-nft, …",
)
@click.option(
    "--node",
    "nodes",
    metavar="NODE",
    multiple=True,
    shell_complete=complete_hosts,
    help="Only this one; may be given more than once. All nodes by default.",
)
@output_option("json")
def command(lab: str | None, mode: str, nodes: Iterable[str], output: str | None) -> None:
    """Put nodes into another mode, one after the other, while traffic flows.

    New connections are served by the old mode until the new one is in force, and established ones
    go on. Returns when nothing is left of the old mode. When the new mode does not come into force,
    or on Ctrl-C, the nodes have their old mode back.

    Of each node is told how long the switch took, and for how long of it the rules of both modes
    stood: whichever translates a connection first has it.
    """
    import msgspec

    from kproxy.lab import lifecycle, switching

    name = chosen_lab(lab)
    with progress() as step:
        done = switching.switch(name, lifecycle.mode_of(mode), nodes, step=step)
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(done), indent=2))
        return
    for one in done:
        click.echo(_line(one))


def _line(one: Switched) -> str:
    if not one.seconds:
        return f"{one.node}: in {one.now} mode already"
    both = "" if one.both is None else f"; rules of both for {one.both:.3f} s"
    return f"{one.node}: {one.now} in place of {one.before}, {one.seconds:.1f} s{both}"
