"""``kproxy lab down``: take labs down by their undo records."""

from __future__ import annotations

import click

from kproxy.cli.lab_options import called, chosen_lab, name_option


@click.command()
@name_option
@click.option("--all", "every", is_flag=True, help="All labs.")
@click.option(
    "--forget", is_flag=True, help="Also forget the cluster IPs and node ports it had given out."
)
def command(lab: str | None, every: bool, forget: bool) -> None:
    """Take a lab down: its processes, then its namespaces, by record.

    Works for labs that crashed half made. Addresses of services are remembered, so that they are
    the same when the lab comes up again; --forget forgets them.
    """
    from kproxy.lab import lifecycle, state

    for name in state.list_labs() if every else (chosen_lab(lab),):
        gone = lifecycle.down(name)
        click.echo(f"{called(name)} is down" if gone else f"{called(name)} was not up")
        if forget:
            state.forget_allocations(name)
    if left := state.list_labs():
        click.echo(f"still there: {', '.join(left)} (kproxy lab down --all)")
    if every and forget:
        for name in state.list_allocations():
            state.forget_allocations(name)
