"""``kproxy lab kill``: a node's kproxy crashes."""

from __future__ import annotations

import click

from kproxy.cli.lab_options import chosen_lab, name_option


@click.command()
@name_option
@click.argument("nodes", metavar="NODE…", nargs=-1, required=True)
def command(lab: str | None, nodes: tuple[str, ...]) -> None:
    """End the kproxy of NODEs as a crash does (SIGKILL), and start no other.

    What it has put into the kernel stays as it is, and nobody follows changes; `lab restart`
    starts a new one.
    """
    from kproxy.lab import lifecycle

    for node, process in lifecycle.kill(chosen_lab(lab), nodes):
        click.echo(f"{node}: process {process} killed" if process else f"{node}: none ran")
