"""Entry point of the ``kproxy`` command.

``kproxy --help`` must answer within 150 ms, so a command's module is imported only when that
command runs: the table below holds each command's one-line help.
"""

from __future__ import annotations

import importlib
import sys

import click

from kproxy import __version__
from kproxy.errors import KproxyError

#: command -> (module with an attribute ``command``, one-line help), in the order of --help.
COMMANDS: dict[str, tuple[str, str]] = {
    "lab": ("kproxy.cli.lab", "Bring up and use a lab of network namespaces."),
    "scenario": ("kproxy.cli.scenario", "Run real packets against expectations."),
    "bench": ("kproxy.cli.bench", "Measure every mode beside its peers, and report."),
    "render": ("kproxy.cli.render", "Print the rules of a mode as text; needs no root."),
    "run": ("kproxy.cli.run", "Be a node's service proxy."),
    "events": ("kproxy.cli.events", "Print what became of endpoints, and why."),
    "doctor": ("kproxy.cli.doctor", "Tell what this kernel and machine can run."),
    "cleanup": ("kproxy.cli.cleanup", "Remove every trace of kproxy from this network namespace."),
    "fastpath": ("kproxy.cli.fastpath", "Run a capture through the packet engine."),
    "completion": ("kproxy.cli.completion", "Print the script for completion in a shell."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported on use; ``table`` is like :data:`COMMANDS`."""

    def __init__(self, *args: object, table: dict[str, tuple[str, str]], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        command = importlib.import_module(self.table[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])


@click.command(
    cls=LazyGroup,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="kproxy")
def cli() -> None:
    """A Kubernetes service proxy, and a laboratory to watch it work."""


def main() -> None:
    """Run the command line; every error is one line on stderr and its exit status."""
    try:
        status = cli(prog_name="kproxy", standalone_mode=False)
    except KproxyError as error:
        click.echo(f"kproxy: {error}", err=True)
        status = error.exit_status
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        status = error.exit_code
    except click.ClickException as error:
        click.echo(f"kproxy: {_one_line(error)}", err=True)
        status = error.exit_code
    except OSError as error:
        # Nobody told better what it means: a full disk, a file system that is read only.
        place = f"{error.filename}: " if error.filename else ""
        click.echo(f"kproxy: {place}{error.strerror or error}", err=True)
        status = 1
    except click.Abort:
        status = 130  # as a shell says of a process that SIGINT ended
    # A command may return nothing (fine) or an exit status, as click's --help does.
    sys.exit(status if isinstance(status, int) else 0)


def _one_line(error: click.ClickException) -> str:
    """What is wrong and where to read more, without click's usage block."""
    text = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{text}; try: {context.command_path} --help" if context else text
