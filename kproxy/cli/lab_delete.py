"""``kproxy lab delete``: delete objects while traffic flows."""

from __future__ import annotations

import click

from kproxy.cli.common import manifests_option
from kproxy.cli.lab_options import chosen_lab, name_option
from kproxy.errors import UsageError


@click.command()
@name_option
@manifests_option(required=False)
@click.option("--namespace", default="default", show_default=True, help="Of objects named by KIND.")
@click.option("--ignore-not-found", is_flag=True, help="What is not there is no fault.")
@click.argument("words", metavar="[KIND NAME…|KIND/NAME…]", nargs=-1)
def command(
    lab: str | None,
    filenames: tuple[str, ...],
    namespace: str,
    ignore_not_found: bool,
    words: tuple[str, ...],
) -> None:
    """Delete objects named by manifests, or by kind and name, live.

    They are out of force on every node when the command returns. A service's addresses and ports
    are free again. A deleted pod gets a successor, as its workload wants it; delete or scale the
    workload to be rid of it.
    """
    from kproxy.cli.lab_apply import show
    from kproxy.lab import changes, edits
    from kproxy.lab.manifests import read_paths

    if bool(filenames) == bool(words):
        raise UsageError("nothing to delete is named", hint="give -f PATH, or KIND NAME…")
    read = read_paths(filenames)
    named = edits.parse_names(words, namespace)
    keys = [*edits.keys_of(read.objects), *named]
    done = changes.delete(chosen_lab(lab), keys, ignore_missing=ignore_not_found)
    show(done, read.refusals, verb="delete")
