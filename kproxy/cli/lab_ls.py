"""``kproxy lab ls``: labs with their nodes, proxies and pods as they are now."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from kproxy.cli.common import emit, output_option, table
from kproxy.cli.lab_options import complete_labs

if TYPE_CHECKING:
    from kproxy.lab.survey import Ailing, Carried, CarriedTo, HostFacts, Judged, LabFacts

_FIGURES = ("connections", "active", "retries", "failures", "in", "out")
_ENDPOINT_FIGURES = ("connections", "active", "failures", "in", "out")
_COLUMNS: tuple[str, ...] = ("lab", "name", "kind", "state", "mode", "age", "node", "addresses")
_HEALTH = "health"


@click.command()
@click.option(
    "--name",
    "-n",
    "lab",
    metavar="LAB",
    envvar="KPROXY_LAB",
    shell_complete=complete_labs,
    help="This lab only ($KPROXY_LAB); all by default.",
)
@output_option("wide", "json", "yaml")
def command(lab: str | None, output: str | None) -> None:
    """List labs: nodes with the state of their kproxy, clients and pods.

    Where services ask for checks, health tells how many of their endpoints a node finds up, and of
    a pod which nodes do not. What the nodes carry themselves (userspace mode) is listed by service
    port, as far as there was any. -o wide also shows interfaces, their MTU, and routes, as the
    kernel has them, what was carried to each endpoint, and what is wrong with which. Labs that run
    on a kernel of their own are asked there.
    """
    import msgspec

    from kproxy.errors import LabError
    from kproxy.lab import state

    names = state.list_labs()
    if not names:
        state.require_root()
    if lab is not None and lab not in names:
        raise LabError(f"lab {lab} is not up", hint="try: kproxy lab up")
    facts = [_look(name, wide=output is not None) for name in ((lab,) if lab else names)]
    if output in ("json", "yaml"):
        emit(msgspec.to_builtins(facts), output)
    elif not facts:
        click.echo("no lab is up; try: kproxy lab up")
    elif output == "wide":
        for one in facts:
            _wide(one)
    else:
        _table(facts)
        _carried(facts)
        for one in facts:
            for host in one.hosts:
                if host.detail and host.kind == "node":
                    click.echo(f"{one.name} {host.name}: {host.detail}")


def _look(name: str, *, wide: bool) -> LabFacts:
    from kproxy.lab.uml import resident

    if resident.find(name) is None:
        from kproxy.lab.survey import survey

        return survey((name,), wide=wide)[0]
    from kproxy.lab.uml import facts

    return facts.survey(name)


def _table(facts: list[LabFacts]) -> None:
    """The columns of kernels and of health are there when there is something to tell."""
    columns, rows = _COLUMNS, [row for lab in facts for row in _rows(lab)]
    health = [word for lab in facts for word in _health(lab)]
    if any(health):
        columns, rows = _with(columns, rows, "age", _HEALTH, [word or "-" for word in health])
    kernels = {lab.name: lab.kernel for lab in facts}
    if set(kernels.values()) != {"host"}:
        named = [kernels[row[0]] for row in rows]
        columns, rows = _with(columns, rows, "age", "kernel", named)
    table(columns, rows)


_Row = tuple[str, ...]


def _with(
    columns: _Row, rows: list[_Row], before: str, name: str, words: list[str]
) -> tuple[_Row, list[_Row]]:
    """One more column, with a word for each row."""
    place = columns.index(before)
    wider = [(*row[:place], word, *row[place:]) for row, word in zip(rows, words, strict=True)]
    return (*columns[:place], name, *columns[place:]), wider


def _health(lab: LabFacts) -> list[str]:
    """A word for each row: what a node thinks of endpoints, which nodes think ill of a pod."""
    ailing: dict[str, dict[str, list[str]]] = {}
    for host in lab.hosts:
        for pod, state in sorted({(e.pod, e.state) for one in host.health for e in one.endpoints}):
            ailing.setdefault(pod.rpartition("/")[2], {}).setdefault(state, []).append(host.name)
    return [
        "; ".join(
            f"{state} on {', '.join(nodes)}" for state, nodes in ailing.get(host.name, {}).items()
        )
        if host.kind == "pod"
        else _sum(host.health)
        for host in lab.hosts
    ] or [""]


def _sum(ports: tuple[Judged, ...]) -> str:
    """``3/4 up``, over all service ports; of those in panic, how many."""
    if not ports:
        return ""
    text = f"{sum(one.up for one in ports)}/{sum(one.of for one in ports)} up"
    panicking = sum(one.panic for one in ports)
    return f"{text}, {panicking} in panic" if panicking else text


def _carried(facts: list[LabFacts]) -> None:
    """What relays have carried, of the service ports of which there was something."""
    rows = [
        (lab.name, host.name, one.name, one.protocol, *_figures(one))
        for lab in facts
        for host in lab.hosts
        for one in host.carried
        if one.connections or one.failures
    ]
    if rows:
        click.echo()
        table(("lab", "node", "service", "protocol", *_FIGURES), rows)


def _figures(one: Carried) -> tuple[str, ...]:
    numbers = (one.connections, one.active, one.retries, one.failures)
    return (*map(str, numbers), size(one.bytes_in), size(one.bytes_out))


def size(count: int) -> str:
    """Bytes in three digits and a unit: ``512 B``, ``1.5 kB``, ``20 MB``."""
    number, units = float(count), iter(("kB", "MB", "GB", "TB", "PB"))
    unit = "B"
    while number >= 999.5:
        number, unit = number / 1000, next(units)
    return f"{number:.1f} {unit}" if unit != "B" and number < 9.95 else f"{number:.0f} {unit}"


def _rows(lab: LabFacts) -> list[tuple[str, ...]]:
    if not lab.hosts:
        return [(lab.name, "-", "-", lab.fault or "half made", "-", "-", "-", _mend(lab))]
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
    if not lab.hosts:
        click.echo(f"lab {lab.name}: {lab.fault or 'half made'}; {_mend(lab)}")
        return
    where = ", on a kernel of its own" if lab.kernel != "host" else ""
    click.echo(f"lab {lab.name}: {lab.topology}, {lab.mode}{where}")
    for host in lab.hosts:
        words = [host.kind, host.state, host.mode, f"on {host.node}" if host.node else ""]
        click.echo(f"\n  {host.name}: {', '.join(word for word in words if word)}")
        if host.detail:
            click.echo(f"    {host.detail}")
        for line in (*_links(host), *_carried_lines(host), *_health_lines(host)):
            click.echo(f"    {line}")


def _links(host: HostFacts) -> list[str]:
    width = max((len(link.name) for link in host.interfaces), default=0)
    lines = [
        f"{link.name:<{width}}  mtu {link.mtu:<5}  {'up  ' if link.up else 'down'}"
        f"  {' '.join(link.addresses)}".rstrip()
        for link in host.interfaces
    ]
    return lines + [f"{'route':<{width}}  {route}" for route in host.routes]


def _carried_lines(host: HostFacts) -> list[str]:
    lines = []
    for one in host.carried:
        lines.append(f"carried  {one.name} {one.protocol}: {_told(_FIGURES, _figures(one))}")
        lines += [f"  to  {_endpoint(each)}" for each in one.endpoints]
    return lines


def _health_lines(host: HostFacts) -> list[str]:
    lines = []
    for one in host.health:
        panic = "; too few, all are used" if one.panic else ""
        what = f"{one.name} {one.protocol} IPv{one.family}"
        lines.append(f"health   {what}: {one.up} of {one.of} endpoints up{panic}")
        lines += [f"  {_ailing(each)}" for each in one.endpoints]
    return lines


def _ailing(one: Ailing) -> str:
    pod = f" ({one.pod})" if one.pod else ""
    since = f", {age(max(0.0, time.time() - one.since))} ago" if one.since else ""
    how = f"weight {one.weight}" if one.state == "starting" else one.reason
    return f"{one.state}  {one.address}{pod}: {how}{since}"


def _endpoint(one: CarriedTo) -> str:
    pod = f" ({one.pod})" if one.pod else ""
    numbers = (one.connections, one.active, one.failures)
    figures = (*map(str, numbers), size(one.bytes_in), size(one.bytes_out))
    return f"{one.address}{pod}: {_told(_ENDPOINT_FIGURES, figures)}"


def _told(names: tuple[str, ...], figures: tuple[str, ...]) -> str:
    return ", ".join(f"{figure} {name}" for name, figure in zip(names, figures, strict=True))


def age(seconds: float | None) -> str:
    """As kubectl writes ages: ``12s``, ``5m``, ``3h``, ``2d``; ``-`` for None."""
    if seconds is None:
        return "-"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"
