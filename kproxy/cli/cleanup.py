"""``kproxy cleanup``: every trace of ours out of this network namespace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import click

from kproxy import occupancy
from kproxy.backends import registry
from kproxy.core.objects import Family
from kproxy.errors import KernelError, KproxyError, MachineError, OccupiedError
from kproxy.kernel import capabilities, sysctl

#: Seconds for a proxy that runs here to end its sync.
_ROOM = 20.0


@click.command()
@click.option("--force", is_flag=True, help="Also beside a proxy that runs here.")
def command(force: bool) -> None:
    """Remove every trace of kproxy from this network namespace.

    Every mode and variant, both families. Rules that other programs made stay, and so do chains
    that they still use. Beside a kproxy that runs here nothing is done: it would write its rules
    again.
    """
    clean(force=force)


def clean(*, force: bool = False) -> None:
    """Clean up and say what was removed. KernelError when something would not go, OccupiedError
    when a proxy runs here, unless ``force`` says that this is known."""
    capabilities.require("kproxy cleanup", "CAP_NET_ADMIN")
    here = _who_is_here(force=force)
    with nullcontext() if here is None else _room(here.pid):
        _clean()


def _clean() -> None:
    failures = []
    restored: tuple[str, ...] = ()
    try:
        # Before the rules: route_localnet without its guard would open 127.0.0.1 to neighbours.
        restored = sysctl.restore()
    except KernelError as refused:
        failures.append(str(refused))
    for name in restored:
        click.echo(f"restored: {name}")
    backends = {
        f"{choice} IPv{int(family)}": registry.create(choice, family)
        for choice in registry.choices()
        for family in Family
    }
    before = {name: _held(backend) for name, backend in backends.items()}
    for name, backend in backends.items():
        try:
            if before[name] is not None:
                backend.cleanup()
        except KernelError as refused:
            failures.append(f"{name}: {refused}")
    removed = [name for name, backend in backends.items() if _held(backend) != before[name]]
    for name in removed:
        click.echo(f"removed: {name}")
    if failures:
        raise KernelError("; ".join(failures), hint="try again")
    if not removed and not restored:
        click.echo("nothing of kproxy was here")


def _who_is_here(*, force: bool) -> occupancy.Occupant | None:
    """The proxy that runs here."""
    here = occupancy.occupant()
    if here is None:
        return None
    what = f"{here} is the proxy of this network namespace, and writes its rules again"
    if not force:
        hint = f"stop it first ({here.to_stop}), or: kproxy cleanup --force"
        raise OccupiedError(what, hint=hint)
    click.echo(f"kproxy: warning: {what}", err=True)
    return here


@contextmanager
def _room(pid: int) -> Iterator[None]:
    """The proxy that runs here writes nothing meanwhile: two that change one table at once refuse
    each other's changes. One that does not listen is no reason not to clean."""
    from kproxy import changeover
    from kproxy.backends.userspace.bequest import close_all

    standing = changeover.Standing(pid)
    locks: tuple[int, ...] = ()
    try:
        locks = standing.locks("cleanup", Path("/"), patience=_ROOM)
    except KproxyError as silent:
        click.echo(f"kproxy: warning: {silent}", err=True)
    try:
        yield
    finally:
        close_all(locks)
        standing.close()


def _held(backend: registry.AnyBackend) -> object:
    """What is there of ours; None where this machine has no tool for it, so that nothing can be."""
    try:
        return backend.read()
    except MachineError:
        return None
