"""What can be found out before a lab is built: names that are taken, links that cannot be."""

from __future__ import annotations

from collections.abc import Callable

from kproxy.errors import LabError
from kproxy.kernel import netns
from kproxy.lab.apply import Builder
from kproxy.lab.model import LabState
from kproxy.lab.network import End, Host, Link, Network
from kproxy.lab.plan import plan


def check_names(lab: LabState) -> None:
    """LabError, before anything is recorded, if a name is taken by somebody else."""
    for host in lab.network.hosts:
        name = lab.network.namespace(host.name)
        if netns.exists(name):
            raise LabError(
                f"namespace {name} exists and is not of this lab",
                hint=f"remove it if it is yours: ip netns del {name}; or use another --name",
            )


def try_shapes(lab: LabState, builder: Callable[[str], Builder]) -> None:
    """Make and remove a link of each kind of packet scheduler that the lab asks for.

    MachineError, naming the link, for what this kernel lacks.
    """
    kinds = {
        (bool(link.shape.rate), bool(link.shape.delay or link.shape.loss)): link
        for link in lab.network.links
        if link.shape
    }
    with builder(lab.name) as building:
        for link in kinds.values():
            bare = Link(
                End(link.a.host, link.a.interface),
                End(link.b.host, link.b.interface),
                shape=link.shape,
            )
            trial = Network(lab.name, (Host(bare.a.host), Host(bare.b.host)), (bare,))
            building.apply(plan(None, trial))
            building.apply(plan(trial, Network(lab.name)))
