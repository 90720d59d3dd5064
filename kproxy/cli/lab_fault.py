"""``kproxy lab fault``: let something go wrong with pods, and heal them."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from kproxy.cli.common import emit, output_option
from kproxy.cli.lab_options import chosen_lab, complete_pods, name_option
from kproxy.errors import UsageError


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Pods, and faults up to where their numbers begin."""
    from kproxy.lab.faults import FORMS

    words = [form.partition("=")[0] + ("=" if "=" in form else "") for form in FORMS.values()]
    kinds = [CompletionItem(word) for word in words if word.startswith(incomplete)]
    return [*complete_pods(ctx, param, incomplete), *kinds]


@click.command()
@name_option
@click.option("--all", "everybody", is_flag=True, help="All pods of the lab.")
@output_option("json", "yaml")
@click.argument("words", metavar="[POD…] [FAULT…]", nargs=-1, shell_complete=_complete)
def command(lab: str | None, everybody: bool, output: str | None, words: tuple[str, ...]) -> None:
    """Let something go wrong with pods; without a FAULT, tell what is in force.

    \b
    kill            the process dies: connections are reset, nothing listens
    hang            connections are taken by the kernel, nothing is answered
    refuse          nothing listens, and starting it again does not help
    slow=MS         answers come that many milliseconds later
    loss=PERCENT    packets get lost, both ways
    flap=UP,DOWN    answers for UP seconds, refuses for DOWN seconds, in turn
    heal            all of it ends

    Of kill, hang, refuse and flap a pod has one at a time; slow and loss come on top. A
    livenessProbe heals kill and hang by starting the pod again. Faults outlive every change of the
    lab but the pod's own end.
    """
    from kproxy.lab import inflict, state

    there = state.load(chosen_lab(lab))
    wish = inflict.understood(there, words)
    names = tuple(pod.name for pod in there.pods) if everybody else wish.pods
    if wish.faults and not names:
        raise UsageError("no pod is named", hint="say which, or --all; kproxy lab get pods")
    if wish.faults:
        found = inflict.inflict(there, names, wish.faults)
    else:
        found = inflict.standing(there, names)
    if output is not None:
        plain = [{"pod": one.pod, "faults": [str(fault) for fault in one.faults]} for one in found]
        emit(plain, output)
        return
    for one in found:
        click.echo(str(one))
    if not found:
        click.echo("no pod has a fault")
