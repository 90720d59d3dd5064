"""Takes a command about a lab to where the lab is: here, or in a machine of its own."""

from __future__ import annotations

import copy
import functools
import os
import sys
from typing import Any

import click

from kproxy.cli.lab_options import chosen_lab
from kproxy.errors import KproxyError

#: Commands that read standard input whatever their options say.
_FED = ("exec", "shell")


def wherever(name: str, command: click.Command) -> click.Command:
    """The command ``lab NAME`` for labs in machines as well: then it runs there."""
    inner = command.callback
    assert inner is not None
    here = inner

    @functools.wraps(here)
    def callback(**params: Any) -> Any:
        from kproxy.lab.uml import resident

        try:
            lab = chosen_lab(params["lab"])
            machine = resident.find(lab)
        except KproxyError:
            # The command says so itself, after what is wrong with its own arguments.
            return here(**params)
        if machine is None:
            return here(**params)
        return carry(lab, feeds=name in _FED or reads_stdin(params.get("filenames")))

    taken = copy.copy(command)
    taken.callback = callback
    return taken


def reads_stdin(filenames: tuple[str, ...] | None) -> bool:
    """Whether manifests come from standard input."""
    return any(name in ("-", "/dev/stdin") for name in filenames or ())


def carry(lab: str, *, feeds: bool) -> None:
    """Run this very command line in the lab's machine, and end as it ends there."""
    from kproxy.lab.uml import carry as carrier
    from kproxy.lab.uml import facts

    status = carrier.run(
        lab, facts.kproxy(*sys.argv[1:]), feeds=feeds, environment={**os.environ, "KPROXY_LAB": lab}
    )
    carrier.end_as(status)
