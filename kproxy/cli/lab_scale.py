"""``kproxy lab scale``: give workloads other numbers of pods while traffic flows."""

from __future__ import annotations

import click

from kproxy.cli.lab_options import chosen_lab, complete_workloads, name_option
from kproxy.errors import UsageError


@click.command()
@name_option
@click.argument(
    "wishes", metavar="WORKLOAD=N…", nargs=-1, required=True, shell_complete=complete_workloads
)
def command(lab: str | None, wishes: tuple[str, ...]) -> None:
    """Change the number of a workload's pods, live; 0 is a number too.

    New pods answer before traffic is sent to them; leaving ones get no new connection, on any
    node, before they go.
    """
    from kproxy.lab import changes

    wanted = [_wish(wish) for wish in wishes]
    for outcome in changes.scale(chosen_lab(lab), wanted):
        click.echo(str(outcome))


def _wish(text: str) -> tuple[str, int]:
    name, equals, number = text.partition("=")
    # Ten digits are past every lab already, and int() takes no more than 4300.
    if not (name and equals and number.isascii() and number.isdigit() and len(number) <= 10):
        raise UsageError(f"{text!r} says no number of pods", hint="write WORKLOAD=N, as web=3")
    return name, int(number)
