"""``kproxy bench``: every mode and its peers, measured side by side."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.shell_completion import CompletionItem

from kproxy.cli.common import output_option

if TYPE_CHECKING:
    from kproxy.bench.conductor import Step
    from kproxy.bench.keeper import Keeper
    from kproxy.bench.lines import Line
    from kproxy.bench.profiles import Kernel
    from kproxy.bench.results import Results
    from kproxy.bench.session import Request, Session

#: Why a result that is read before the run has ended is not whole.
_UNDER_WAY = "still being measured, or killed meanwhile"

#: What it takes to make namespaces and devices, and to look into them.
_CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_NET_RAW")

_Completion = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _known(of: str) -> Iterable[str]:
    from kproxy.bench import ours, profiles

    measures = (name for group in profiles.MEASURES.values() for name in group)
    table = {"modes": ours.MODES, "peers": profiles.PEERS, "profile": profiles.PROFILES}
    return dict.fromkeys((*profiles.MEASURES, *measures)) if of == "measures" else table[of]


def _completion(of: str) -> _Completion:
    """Of the last name in a list with commas."""

    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        found = (name for name in _known(of) if name.startswith(last))
        return [CompletionItem(before + comma + name) for name in found]

    return complete


def _listed(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(name for each in value.split(",") if (name := each.strip()))


def _finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """A range lets inf and nan pass."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no number of seconds")
    return value


def _list_option(name: str, metavar: str, text: str) -> Callable[[Any], Any]:
    return click.option(
        f"--{name}",
        default="",
        metavar=metavar,
        callback=_listed,
        shell_complete=_completion(name),
        help=text,
    )


@click.group(invoke_without_command=True)
@click.option(
    "--profile",
    default="quick",
    show_default=True,
    metavar="NAME",
    shell_complete=_completion("profile"),
    help="quick: a look in less than two minutes. medium: verdicts, in about twenty. full: "
    "everything, in about an hour.",
)
@_list_option("modes", "M,…", "Modes; all by default. iptables stands for both variants.")
@_list_option("peers", "P,…", "Others beside them: names, all, none, FILE.py:CLASS of your own.")
@_list_option("measures", "NAME,…", "Measures or groups of them; those of the profile by default.")
@click.option("--rounds", type=click.IntRange(min=1), metavar="N", help="At most so many rounds.")
@click.option(
    "--time",
    "seconds",
    type=click.FloatRange(min=1),
    callback=_finite,
    metavar="SECONDS",
    help="For all measuring; each group takes the rounds that it can afford.",
)
@click.option(
    "--kernel",
    type=click.Choice(["auto", "host", "uml"]),
    default="auto",
    show_default=True,
    help="auto: IPVS is measured in user-mode Linux where this kernel has none.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder for the result; kproxy-bench-DATE by default.",
)
@output_option("json", "table")
@click.pass_context
def command(
    ctx: click.Context,
    profile: str,
    modes: tuple[str, ...],
    peers: tuple[str, ...],
    measures: tuple[str, ...],
    rounds: int | None,
    seconds: float | None,
    kernel: str,
    out: Path | None,
    output: str | None,
) -> None:
    """Measure every mode of this kernel beside its peers and direct routing.

    All are measured in each round, in changing order, in namespaces of their own. The folder gets
    results.json, report.html and its pictures; Ctrl-C ends with the rounds that were whole.

    Speed is compared by the 99.9 % interval of the ratios to direct routing. That takes 11 rounds:
    how many each group could afford is said.
    """
    if ctx.invoked_subcommand is not None:
        return
    from kproxy.bench import pictures, store
    from kproxy.bench.keeper import Keeper
    from kproxy.bench.session import Request, check, ended_once
    from kproxy.kernel import capabilities

    request = Request(
        profile=profile,
        modes=modes,
        peers=peers,
        measures=measures,
        rounds=rounds,
        seconds=seconds,
        kernel=kernel,  # type: ignore[arg-type]  # click has checked it
    )
    # What is wrong is said before anything is measured.
    check(request)
    if out is not None:
        store.free(out, _beside())
    if kernel != "uml":  # there everybody is root
        capabilities.require("kproxy bench", *_CAPABILITIES)
    store.prepare(out or Path())
    pictures.require()
    keeper = Keeper(out, _beside(), _warn)
    with ended_once():
        results, status = _measure(request, keeper)
        if keeper.folder is None:
            _nothing(results, status)
        folder, partial = keeper.folder, results.partial
        if partial:
            _warn(f"{partial}; writing the rounds that were whole")
        _draw(results, folder)
        if output == "json":
            click.echo(store.encode(results), nl=False)
        else:
            _show(results, folder)
    sys.exit(status)


def _measure(request: Request, keeper: Keeper) -> tuple[Results, int]:
    """What came of it, kept if there is anything, and the exit status."""
    from kproxy.bench.session import Session
    from kproxy.cli.bench_progress import progress

    with progress() as told:

        def heard(kernel: Kernel, step: Step) -> None:
            told(kernel, step)
            if step.kind == "ended" and _measured(so_far := session.results(_UNDER_WAY)):
                keeper.keep(so_far)

        session = Session(request, heard)
        try:
            partial, status = _run(session)
        except BaseException:
            _rescue(session.results("broken off by an error"), keeper)
            raise
        results = session.results(partial)
        if _measured(results):
            # Here, where nothing goes to a terminal or a pipe, which may be gone by now.
            keeper.keep(results)
    return results, status


def _run(session: Session) -> tuple[str, int]:
    """Measure; why it ended early ("": it did not), and the exit status for that."""
    try:
        session.run()
    except KeyboardInterrupt:
        return "interrupted", 130
    except SystemExit as ended:
        return "ended by a signal", int(ended.code or 0)
    return "", 0


def _measured(results: Results) -> bool:
    return any(section.rows for section in results.sections)


def _rescue(results: Results, keeper: Keeper) -> None:
    """What an error has left of hours of measuring is kept."""
    from kproxy.bench import store

    if _measured(results):
        kept = keeper.keep(results)
        _warn(f"what was measured until then is in {kept / store.NAME}")


def _warn(sentence: str) -> None:
    click.echo(f"kproxy: {sentence}", err=True)


def _nothing(results: Results, status: int) -> NoReturn:
    """Nothing was measured: leave, with the reasons."""
    from kproxy.bench import terminal
    from kproxy.errors import CheckFailed

    if status:
        click.echo("kproxy: ended before the first round was whole; nothing is kept", err=True)
        sys.exit(status)
    for line in terminal.shown(results):
        click.echo(line.text, err=True)
    raise CheckFailed("nothing could be measured", hint="see: kproxy doctor")


def _beside() -> Iterable[str]:
    """Names of what is written beside the result."""
    from kproxy.bench import html, pictures

    return (html.NAME, *pictures.files())


def _draw(results: Results, folder: Path) -> None:
    """What is made of the figures, which are kept whatever becomes of it."""
    from kproxy.bench import html, pictures

    pictures.write(results, folder)
    html.write(results, folder)


def _show(results: Results, folder: Path) -> None:
    from kproxy.bench import terminal

    _print(terminal.shown(results))
    click.echo(f"\n{folder}: results.json, report.html and its pictures")


def _harmless(text: str) -> str:
    """Without what a terminal would obey: a result may be somebody else's file."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _print(lines: Iterable[Line]) -> None:
    """With colours on a terminal, plain in a pipe."""
    if not sys.stdout.isatty():
        for line in lines:
            click.echo(_harmless(line.text))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for line in lines:
        console.print(Text(_harmless(line.text), style=line.style), soft_wrap=True)


@command.command(short_help="Tell what has become faster or slower between two results.")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@output_option("json", "table")
def compare(before: Path, after: Path, output: str | None) -> None:
    """Tell what has become faster or slower from BEFORE to AFTER (results.json or its folder).

    Ratios to direct routing are compared, so that another pace of the machine cancels out; figures
    without a base only when both machines are of one kind. A change is said when its 99.9 %
    interval (by ranks) leaves no change out and it exceeds the noise floor. That takes 7 rounds on
    each side.

    Exit status 0: nothing has become slower or fails more; 1: something has, or
    can no longer be measured; 2: no result.
    """
    import msgspec

    from kproxy.bench import store, terminal_compare
    from kproxy.bench.compare import compared

    found = compared(store.read(before), store.read(after))
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
    else:
        _print(terminal_compare.shown(found))
    sys.exit(1 if found.bad or found.lost else 0)
