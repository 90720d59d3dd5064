"""``kproxy run``: a node's service proxy, with kube-proxy's own flags."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from kproxy import config_check, flags
from kproxy.cli.common import manifests_option
from kproxy.config import Config
from kproxy.errors import ConfigError, UsageError
from kproxy.flags import Flag, Kind
from kproxy.status import DEFAULT_STATE_DIR

_OWN = "kproxy's own"


class FlagText(click.ParamType[object]):
    """The text of one of kube-proxy's flags."""

    def __init__(self, flag: Flag) -> None:
        self.flag = flag
        self.name = str(flag.kind)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        # `-v=2` is how people write it for kube-proxy; a short option here keeps the sign.
        text = str(value).removeprefix("=") if self.flag.short else str(value)
        try:
            return flags.read_flag(self.flag, text)
        except ValueError as wrong:
            self.fail(str(wrong), param, ctx)


class FlagOption(click.Option):
    """An option made from the table of flags; knows the heading it stands under."""

    def __init__(self, flag: Flag) -> None:
        names = [f"-{flag.short}"] if flag.short else []
        names += [f"--{name}" for name in (flag.name, *flag.aliases)]
        alone: dict[str, Any] = (
            {"is_flag": False, "flag_value": "true"} if flag.kind is Kind.FLAG else {}
        )
        default = f" [{flag.default}]" if flag.default else ""
        super().__init__(
            [*names, _parameter(flag)],
            type=FlagText(flag),
            metavar=str(flag.kind).upper(),
            help=f"{flag.help}{default}",
            **alone,
        )
        self.group = flag.group


class GroupedCommand(click.Command):
    """Prints its options under the headings of the table of flags."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(param, "group", _OWN), []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)


def _parameter(flag: Flag) -> str:
    return f"flag_{flag.name.replace('-', '_')}"


@click.command(cls=GroupedCommand)
@manifests_option(required=False)
@click.option(
    "--config", "config_file", metavar="FILE", help="KubeProxyConfiguration; wins over flags."
)
@click.option("--write-config-to", metavar="FILE", help="Write the settings there and exit.")
@click.option("--cleanup", is_flag=True, help="Remove the rules of every mode and exit.")
@click.option("--init-only", is_flag=True, help="Not in this version.")
@click.option(
    "--iptables-variant",
    "variant",
    type=click.Choice(("auto", "legacy", "nft")),
    default="auto",
    help="Which kernel part iptables mode uses; auto: the host's.",
)
@click.option(
    "--state-dir",
    metavar="DIR",
    default=DEFAULT_STATE_DIR,
    help=f"Status and lock [{DEFAULT_STATE_DIR}].",
)
def command(
    filenames: tuple[str, ...],
    config_file: str | None,
    write_config_to: str | None,
    cleanup: bool,
    init_only: bool,
    variant: str,
    state_dir: str,
    **given: object,
) -> None:
    """Be this node's service proxy: kube-proxy's flags, objects from manifests (-f)."""
    config, warnings = flags.config_of(_values(given), config_file)
    if init_only:
        raise UsageError("--init-only is not in this version", hint="run without it, as root")
    for warning in warnings:
        click.echo(f"kproxy: warning: {warning}", err=True)
    if write_config_to:
        _write(config, write_config_to)
        return
    if cleanup:
        from kproxy.cli.cleanup import clean

        clean()
        return
    config_check.check(config, where=config_file or "flags")
    from kproxy import daemon

    sys.exit(daemon.main(config, filenames, state_dir, variant))


command.params.extend(FlagOption(flag) for flag in flags.FLAGS)


def _values(given: dict[str, object]) -> dict[str, object]:
    """The flags that were given, by their names."""
    return {
        flag.name: given[_parameter(flag)]
        for flag in flags.FLAGS
        if given[_parameter(flag)] is not None
    }


def _write(config: Config, path: str) -> None:
    config_check.check(config, where="flags")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(flags.dump(config))
    except OSError as failed:
        raise ConfigError(f"cannot be written: {failed.strerror}", where=path) from failed
    click.echo(f"wrote {Path(path)}")
