"""``kproxy lab get``: a lab's objects in kubectl's columns, or as YAML and JSON."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem

from kproxy.cli.common import output_option
from kproxy.cli.lab_options import chosen_lab, name_option
from kproxy.errors import LabError, UsageError

#: What ``all`` stands for, in the order of printing.
_ALL = ("Node", "Deployment", "Pod", "Service", "EndpointSlice")

#: kind -> what stands before the name when several kinds are printed.
_PREFIX = {"Deployment": "workload"}


def _complete_kinds(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    names = ("services", "endpoints", "endpointslices", "pods", "nodes", "workloads", "all")
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.command()
@name_option
@click.option("--namespace", help="Only objects of this Kubernetes namespace.")
@click.option("-A", "--all-namespaces", is_flag=True, help="Show the NAMESPACE column.")
@output_option("wide", "yaml", "json", "name")
@click.argument("kinds", metavar="KIND[,KIND…]", shell_complete=_complete_kinds)
@click.argument("names", metavar="[NAME]…", nargs=-1)
def command(
    lab: str | None,
    namespace: str | None,
    all_namespaces: bool,
    output: str | None,
    kinds: str,
    names: tuple[str, ...],
) -> None:
    """Show services, endpoints, endpointslices, pods, nodes or workloads.

    Short names are kubectl's (svc, ep, po, no); "all" is all of them. Objects of every namespace
    are shown, unless --namespace says which.
    """
    from kproxy.lab import state
    from kproxy.lab.controllers import fill
    from kproxy.lab.tables import objects_of

    there = state.load(chosen_lab(lab))
    done = fill(there, state.load_allocations(there.name))
    born = _born(there)
    found: dict[str, list[dict[str, Any]]] = {}
    for kind in _kinds(kinds):
        objects = objects_of(kind, there, done, born)
        found[kind] = [
            obj
            for obj in objects
            if (not names or obj["metadata"]["name"] in names)
            and namespace in (None, obj["metadata"].get("namespace"))
        ]
    missing = set(names) - {obj["metadata"]["name"] for part in found.values() for obj in part}
    if missing:
        raise LabError(
            f"not found: {', '.join(sorted(missing))}", hint=f"see: kproxy lab get {kinds}"
        )
    if output in ("yaml", "json"):
        _emit([obj for part in found.values() for obj in part], output, single=len(names) == 1)
    else:
        _print(found, output, all_namespaces)


def _kinds(text: str) -> tuple[str, ...]:
    from kproxy.lab.edits import KIND_NAMES

    if text == "all":
        return _ALL
    kinds: list[str] = []
    for word in text.lower().split(","):
        if word not in KIND_NAMES:
            raise UsageError(
                f"no kind {word!r} in a lab", hint=f"kinds: {', '.join(sorted(KIND_NAMES))}, all"
            )
        kinds.append(KIND_NAMES[word])
    return tuple(kinds)


def _born(there: Any) -> dict[str, float]:
    """When each host's namespace was made: the age of its mount under /run/netns."""
    from contextlib import suppress

    from kproxy.kernel import netns

    born: dict[str, float] = {}
    for host in there.network.hosts:
        with suppress(FileNotFoundError):
            born[host.name] = netns.path_of(there.network.namespace(host.name)).stat().st_ctime
    return born


def _emit(objects: list[dict[str, Any]], output: str, *, single: bool) -> None:
    from kproxy.cli.common import emit

    if single and len(objects) == 1:
        emit(objects[0], output)
    else:
        emit({"apiVersion": "v1", "kind": "List", "items": objects}, output)


def _print(
    found: dict[str, list[dict[str, Any]]], output: str | None, all_namespaces: bool
) -> None:
    """Tables as kubectl prints them: plain on a terminal too, for people who know them."""
    import time

    from kproxy.lab.tables import aligned, table_of

    now = time.time()
    shown = 0
    for kind, objects in found.items():
        prefix = f"{_PREFIX.get(kind, kind.lower())}/" if len(found) > 1 or output == "name" else ""
        if output == "name":
            for obj in objects:
                click.echo(f"{prefix}{obj['metadata']['name']}")
            shown += len(objects)
            continue
        if not objects:
            continue
        table = table_of(kind, objects, wide=output == "wide", now=now)
        rows = [(prefix + row[0], *row[1:]) for row in table.rows]
        columns = table.columns
        spaces = [obj["metadata"].get("namespace", "") for obj in objects]
        if all_namespaces or set(spaces) - {"", "default"}:
            columns = ("NAMESPACE", *columns)
            rows = [(space, *row) for space, row in zip(spaces, rows, strict=True)]
        if shown:
            click.echo()
        click.echo("\n".join(aligned(columns, rows)))
        shown += len(objects)
    if not shown:
        click.echo("No resources found.", err=True)
