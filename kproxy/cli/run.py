"""``kproxy run``: a node's service proxy, with kube-proxy's own flags."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import click

from kproxy import config_check, flags
from kproxy.cli.common import manifests_option
from kproxy.config import Config
from kproxy.errors import ConfigError, KernelError
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
            # Kept, so that all wrong flags are told at once.
            return WrongText(f"--{self.flag.name}: {wrong}")


class WrongText(NamedTuple):
    """Stands for the value of a flag whose text cannot be read."""

    problem: str


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
@click.option("--init-only", is_flag=True, help="Do what needs most rights (sysctls) and exit.")
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
@click.option(
    "--take-over",
    is_flag=True,
    help="A kproxy that runs here in another mode makes room, without a gap.",
)
def command(
    filenames: tuple[str, ...],
    config_file: str | None,
    write_config_to: str | None,
    cleanup: bool,
    init_only: bool,
    variant: str,
    state_dir: str,
    take_over: bool,
    **given: object,
) -> None:
    """Be this node's service proxy: kube-proxy's flags, objects from manifests (-f)."""
    values = _values(given, config_file)
    config, warnings = flags.config_of(values, config_file)
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
    if init_only:
        _init(config, variant)
        return
    from kproxy import daemon
    from kproxy.config_watch import ConfigFile

    file = None
    if config_file is not None:
        file = ConfigFile(config_file, lambda: flags.config_of(values, config_file)[0])
    sys.exit(
        daemon.main(config, filenames, state_dir, variant, config_file=file, take_over=take_over)
    )


command.params.extend(FlagOption(flag) for flag in flags.FLAGS)


def _values(given: dict[str, object], config_file: str | None) -> dict[str, object]:
    """The flags that were given, by their names. ConfigError tells all that is wrong with them."""
    named = {flag.name: given[_parameter(flag)] for flag in flags.FLAGS}
    wrong = [value.problem for value in named.values() if isinstance(value, WrongText)]
    values = {
        name: value
        for name, value in named.items()
        if value is not None and not isinstance(value, WrongText)
    }
    if wrong:
        config, _ = flags.config_of(values, config_file)
        wrong += config_check.problems(config)
        raise ConfigError("; ".join(wrong), hint="try: kproxy run --help")
    return values


def _init(config: Config, variant: str) -> None:
    """What needs more rights than the daemon: a later run finds it done."""
    from kproxy import logs, node_setup
    from kproxy.backends import registry
    from kproxy.daemon import node_name
    from kproxy.kernel import capabilities

    capabilities.require("kproxy run --init-only", "CAP_NET_ADMIN")
    logs.setup(config.logging.format, config.logging.verbosity)
    choice = registry.named(config.effective_mode, variant)
    failed = node_setup.prepare(config)
    node_setup.prepare_mode(config, choice, node_name(config))
    if failed:
        raise KernelError("; ".join(failed), hint="a run as root in the host's namespace may")


def _write(config: Config, path: str) -> None:
    config_check.check(config, where="flags")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(flags.dump(config))
    except OSError as failed:
        raise ConfigError(f"cannot be written: {failed.strerror}", where=path) from failed
    click.echo(f"wrote {Path(path)}")
