"""Options that all commands about labs share, and shell completion of what is there right now."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from kproxy.errors import KproxyError, LabError

if TYPE_CHECKING:
    from kproxy.lab.model import LabState

#: A lab's name when nobody gives one.
DEFAULT_LAB = "lab"


def called(lab: str) -> str:
    """How a sentence names a lab: most people only ever have the one."""
    return "the lab" if lab == DEFAULT_LAB else f"lab {lab}"


_F = TypeVar("_F", bound=Callable[..., Any])


def chosen_lab(name: str | None) -> str:
    """The lab that a command acts on: the one named, else the only one up, else ``lab``."""
    from kproxy.lab import state

    if name:
        return name
    labs = state.list_labs()
    if not labs:
        state.require_root()
    if len(labs) > 1 and DEFAULT_LAB not in labs:
        raise LabError(f"several labs are up: {', '.join(labs)}", hint="say which with --name")
    return labs[0] if len(labs) == 1 else DEFAULT_LAB


def name_option(command: _F) -> _F:
    """``--name``: which lab; the parameter is ``lab`` (None when not given: :func:`chosen_lab`)."""
    return click.option(
        "--name",
        "-n",
        "lab",
        metavar="LAB",
        envvar="KPROXY_LAB",
        shell_complete=complete_labs,
        help="Which lab ($KPROXY_LAB); the only one that is up by default.",
    )(command)


def _matching(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_labs(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of labs that are up."""
    from kproxy.lab import state

    with suppress(KproxyError):
        return _matching(state.list_labs(), incomplete)
    return []


def complete_hosts(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Nodes, clients and pods of the lab that the command line so far names."""
    from kproxy.lab.uml import facts

    found, machine = _current(ctx)
    if machine:
        return _matching((host.name for host in facts.survey(machine).hosts), incomplete)
    return _matching((host.name for host in found.network.hosts), incomplete) if found else []


def complete_pods(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Pods of the lab that the command line so far names."""
    from kproxy.lab.uml import facts

    found, machine = _current(ctx)
    if machine:
        hosts = facts.survey(machine).hosts
        return _matching((host.name for host in hosts if host.kind == "pod"), incomplete)
    return _matching((pod.name for pod in found.pods), incomplete) if found else []


def complete_workloads(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Workloads of the lab that the command line so far names."""
    from kproxy.lab.uml import facts

    found, machine = _current(ctx)
    if machine:
        with suppress(KproxyError):
            return _matching(facts.workloads(machine), incomplete)
    return _matching((load.name for load in found.workloads), incomplete) if found else []


def _current(ctx: click.Context) -> tuple[LabState | None, str]:
    """The lab's state, or its name if it runs in a machine; neither: completion never complains."""
    from kproxy.lab import state
    from kproxy.lab.uml import resident

    try:
        lab = chosen_lab(ctx.params.get("lab"))
        return (None, lab) if resident.running(lab) else (state.find(lab), "")
    except (KproxyError, OSError):
        return None, ""
