"""``kproxy doctor``: what this kernel and machine can run, and what would give the rest."""

from __future__ import annotations

import click
import msgspec

from kproxy import doctor
from kproxy.cli.common import emit, output_option, table
from kproxy.errors import MachineError

_LATER = "in a later version"


@click.command()
@output_option("json", "yaml", "wide")
def command(output: str | None) -> None:
    """Tell per mode and per feature whether this kernel and machine can do it.

    Everything is tried for real, in a scratch network namespace. The exit status is 0 when at least
    one mode works here, 3 when none does.
    """
    report = doctor.examine()
    if output in ("json", "yaml"):
        emit(msgspec.to_builtins(report), output)
    else:
        _show(report, wide=output == "wide")
    if not report.usable:
        remedies = dict.fromkeys(mode.remedy for mode in report.modes if mode.remedy)
        raise MachineError("no mode works here", hint=f"try: {next(iter(remedies), 'see above')}")


def _show(report: doctor.Report, *, wide: bool) -> None:
    table(
        ("mode", "family", "kernel", "kproxy", "seen", "try"),
        (
            (
                mode.name,
                f"IPv{mode.family}",
                _word(mode.kernel),
                "yes" if mode.built else _LATER,
                mode.why,
                mode.remedy,
            )
            for mode in report.modes
        ),
        title="Modes",
    )
    click.echo()
    columns = ("feature", "here", "seen", "try", "needed for")
    table(
        columns if wide else columns[:4],
        (
            (found.name, _word(found.ok), found.why, found.remedy, found.needed_for)[
                : len(columns) if wide else 4
            ]
            for found in report.features
        ),
        title="Features",
    )


def _word(yes: bool) -> str:
    return "yes" if yes else "no"
