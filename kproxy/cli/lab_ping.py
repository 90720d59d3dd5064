"""``kproxy lab ping``: all pairs and all services of a lab, as a matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kproxy.cli.common import emit, output_option
from kproxy.cli.lab_options import chosen_lab, name_option
from kproxy.errors import CheckFailed

if TYPE_CHECKING:
    from kproxy.lab.ping import Result

#: Gaps that are spelled out; the matrix tells of all.
_SPELLED = 20


@click.command()
@name_option
@output_option("json", "yaml")
def command(lab: str | None, output: str | None) -> None:
    """Try all pairs of pods, nodes and clients, and every service from every kind of client.

    Every address family is tried. A service without endpoints must refuse. Exit status 1 on a gap.
    """
    from kproxy.lab import ping, state
    from kproxy.lab.controllers import fill

    there = state.load(chosen_lab(lab))
    done = fill(there, state.load_allocations(there.name))
    results = ping.run(there, [*ping.pairs(there), *ping.services(there, done)])
    if output is not None:
        emit([_plain(result) for result in results], output)
    else:
        _tables(results)
    gaps = [result for result in results if not result.passed]
    if gaps and output is None:
        for gap in gaps[:_SPELLED]:
            click.echo(f"✗ {gap}", err=True)
    if gaps:
        raise CheckFailed(
            f"{len(gaps)} of {len(results)} flows did not do what they must",
            hint="look at the packets: kproxy lab capture NODE-OR-POD",
        )
    if output is None:
        click.echo(f"{len(results)} flows, no gap")


def _tables(results: tuple[Result, ...]) -> None:
    from kproxy.lab import ping
    from kproxy.lab.tables import aligned

    hosts = [result for result in results if not result.attempt.service]
    services = [result for result in results if result.attempt.service]
    if hosts:
        made = ping.matrix("from \\ to", hosts)
        _print(aligned(made.columns, made.rows))
        click.echo()
    if services:
        made = ping.matrix("service \\ from", services)
        who = ping.answered_by(services)
        rows = [(*row, _names(who[row[0]])) for row in made.rows]
        _print(aligned((*made.columns, "answered by"), rows))
        click.echo(
            f"{ping.ARRIVED} answered   {ping.REFUSED} refused, as it has no endpoint"
            f"   {ping.UNTRIED} not tried"
        )


def _print(lines: list[str]) -> None:
    """Marks stand out on a terminal; click takes the colours away in a pipe."""
    for number, line in enumerate(lines):
        line = click.style(line, bold=True) if number == 0 else line
        for mark, colour in (("✓", "green"), ("✗", "red"), ("⊘", "cyan")):
            line = line.replace(mark, click.style(mark, fg=colour))
        click.echo(line)


def _names(names: tuple[str, ...], most: int = 4) -> str:
    shown = " ".join(names[:most])
    return shown if len(names) <= most else f"{shown} +{len(names) - most}"


def _plain(result: Result) -> dict[str, Any]:
    attempt, outcome = result.attempt, result.outcome
    return {
        "from": attempt.sender,
        "to": attempt.to,
        "port": attempt.port,
        "protocol": attempt.protocol.value,
        "service": attempt.row if attempt.service else None,
        "expected": attempt.expect.value,
        "seen": outcome.reach.value,
        "endpoint": outcome.endpoint or None,
        "client": outcome.client or None,
        "detail": outcome.detail or None,
        "passed": result.passed,
    }
