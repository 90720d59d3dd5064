"""``kproxy lab up``: build a lab and start kproxy on its nodes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from kproxy.cli.common import manifests_option, own_name
from kproxy.cli.lab_apply import show
from kproxy.cli.lab_options import DEFAULT_LAB, called, complete_labs

if TYPE_CHECKING:
    from kproxy.lab.model import LabState


def complete_topologies(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from kproxy.lab import catalogue

    names = [CompletionItem(name) for name in catalogue.names() if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


def complete_modes(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from kproxy.backends import registry

    return [CompletionItem(name) for name in registry.names() if name.startswith(incomplete)]


@click.command()
@click.argument("topology", default="standard", shell_complete=complete_topologies)
@click.option(
    "--name",
    "-n",
    "lab",
    metavar="LAB",
    default=DEFAULT_LAB,
    envvar="KPROXY_LAB",
    show_default=True,
    shell_complete=complete_labs,
    help="The lab's name; labs of different names live side by side.",
)
@click.option(
    "--mode",
    default="iptables",
    show_default=True,
    shell_complete=complete_modes,
    help="How the nodes' kproxy works, with the variant or without: iptables, iptables-nft, …",
)
@click.option(
    "--kernel",
    type=click.Choice(["auto", "host", "uml"]),
    default="auto",
    show_default=True,
    help="The host's, or user-mode Linux: needs no root, has IPVS. auto: for what the host lacks.",
)
@manifests_option(required=False)
@click.option("--nodes", type=int, metavar="N", help="Number of nodes instead of the topology's.")
@click.option("--pods", type=int, metavar="M", help="Pods on each node instead.")
def command(
    topology: str,
    lab: str,
    mode: str,
    kernel: str,
    filenames: tuple[str, ...],
    nodes: int | None,
    pods: int | None,
) -> None:
    """Build TOPOLOGY with a kproxy on every node: standard, single, wide, health, walk, or a YAML
    file.

    Services come with the topology and from -f; what an API server would fill in is filled in. The
    same lab that is up already is left as it is; a different one under the same name is an error.

    With --kernel uml the lab gets a kernel of its own, which stays up as long as the lab does; all
    other commands reach it there.
    """
    from kproxy.backends import registry
    from kproxy.cli import lab_up_inside
    from kproxy.lab import catalogue, changes, lifecycle, state
    from kproxy.lab.edits import Edit
    from kproxy.lab.manifests import read_paths

    # What is wrong is said before anything is booted.
    registry.parse(mode)
    wanted = catalogue.scaled(catalogue.load(topology), nodes, pods)
    if lab_up_inside.wanted(lab, mode, kernel):
        lab_up_inside.up(lab, filenames)
    choice = lifecycle.mode_of(mode)
    read = read_paths(filenames)
    begun = time.monotonic()
    with progress() as step:
        made = lifecycle.up(lab, wanted, choice, read.objects, say=note, step=step)
        edit = made.edit or (changes.apply(lab, read.objects) if read.objects else None)
    took = f"in {time.monotonic() - begun:.1f} s" if made.edit else "already"
    click.echo(summary(state.load(lab), took))
    show(Edit(made.lab, (), edit.refusals, edit.notices) if edit else Edit(made.lab), read.refusals)


def note(line: str) -> None:
    """Something that the user should know, beside the result."""
    click.echo(f"kproxy: {line}", err=True)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """On a terminal a line that says what is going on; in a pipe nothing."""
    if not sys.stderr.isatty():
        yield lambda line: None
        return
    from rich.console import Console

    with Console(stderr=True).status("…") as status:
        yield status.update


def summary(lab: LabState, took: str) -> str:
    """What is there, and what to try next."""
    from kproxy.lab import lifecycle, wiring
    from kproxy.lab.describe import pod_lines, service_lines

    services = [obj for obj in lifecycle.objects_of(lab.name) if obj["kind"] == "Service"]
    mode = f"{lab.mode}-{lab.variant}" if lab.variant else lab.mode
    topology = lab.topology
    parts = (
        f"{called(lab.name)} is up {took}: {topology.name}",
        f"mode {mode}",
        _count(len(lab.nodes), "node"),
        _count(len(lab.pods), "pod"),
        _count(len(topology.clients), "outside client"),
    )
    lines = [", ".join(parts), ""]
    hosts = [(n.name, "node", wiring.node_addresses(topology, n.name)) for n in topology.nodes]
    hosts += [
        (c.name, "client", wiring.client_addresses(topology, c.name)) for c in topology.clients
    ]
    width = max(len(name) for name, _, _ in hosts)
    lines += [f"  {name:<{width}}  {kind:<6}  {'  '.join(ips)}" for name, kind, ips in hosts]
    for block in (pod_lines(lab.pods), service_lines(services)):
        lines += ["", *block] if block else []
    return "\n".join([*lines, "", "try:", *(f"  {line}" for line in next_commands(lab, services))])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def next_commands(lab: LabState, services: list[dict[str, object]]) -> list[str]:
    """Three commands that work in this very lab."""
    from kproxy.kernel.command import find
    from kproxy.lab.describe import first_node_port, first_reachable

    name = "" if lab.name == DEFAULT_LAB else f" --name {lab.name}"
    kproxy = own_name()
    lines = [
        f"{kproxy} lab ping{name}",
        f"{kproxy} lab graph{name}",
        f"{kproxy} lab ls{name} -o wide",
    ]
    port, inside = first_node_port(services), first_reachable(services)
    if find("curl") is None:
        return lines
    if port and lab.topology.clients:
        client, node = lab.topology.clients[0].name, lab.nodes[0]
        lines.insert(0, f"{kproxy} lab exec{name} {client} curl -s http://{node}:{port}/")
    elif inside and lab.pods:
        lines.insert(0, f"{kproxy} lab exec{name} {lab.pods[0].name} curl -s http://{inside}/")
    return lines[:3]
