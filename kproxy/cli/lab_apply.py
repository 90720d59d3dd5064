"""``kproxy lab apply``: create or replace objects while traffic flows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kproxy.cli.common import manifests_option
from kproxy.cli.lab_options import chosen_lab, name_option
from kproxy.errors import CheckFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kproxy.core.objects import Refusal
    from kproxy.lab.edits import Edit


@click.command()
@name_option
@manifests_option(required=True)
def command(lab: str | None, filenames: tuple[str, ...]) -> None:
    """Create or replace Services, EndpointSlices, Endpoints and workloads, live.

    What an API server would fill in is filled in; endpoints may name pods of the lab. An apps/v1
    Deployment becomes a workload: its labels, ports and replicas count, its image does not. A bad
    object is refused and named; the others are in force on every node when the command returns.
    """
    from kproxy.lab import changes
    from kproxy.lab.manifests import read_paths

    read = read_paths(filenames)
    show(changes.apply(chosen_lab(lab), read.objects), read.refusals)


def show(edit: Edit, unread: Sequence[Refusal] = (), *, verb: str = "apply") -> None:
    """Print what was done; CheckFailed when something was refused. ``verb`` is the command's."""
    for outcome in edit.outcomes:
        click.echo(str(outcome))
    for notice in edit.notices:
        click.echo(f"kproxy: {notice}", err=True)
    refusals = (*unread, *edit.refusals)
    for refusal in refusals:
        click.echo(f"kproxy: {refusal}", err=True)
    if refusals:
        count = len({(refusal.file, refusal.kind, refusal.key) for refusal in refusals})
        what = "1 object was" if count == 1 else f"{count} objects were"
        raise CheckFailed(f"{what} refused", hint=f"mend what is named above and {verb} again")
