"""``kproxy lab restart``: a new kproxy on nodes while traffic flows."""

from __future__ import annotations

import click

from kproxy.cli.lab_options import chosen_lab, name_option


@click.command()
@name_option
@click.argument("nodes", metavar="[NODE…]", nargs=-1)
def command(lab: str | None, nodes: tuple[str, ...]) -> None:
    """Start a new kproxy on NODEs, or on all, in place of the one that runs, if one does.

    Rules stay, so the kernel serves on in between. In userspace mode the new process takes over
    from the old one instead, which carries its connections to their end: nobody is refused.
    """
    from kproxy.lab import lifecycle

    for node, old, new in lifecycle.restart(chosen_lab(lab), nodes):
        instead = f"in place of {old}" if old else "where none ran"
        click.echo(f"{node}: process {new} {instead}")
