"""``kproxy lab up`` for a lab on a kernel of its own: boots the machine, then runs there."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from kproxy.cli.lab_carry import reads_stdin
from kproxy.errors import LabError

_HOST, _UML = "host", "uml"


def wanted(lab: str, mode: str, kernel: str) -> bool:
    """Whether the lab is to be on a kernel of its own. A lab that is up already stays where it is,
    unless a kernel is named."""
    from kproxy.lab.uml import resident

    if resident.inside():
        return False  # this is the machine
    if kernel in (_HOST, _UML):
        return kernel == _UML
    if resident.running(lab):
        return True
    if mode.partition("-")[0] == "iptables":
        return False  # any host has it: not worth a look
    from kproxy.lab.uml.place import place

    return bool(place((mode,), kernel).inside)


def up(lab: str, filenames: tuple[str, ...]) -> NoReturn:
    """Boot a machine if there is none, bring the lab up in it, and end as that ended.

    A machine in which no lab came up is taken away again.
    """
    from kproxy.cli.lab_up import note, progress
    from kproxy.lab import lifecycle, state
    from kproxy.lab.uml import carry, facts, resident

    with state.lock(lab):
        if state.find(lab) is not None:
            raise LabError(
                f"lab {lab} is up on the host's kernel",
                hint=f"first: kproxy lab down --name {lab}; or give this one another --name",
            )
        fresh = not resident.running(lab)
        try:
            if fresh:
                if state.lab_dir(lab).exists():
                    lifecycle.clean(lab, note)
                with progress() as step:
                    step("booting user-mode Linux")
                    resident.boot(lab)
            argv = facts.kproxy(*sys.argv[1:])
            status = carry.run(
                lab,
                argv,
                feeds=reads_stdin(filenames),
                environment={**os.environ, "KPROXY_LAB": lab},
            )
            whole = not status or bool(facts.survey(lab).hosts)
        except BaseException:
            if fresh:
                lifecycle.discard(lab)
            raise
        if fresh and not whole:
            lifecycle.discard(lab)
    carry.end_as(status)
