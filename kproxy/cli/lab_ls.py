"""``kproxy lab ls``: labs with their nodes, proxies and pods as they are now."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kproxy.cli.common import emit, output_option, table
from kproxy.cli.lab_options import complete_labs

if TYPE_CHECKING:
    from kproxy.lab.survey import HostFacts, LabFacts

_COLUMNS = ("lab", "name", "kind", "state", "mode", "age", "node", "addresses")


@click.command()
@click.option(
    "--name",
    "-n",
    "lab",
    metavar="LAB",
    shell_complete=complete_labs,
    help="This lab only; all by default.",
)
@output_option("wide", "json", "yaml")
def command(lab: str | None, output: str | None) -> None:
    """List labs: nodes with the state of their kproxy, clients and pods.

    -o wide also shows interfaces, their MTU, and routes, as the kernel has them.
    """
    import msgspec

    from kproxy.errors import LabError
    from kproxy.lab import state
    from kproxy.lab.survey import survey

    names = state.list_labs()
    if lab is not None and lab not in names:
        raise LabError(f"lab {lab} is not up", hint="try: kproxy lab up")
    facts = survey((lab,) if lab else names, wide=output is not None)
    if output in ("json", "yaml"):
        emit(msgspec.to_builtins(facts), output)
    elif not facts:
        click.echo("no lab is up; try: kproxy lab up")
    elif output == "wide":
        for one in facts:
            _wide(one)
    else:
        table(_COLUMNS, [row for one in facts for row in _rows(one)])
        for one in facts:
            for host in one.hosts:
                if host.detail and host.kind == "node":
                    click.echo(f"{one.name} {host.name}: {host.detail}")


def _rows(lab: LabFacts) -> list[tuple[str, ...]]:
    if not lab.hosts:
        return [(lab.name, "-", "-", "half made", "-", "-", "-", _mend(lab))]
    return [
        (
            lab.name,
            host.name,
            host.kind,
            host.state,
            host.mode or "-",
            age(host.seconds),
            host.node or "-",
            " ".join(host.addresses),
        )
        for host in lab.hosts
    ]


def _mend(lab: LabFacts) -> str:
    return f"clean it: kproxy lab down --name {lab.name}"


def _wide(lab: LabFacts) -> None:
    click.echo(f"lab {lab.name}: {lab.topology}, {lab.mode}" if lab.hosts else _mend(lab))
    for host in lab.hosts:
        words = [host.kind, host.state, host.mode, f"on {host.node}" if host.node else ""]
        click.echo(f"\n  {host.name}: {', '.join(word for word in words if word)}")
        if host.detail:
            click.echo(f"    {host.detail}")
        for line in _links(host):
            click.echo(f"    {line}")


def _links(host: HostFacts) -> list[str]:
    width = max((len(link.name) for link in host.interfaces), default=0)
    lines = [
        f"{link.name:<{width}}  mtu {link.mtu:<5}  {'up  ' if link.up else 'down'}"
        f"  {' '.join(link.addresses)}".rstrip()
        for link in host.interfaces
    ]
    return lines + [f"{'route':<{width}}  {route}" for route in host.routes]


def age(seconds: float | None) -> str:
    """As kubectl writes ages: ``12s``, ``5m``, ``3h``, ``2d``; ``-`` for None."""
    if seconds is None:
        return "-"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"
