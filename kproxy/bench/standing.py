"""A subject that serves on a path of its own and has come to rest: ready to be measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from kproxy.bench.load import Kind, Load, Place
from kproxy.bench.path import Path
from kproxy.bench.peers import Subject, running
from kproxy.core.objects import Family
from kproxy.errors import CheckFailed, KproxyError

#: Whether it serves at all, from every address of the client; and the way's neighbours are known.
_PROOF = Load(Kind.CRR, connections=4, operations=40, seconds=5.0, timeout=2.0)

#: Daemons that start at once: more would only wait for each other.
_AT_ONCE = 4


class Standing(NamedTuple):
    """A subject and the path that it serves on."""

    path: Path
    subject: Subject


@contextmanager
def stood(subject: Subject, family: Family = Family.IPV4) -> Iterator[Standing]:
    """It stands within. MachineError, CheckFailed: it cannot be started, or does not serve."""
    with Path() as path, running(subject, path):
        yield ready(Standing(path, subject), family)


def ready(standing: Standing, family: Family = Family.IPV4) -> Standing:
    """The same, proved to serve and calm. CheckFailed: it does not serve, or come to rest."""
    standing.subject.await_calm()
    prove(standing, standing.subject.place(family))
    return standing


def prove(standing: Standing, place: Place) -> None:
    """CheckFailed: it does not serve there."""
    path, subject = standing
    result = path.run(_PROOF, place)
    if result.failed or not result.completed:
        failures = ", ".join(f"{count} {kind}" for kind, count in result.failures.items())
        raise CheckFailed(
            f"{subject.name} does not serve: {failures or 'nothing was answered'}",
            where=f"{place[0]} port {place[1]}",
        )
    path.forget()


def all_stood(
    stack: ExitStack, all_: Mapping[str, Subject], family: Family = Family.IPV4
) -> tuple[dict[str, Standing], dict[str, str]]:
    """All that can stand, until ``stack`` ends, and why the others cannot. They start several at a
    time and are proved when all have started."""
    standing = {name: Standing(stack.enter_context(Path()), each) for name, each in all_.items()}

    def start(each: Standing) -> Standing:
        stack.callback(each.subject.stop)
        each.subject.start(each.path)
        return each

    failed: dict[str, str] = {}
    standing = _each(standing, start, failed)
    return _each(standing, lambda each: ready(each, family), failed), failed


def _each(
    standing: Mapping[str, Standing],
    do: Callable[[Standing], Standing],
    failed: dict[str, str],
) -> dict[str, Standing]:
    """Do something with each, several at once; those for which it went well."""
    done = {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        begun = {name: pool.submit(do, each) for name, each in standing.items()}
        for name, job in begun.items():
            try:
                done[name] = job.result()
            except KproxyError as why:
                failed[name] = str(why)
    return done
