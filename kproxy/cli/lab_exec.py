"""``kproxy lab exec``: run a command inside a lab; its exit status is ours."""

from __future__ import annotations

import click

from kproxy.cli.lab_options import chosen_lab, complete_hosts, name_option


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@name_option
@click.argument("host", metavar="NODE-OR-POD", shell_complete=complete_hosts)
@click.argument("argv", metavar="CMD…", nargs=-1, required=True, type=click.UNPROCESSED)
def command(lab: str | None, host: str, argv: tuple[str, ...]) -> None:
    """Run CMD in a node, client or pod.

    The names of the lab (pods, nodes, services) are in its /etc/hosts, so that

        kproxy lab exec web-0 curl -s http://echo:7/

    works as in a cluster. The exit status is the command's.
    """
    from kproxy.lab import enter, state

    # ``--`` before the command is a habit from kubectl exec.
    enter.become(state.load(chosen_lab(lab)), host, argv[1:] if argv[0] == "--" else argv)
