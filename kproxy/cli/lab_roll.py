"""``kproxy lab roll``: replace a workload's pods one by one while traffic flows."""

from __future__ import annotations

import click

from kproxy.cli.lab_options import chosen_lab, complete_workloads, name_option


@click.command()
@name_option
@click.argument("workload", shell_complete=complete_workloads)
def command(lab: str | None, workload: str) -> None:
    """Replace a workload's pods one by one with new names and addresses, live.

    Each new pod answers and is in force on every node before the old one goes.
    """
    from kproxy.lab import changes

    count = changes.roll(chosen_lab(lab), workload, say=lambda step: click.echo(str(step)))
    click.echo(f"workload/{workload} rolled: {count} pod{'s' if count != 1 else ''} replaced")
