"""``kproxy scenario``: real packets against expectations."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from kproxy.errors import KproxyError, MachineError, ScenarioError, UsageError

if TYPE_CHECKING:
    from kproxy.lab.scenario.report import Result
    from kproxy.lab.scenario.schema import Broken, Scenario
    from kproxy.lab.scenario.stage import Stage
    from kproxy.lab.uml.place import Places

#: What it takes to run scenarios on the host's kernel.
_CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_NET_RAW")


@click.group(help="Run real packets against expectations.")
def command() -> None:
    """Scenarios are described in docs/scenarios.md."""


@command.command(short_help="Run scenario files; compare what packets meet with claims.")
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
@click.option(
    "--kernel",
    type=click.Choice(["auto", "host", "uml"]),
    default="auto",
    show_default=True,
    help="The host's, or user-mode Linux: needs no root, has IPVS. auto: for what the host lacks.",
)
@click.option("--stream", is_flag=True, hidden=True, help="Each result as a line of JSON.")
def run(
    files: tuple[Path, ...],
    modes: str,
    output: str,
    only: str,
    keep: bool,
    no_explain: bool,
    kernel: str,
    stream: bool,
) -> None:
    """Run scenario files (or folders of them) and compare what packets meet with what is claimed.

    Exit status 0: all passed, 1: something failed, 2: nothing ran. A folder counts as the whole
    suite: an exception of a mode that no scenario met fails it.
    """
    from kproxy.lab.scenario import report
    from kproxy.lab.uml.boot import ended_by_signals
    from kproxy.lab.uml.place import place

    places = place((name.strip() for name in modes.split(",") if name.strip()), kernel)
    if not places.here and not places.inside:
        raise MachineError("no mode to run in", hint="kproxy doctor tells what this machine has")
    if keep and places.inside:
        raise UsageError(
            "--keep keeps a network of this host, user-mode Linux ends with its scenarios",
            hint="try --kernel host, or a lab: kproxy lab up --kernel uml",
        )
    cases = [case for path in scenario_files(files) for case in _load(path) if only in case.name]
    suite = any(path.is_dir() for path in files) and not only
    show = _Screen("stream" if stream else output)
    words = [*map(str, files), *(["-k", only] * bool(only)), *["--no-explain"] * no_explain]
    # Ended by a signal, the labs are taken down; the scenarios' own namespaces are so as well.
    with ended_by_signals(), ExitStack() as undo:
        here = _Here(places, keep=keep, explain=not no_explain, undo=undo)
        inside = _Inside(places, words, show, undo)
        here.run(cases, show, suite=suite, meanwhile=inside.look)
        inside.finish()
    show.end()
    sys.exit(report.exit_status(show.results))


class _Here:
    """The modes that run on this host's kernel. Forks its helper processes when it is made."""

    def __init__(self, places: Places, *, keep: bool, explain: bool, undo: ExitStack) -> None:
        from kproxy.kernel import capabilities
        from kproxy.lab.scenario import exceptions
        from kproxy.lab.scenario.runner import Modes, Runner
        from kproxy.lab.scenario.runner import modes as find_modes

        self._keeper = _Keeper(keep)
        self._modes = Modes(())
        self._runner: Runner | None = None
        if not places.here:
            return
        if capabilities.missing(*_CAPABILITIES):
            raise MachineError(
                f"kproxy scenario run needs root on this kernel ({', '.join(_CAPABILITIES)})",
                hint="try again with sudo, or with --kernel uml",
            )
        found = find_modes(places.here)
        elsewhere = tuple(one for one in found.missing if one[0].mode not in places.inside)
        self._modes = Modes(found.choices, elsewhere)
        if not found.choices and not places.inside:
            raise MachineError(
                "no mode to run in", hint="kproxy doctor tells what this machine has"
            )
        table = exceptions.default_path()
        rows = exceptions.load(table) if table.exists() else ()
        self._runner = undo.enter_context(Runner(rows, explain_failures=explain))

    def run(
        self,
        cases: Sequence[Scenario | Broken],
        show: _Screen,
        *,
        suite: bool,
        meanwhile: Callable[[], None],
    ) -> None:
        """All cases in all modes; ``meanwhile`` is called after each."""
        from kproxy.lab.scenario import report

        pairs = [(choice, case) for choice in self._modes.choices for case in cases]
        if self._runner is not None:
            keeper = self._keeper
            for number, (choice, case) in enumerate(pairs, 1):
                keeper.last = number == len(pairs)
                before = len(self._runner.seconds)
                one = self._runner.run(case, choice, before_end=keeper.look)
                show.result(one, sum(self._runner.seconds[before:]))
                meanwhile()
                if keeper.done:
                    break
            if suite and not keeper.done:
                for unmet in self._runner.unused_rows(self._modes.choices):
                    show.result(unmet)
        for choice, reason in self._modes.missing:
            show.result(report.absent(str(choice), reason))


class _Inside:
    """The modes that run in user-mode Linux, beside those here."""

    def __init__(
        self, places: Places, words: Sequence[str], show: _Screen, undo: ExitStack
    ) -> None:
        from kproxy.lab.uml import machine
        from kproxy.lab.uml.beside import Beside, kproxy

        self._modes = ",".join(places.inside)
        self._show = show
        self._beside: Beside | None = None
        if not places.inside:
            return
        lacking = machine.lacking()
        if lacking is not None:
            if not places.tentative:
                raise lacking
            self._absent(f"this kernel lacks it, and {lacking}")
            return
        options = ("--mode", self._modes, "--kernel", "host", "--stream")
        argv = kproxy("scenario", "run", *words, *options)
        self._beside = undo.enter_context(Beside(argv))

    def _absent(self, reason: str) -> None:
        from kproxy.lab.scenario import report

        self._show.result(report.absent(self._modes, reason))

    def look(self, *, wait: bool = False) -> None:
        """Show what has come."""
        from kproxy.lab.scenario import report

        if self._beside is None:
            return
        try:
            for one in self._beside.results(wait=wait):
                self._show.result(one.result, one.seconds)
        except KproxyError as broken:
            if not self._show.results:
                raise
            self._show.result(report.broken_off(self._modes, str(broken)))

    def finish(self) -> None:
        """Show all that comes until the end."""
        self.look(wait=True)


@command.command(short_help="Print the table of semantics from `run -o json`.")
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
    """Shows results as they come (table, stream) or all at the end (json)."""

    def __init__(self, output: str) -> None:
        self.results: list[Result] = []
        self._output = output
        self._seconds: list[float] = []

    def result(self, one: Result, seconds: float = 0.0) -> None:
        """``seconds`` is what the scenario took, 0.0 when none was built."""
        from kproxy.lab.scenario import report

        self.results.append(one)
        if seconds:
            self._seconds.append(seconds)
        if self._output == "stream":
            click.echo(report.to_line(report.Progress(one, seconds)), nl=False)
        if self._output != "table":
            return
        if not sys.stdout.isatty():
            click.echo(report.plain(one))
            return
        _rich(one)

    def end(self) -> None:
        from kproxy.lab.scenario import report

        if self._output == "json":
            click.echo(report.to_json(self.results))
        elif self._output == "table":
            click.echo(report.totals(self.results, self._seconds))


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
