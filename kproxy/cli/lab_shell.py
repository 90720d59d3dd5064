"""``kproxy lab shell``: an interactive shell inside a lab, with a prompt that says where."""

from __future__ import annotations

import os
from pathlib import Path

import click

from kproxy.cli.lab_options import chosen_lab, complete_hosts, name_option


@click.command()
@name_option
@click.argument("host", metavar="NODE-OR-POD", shell_complete=complete_hosts)
def command(lab: str | None, host: str) -> None:
    """Open a shell ($SHELL) in a node, client or pod; leave it with exit or Ctrl-D."""
    from kproxy.lab import enter, names, state

    found = state.load(chosen_lab(lab))
    names.host_of(found, host)
    shell = os.environ.get("SHELL") or "/bin/sh"
    prompt = f"[{found.name}:{host}] "
    argv = [shell]
    if Path(shell).name == "bash":
        # Bash reads its own prompt from ~/.bashrc: ours has to come after it.
        setup = state.host_dir(found.name, host) / "bashrc"
        text = f'[ -r ~/.bashrc ] && . ~/.bashrc\nPS1="{prompt}\\w \\$ "\n'
        state.write_atomically(setup, text.encode())
        argv += ["--rcfile", str(setup), "-i"]
    enter.become(found, host, argv, {"PS1": f"{prompt}$ ", "PROMPT": f"{prompt}%# "})
