"""``kproxy lab switch``: another mode on nodes while traffic flows."""

from __future__ import annotations

from collections.abc import Iterable

import click

from kproxy.cli.lab_options import chosen_lab, complete_hosts, name_option
from kproxy.cli.lab_up import complete_modes, progress


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
def command(lab: str | None, mode: str, nodes: Iterable[str]) -> None:
    """Put nodes into another mode, one after the other, while traffic flows.

    New connections are served by the old mode until the new one is in force, and established ones
    go on. Returns when nothing is left of the old mode. When the new mode does not come into force,
    or on Ctrl-C, the nodes have their old mode back.
    """
    from kproxy.lab import lifecycle, switching

    name = chosen_lab(lab)
    with progress() as step:
        done = switching.switch(name, lifecycle.mode_of(mode), nodes, step=step)
    for one in done:
        if one.seconds:
            click.echo(f"{one.node}: {one.now} in place of {one.before}, {one.seconds:.1f} s")
        else:
            click.echo(f"{one.node}: in {one.now} mode already")
