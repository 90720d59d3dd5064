"""``kproxy render``: a mode's rules as text, for reading and comparing; needs no root."""

from __future__ import annotations

import click
import msgspec

from kproxy import config_check, flags
from kproxy.backends import registry
from kproxy.cli.common import manifests_option
from kproxy.config import Config
from kproxy.core.objects import Family
from kproxy.core.planner import Planner
from kproxy.core.settings import node_settings
from kproxy.core.tracker import Tracker
from kproxy.errors import CheckFailed

_FAMILIES = {"4": (Family.IPV4,), "6": (Family.IPV6,), "both": tuple(Family)}


@click.command()
@click.option(
    "--mode", default="iptables", show_default=True, help=", ".join(registry.names()) + "."
)
@click.option("--family", type=click.Choice(tuple(_FAMILIES)), default="both", help="IP family.")
@click.option("--variant", type=click.Choice(("legacy", "nft")), help="Of iptables mode [nft].")
@click.option("--config", "config_file", metavar="FILE", help="KubeProxyConfiguration.")
@click.option("--node", "node", metavar="NAME", help="Node whose rules these are.")
@manifests_option(required=True)
def command(
    mode: str,
    family: str,
    variant: str | None,
    config_file: str | None,
    node: str | None,
    filenames: tuple[str, ...],
) -> None:
    """Print the rules that a node gets for these manifests.

    Objects and fields that are left out are told on stderr; the rest is printed, and the exit
    status is 1.
    """
    config, warnings = flags.load(config_file) if config_file else (Config(), ())
    config_check.check(config, where=config_file or "config")
    choice = registry.parse(f"{mode}-{variant}" if variant else mode)
    config = msgspec.structs.replace(
        config, mode=choice.mode, hostname_override=node or config.hostname_override
    )
    refusals = _render(config, choice, _FAMILIES[family], filenames)
    for line in (*warnings, *refusals):
        click.echo(f"kproxy: {line}", err=True)
    if refusals:
        left_out = "1 thing is" if len(refusals) == 1 else f"{len(refusals)} things are"
        raise CheckFailed(f"{left_out} left out", hint="see above")


def _render(
    config: Config,
    choice: registry.Choice,
    families: tuple[Family, ...],
    filenames: tuple[str, ...],
) -> tuple[str, ...]:
    """Print each family's rules; returns what was left out."""
    from kproxy.daemon import node_name
    from kproxy.sources.manifests import ManifestSource

    source = ManifestSource(filenames)
    tracker = Tracker()
    tracker.apply(source.load(to_end=True))
    for notice in source.notices:
        click.echo(f"kproxy: {notice}", err=True)
    name = node_name(config)
    refusals = [str(refusal) for refusal in source.refusals]
    node = tracker.node(name)
    # Without looking at this host: what the Node says stands for the addresses of the namespace.
    addresses = node.addresses if node is not None else ()
    for family in families:
        settings = node_settings(config, node, name, family, addresses)
        snapshot = Planner(family).plan(tracker, settings)
        refusals += map(str, snapshot.conflicts)
        if len(families) > 1:
            click.echo(f"# IPv{int(family)}")
        for piece in registry.text(choice, snapshot):
            click.echo(piece, nl=False)
    return tuple(dict.fromkeys(refusals))
