"""``kproxy lab tour``: every mode of this kernel with real traffic, and a lab to go on with."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

from kproxy.cli.common import emit, output_option, table
from kproxy.cli.lab_options import DEFAULT_LAB, called
from kproxy.cli.lab_up import complete_modes, complete_topologies, next_commands, note, progress
from kproxy.errors import CheckFailed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kproxy.core.objects import Family
    from kproxy.lab.topology import Topology
    from kproxy.lab.tour import ModeResult, Report

#: Columns of the report.
_WIDTH = 100

_SIGNS = {True: "\u2713", False: "\u2717", None: "\u2013"}


@click.command()
@click.argument("topology", default="standard", shell_complete=complete_topologies)
@click.option(
    "--mode",
    "modes",
    metavar="M,…",
    default="",
    shell_complete=complete_modes,
    help="Only these (iptables, iptables-nft, …); all by default.",
)
@click.option(
    "--kernel",
    type=click.Choice(["auto", "host"]),
    default="auto",
    show_default=True,
    help="auto: modes that this kernel lacks are tried in user-mode Linux.",
)
@click.option("--no-lab", is_flag=True, help="Have no lab up in the end.")
@output_option("json", "yaml")
def command(topology: str, modes: str, kernel: str, no_lab: bool, output: str | None) -> None:
    """Try every mode with real packets over IPv4 and IPv6.

    A mode that this kernel lacks is tried in user-mode Linux meanwhile. Each mode gets a lab of its
    own, which is taken down again. In the end the lab "lab" is up in the default mode, to go on
    with; if it was up already it is left as it was.
    """
    import msgspec

    from kproxy.lab import catalogue, tour

    wanted = catalogue.load(topology)
    with progress() as step:
        only = [mode for mode in modes.split(",") if mode]
        beside = topology if kernel == "auto" else ""
        report = tour.run(wanted, only, say=note, step=step, name=beside)
        if not no_lab:
            step("bringing a lab up to go on with")
            came = _stay(wanted)
    if output:
        emit(msgspec.to_builtins(report), output)
    else:
        show(report)
        if not no_lab:
            click.echo(f"\n{came}")
    if not report.ok:
        raise CheckFailed("not everything works here", hint="see: kproxy doctor")


def _stay(topology: Topology) -> str:
    """Have a lab up in the default mode; what to say about it."""
    from kproxy.backends.registry import Choice
    from kproxy.lab import lifecycle, state

    lab = state.find(DEFAULT_LAB)
    if lab is None:
        lab = lifecycle.up(DEFAULT_LAB, topology, lifecycle.mode_of("iptables"), say=note).lab
        came = "is up"
    else:
        # The very same again: mends a kproxy that has died, changes nothing else.
        same = Choice(lab.mode, lab.variant)
        lab = lifecycle.up(DEFAULT_LAB, lab.topology, same, say=note).lab
        came = "was up already and is left as it was"
    mode = f"{lab.mode}-{lab.variant}" if lab.variant else lab.mode
    services = [obj for obj in lifecycle.objects_of(lab.name) if obj["kind"] == "Service"]
    lines = [
        f"{called(lab.name)} {came}: topology {lab.topology.name}, mode {mode}. Worth trying next:"
    ]
    return "\n".join([*lines, *(f"  {line}" for line in next_commands(lab, services))])


def show(report: Report) -> None:
    """Print the table, then why a cell is no tick."""
    from kproxy.lab.tour import CHECKS

    table(
        ("mode", "family", *map(_heading, CHECKS)),
        [row for mode in report.modes for row in _rows(mode)],
    )
    for line in _remarks(report.modes):
        click.echo(
            textwrap.fill(
                line, _WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
            )
        )


def _heading(check: str) -> str:
    """A check's name on two lines, as even as words allow: the table must fit 100 columns."""
    breaks = [at for at, letter in enumerate(check) if letter == " "]
    middle = min(breaks, key=lambda at: abs(2 * at - len(check)), default=len(check))
    return f"{check[:middle]}\n{check[middle + 1 :]}"


def _rows(mode: ModeResult) -> list[tuple[str, ...]]:
    """One row a family; one for all of them when none could be tried, for one reason."""
    from kproxy.lab.tour import CHECKS

    signs = {(r.family, r.check): _SIGNS[r.ok] for r in mode.results}
    families = dict.fromkeys([r.family for r in mode.results] + [f for f, _ in mode.lacking])
    if not mode.results and len({why for _, why in mode.lacking}) == 1:
        return [(mode.mode, _SIGNS[None], *(_SIGNS[None] for _ in CHECKS))]
    return [
        (mode.mode, _family(f), *(signs.get((f, check), _SIGNS[None]) for check in CHECKS))
        for f in sorted(families)
    ]


def _remarks(modes: Iterable[ModeResult]) -> list[str]:
    """Why a cell is not a tick: one remark for each reason."""
    lines: list[str] = []
    reasons: dict[str, list[str]] = {}
    elsewhere: dict[str, list[str]] = {}
    for mode in modes:
        if mode.kernel:
            elsewhere.setdefault(mode.kernel, []).append(mode.mode)
        lines += [
            f"{_SIGNS[r.ok]} {mode.mode} {_family(r.family)} {r.check}: {r.detail}"
            for r in mode.results
            if r.detail
        ]
        by_reason: dict[str, list[str]] = {}
        for family, why in mode.lacking:
            by_reason.setdefault(why, []).append(_family(family))
        for why, families in by_reason.items():
            whole = not mode.results and len(by_reason) == 1
            which = mode.mode if whole else f"{mode.mode} {' and '.join(families)}"
            reasons.setdefault(why, []).append(which)
    lines += [f"{_SIGNS[None]} {', '.join(who)}: {why}" for why, who in reasons.items()]
    # Last: a tick needs no reason, but whose kernel it is should be known.
    return lines + [
        f"{', '.join(who)}: tried in {kernel}, this kernel lacks it"
        for kernel, who in elsewhere.items()
    ]


def _family(family: Family) -> str:
    return f"IPv{int(family)}"
