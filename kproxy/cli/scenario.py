"""``kproxy scenario``: real packets against expectations."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from kproxy.errors import MachineError, ScenarioError

if TYPE_CHECKING:
    from kproxy.lab.scenario.report import Result
    from kproxy.lab.scenario.schema import Broken, Scenario
    from kproxy.lab.scenario.stage import Stage


@click.group(help="Run real packets against expectations.")
def command() -> None:
    """Scenarios are described in netns-lab/README.md."""


@command.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--mode",
    "modes",
    default="iptables",
    show_default=True,
    help="Modes, with commas: a mode, a variant (iptables-nft), all, none.",
)
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table")
@click.option("-k", "--only", default="", help="Only scenarios with this in their name.")
@click.option(
    "--keep", is_flag=True, help="Keep the first failing scenario's network (or the last)."
)
@click.option("--no-explain", is_flag=True, help="Do not look closer at failing flows.")
def run(
    files: tuple[Path, ...], modes: str, output: str, only: str, keep: bool, no_explain: bool
) -> None:
    """Run scenario files (or folders of them) and compare what packets meet with what is claimed.

    Exit status 0: all passed, 1: something failed, 2: nothing ran. A folder counts as the whole
    suite: an exception of a mode that no scenario met fails it.
    """
    from kproxy.kernel import capabilities
    from kproxy.lab.scenario import exceptions, report
    from kproxy.lab.scenario.runner import Runner
    from kproxy.lab.scenario.runner import modes as find_modes

    capabilities.require("kproxy scenario run", "CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_NET_RAW")
    wanted = find_modes(name.strip() for name in modes.split(",") if name.strip())
    if not wanted.choices:
        raise MachineError("no mode to run in", hint="kproxy doctor tells what this machine has")
    cases = [case for path in scenario_files(files) for case in _load(path) if only in case.name]
    table = exceptions.default_path()
    rows = exceptions.load(table) if table.exists() else ()
    show = _Screen(output)
    pairs = [(choice, case) for choice in wanted.choices for case in cases]
    with Runner(rows, explain_failures=not no_explain) as runner:
        keeper = _Keeper(keep)
        for number, (choice, case) in enumerate(pairs, 1):
            keeper.last = number == len(pairs)
            show.result(runner.run(case, choice, before_end=keeper.look))
            if keeper.done:
                break
        if any(path.is_dir() for path in files) and not only and not keeper.done:
            for unmet in runner.unused_rows(wanted.choices):
                show.result(unmet)
    for choice, reason in wanted.missing:
        show.result(report.absent(str(choice), reason))
    show.end(runner.seconds)
    sys.exit(report.exit_status(show.results))


@command.command()
@click.argument("results", nargs=-1, required=True, type=click.File("rb"))
@click.option(
    "--scenarios",
    "folders",
    multiple=True,
    default=("netns-lab/scenarios",),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Files or folders that the results come from.",
)
def semantics(results: tuple[BinaryIO, ...], folders: tuple[Path, ...]) -> None:
    """Print the table of semantics as Markdown, from what `run -o json` printed."""
    from kproxy.lab.scenario import exceptions
    from kproxy.lab.scenario import semantics as table

    cases = [case for path in scenario_files(folders) for case in _load(path)]
    outcomes = [one for file in results for one in table.outcomes(file.read())]
    rows = table.load_rows(table.default_path())
    click.echo(
        table.markdown(rows, cases, outcomes, exceptions.load(exceptions.default_path())), nl=False
    )


def scenario_files(paths: Sequence[Path]) -> list[Path]:
    """The files named, and every ``*.yaml`` below the folders named, sorted."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.rglob("*.yaml")) if path.is_dir() else [path]
        if not inside:
            raise ScenarioError("no scenario files", where=str(path), hint="they end in .yaml")
        found += inside
    return found


def _load(path: Path) -> list[Scenario | Broken]:
    """The cases of a file; one that is there and no YAML is a broken case itself."""
    from kproxy.lab.scenario.schema import Broken, load

    try:
        return load(path)
    except ScenarioError as wrong:
        if not path.exists():
            raise
        return [Broken(path.name, wrong)]


class _Screen:
    """Shows results as they come (table) or all at the end (json)."""

    def __init__(self, output: str) -> None:
        self.results: list[Result] = []
        self._json = output == "json"

    def result(self, one: Result) -> None:
        from kproxy.lab.scenario import report

        self.results.append(one)
        if self._json:
            return
        if not sys.stdout.isatty():
            click.echo(report.plain(one))
            return
        _rich(one)

    def end(self, seconds: Sequence[float]) -> None:
        from kproxy.lab.scenario import report

        if self._json:
            click.echo(report.to_json(self.results))
        else:
            click.echo(report.totals(self.results, seconds))


def _rich(one: Result) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from kproxy.lab.scenario import report

    console = Console(highlight=False)
    colour = "green" if one.passed else "red"
    table = Table(title=f"{one.scenario} [{one.mode}]", title_justify="left", title_style=colour)
    for heading in ("", "update", "flow", "expected", "seen"):
        table.add_column(heading, overflow="fold")
    for mark, *cells in report.rows(one):
        style = "green" if mark == "✓" else "bold red"
        table.add_row(f"[{style}]{mark}[/]", *map(escape, cells))
    if one.ran:
        console.print(table)
    else:
        console.print(f"[dim]{escape(one.scenario)} \\[{one.mode}][/]")
    for line in report.details(one):
        console.print(escape(line), soft_wrap=True)


class _Keeper:
    """Holds the lab of the first scenario that failed, or of the last one, until Ctrl-C."""

    def __init__(self, wanted: bool) -> None:
        self.done = False
        self.last = False
        self._wanted = wanted

    def look(self, stage: Stage, result: Result) -> None:
        if not self._wanted or (result.passed and not self.last):
            return
        self.done = True
        lines = [
            f"{result.scenario} [{result.mode}] stays up; enter it with",
            *stage.enter_commands(),
        ]
        if stage.proxy is not None:
            lines.append(f"log of the proxy: {stage.proxy.log}")
        click.echo("\n  ".join(lines), err=True)
        _until_interrupted("Ctrl-C takes it down")


def _until_interrupted(hint: str) -> None:
    """Wait for SIGINT or SIGTERM. The handlers only wake the wait: the labs are then taken down.

    The hint is given when they stand: a signal sent by who has read it must not end us before.
    """
    awake, wake = os.pipe()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: os.write(wake, b"!")) for number in numbers]
    try:
        click.echo(hint, err=True)
        select.select([awake], [], [])
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        os.close(awake)
        os.close(wake)
