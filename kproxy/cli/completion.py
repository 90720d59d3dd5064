"""``kproxy completion``: the script that makes a shell complete kproxy's words."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS), required=False)
def command(shell: str | None) -> None:
    """Print the completion script of a shell (bash, zsh, fish; $SHELL's by default).

    For this session: eval "$(kproxy completion)". For all: put that line into ~/.bashrc or
    ~/.zshrc; fish: kproxy completion fish > ~/.config/fish/completions/kproxy.fish. Names of labs,
    nodes, pods, workloads and topologies are completed as they are at that moment.
    """
    from kproxy.cli.main import cli

    given = shell or Path(os.environ.get("SHELL", "")).name
    made = get_completion_class(given if given in _SHELLS else "bash")
    assert made is not None
    click.echo(made(cli, {}, "kproxy", "_KPROXY_COMPLETE").source())
