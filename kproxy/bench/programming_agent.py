"""One mode is given a cluster of some size: a process of its own, in a namespace of its own.

    python -m kproxy.bench.programming_agent MODE SERVICES FOLDER    # one Programmed as JSON

``FOLDER`` is for what a daemon would keep in its state directory; the process is started by
:func:`measured`.

What is timed is a sync of the mode's backend, from a finished Snapshot to the kernel's last
acknowledgement; making Snapshots is not in it, nor is the backend's look at the machine when it
starts. In userspace and fastpath modes a sync ends when the relay or the engine serves.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from kproxy.backends import registry
from kproxy.backends.base import Applied, Keeping, Tending
from kproxy.backends.built import AnyBackend
from kproxy.backends.syncer import Syncer
from kproxy.bench import usage, workload
from kproxy.bench.helper import ROOT
from kproxy.bench.results import Cost
from kproxy.core.objects import Family, Value
from kproxy.core.snapshot import PortPlan, Snapshot
from kproxy.errors import CheckFailed
from kproxy.kernel import command, netns
from kproxy.kernel.process import raise_open_files

V4 = Family.IPV4

#: Of each service, and services changed in one sync. Smaller clusters have no such burst.
ENDPOINTS, BURST = 10, 1000

#: The service of which one endpoint is replaced: with a cluster IP and nothing else.
_CHANGED = 3

#: Single changes: the first is left out, as it warms caches up; no more than so many are taken, and
#: no more after so many seconds, but for the least.
_WARM, _MOST, _LEAST, _SECONDS = 1, 20, 2, 1.0


class Programmed(Value, frozen=True):
    """Seconds of a first sync in an empty kernel (``cold``), of one that replaces an endpoint of
    one service (``one``: the median of ``changes`` of them), and of one that does so in
    :data:`BURST` services (``burst``; None: there are fewer). ``refused`` service ports were left
    out of the first one. ``cost`` is the first sync's; what the kernel does for it, it does in this
    process's and its tools' own system calls."""

    cold: float
    one: float
    burst: float | None
    changes: int
    refused: int
    cost: Cost


def measured(mode: str, services: int) -> Programmed:
    """In a namespace made for it, which ends with it. CheckFailed: the process failed."""
    argv = [sys.executable, "-m", "kproxy.bench.programming_agent", mode, str(services)]
    with TemporaryDirectory(prefix="kproxy-bench-") as folder, netns.fresh():
        # A namespace that never had an address has no local table, and without one IPVS takes no
        # address of a real server for a unicast one (fib_frontend.c: __inet_dev_addr_type).
        command.run(["ip", "link", "set", "lo", "up"])
        environment = {
            **os.environ,
            "XTABLES_LOCKFILE": str(Path(folder, "lock")),
            "KPROXY_RECORDS": str(Path(folder, "records")),
        }
        done = subprocess.run(
            [*argv, folder],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            check=False,
            start_new_session=True,
        )
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise CheckFailed(
            f"{mode} with {services:,} services: {words[-1] if words else 'it said nothing'}",
            where=f"a sync that ended with status {done.returncode}",
        )
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Programmed)


# --- the process --------------------------------------------------------------------------------


class _Cluster:
    """``services`` that change, in a kernel that holds them."""

    def __init__(self, backend: AnyBackend, services: int) -> None:
        self._backend = backend
        self._syncer = Syncer(backend)
        settings = workload.SETTINGS[V4]
        # Where ipvs mode has a virtual server for each node port.
        settings = msgspec.structs.replace(settings, local_addresses=settings.addresses)
        made = workload.snapshot(services, ENDPOINTS)
        self.now: Snapshot = msgspec.structs.replace(made, settings=settings)
        self._shifts: Counter[int] = Counter()

    def sync(self) -> Applied:
        return self._syncer.sync(self.now)

    def change(self, count: int) -> float:
        """Seconds in which ``count`` services have an endpoint replaced."""
        first = _CHANGED if count == 1 else 0
        numbers = range(first, first + count)
        self._shifts.update(numbers)
        self.now = workload.changed(self.now, *self._plans(numbers))
        seconds = _timed(self.sync)
        if isinstance(self._backend, Tending):
            # What a daemon does when nobody waits.
            self._backend.tend()
        return seconds

    def _plans(self, numbers: range) -> list[PortPlan]:
        return [workload.plan(each, ENDPOINTS, shift=self._shifts[each]) for each in numbers]


def _programmed(backend: AnyBackend, services: int) -> Programmed:
    cluster = _Cluster(backend, services)
    held, spent = usage.kernel_memory(), _own_seconds()
    begun = time.perf_counter()
    applied = cluster.sync()
    cold = time.perf_counter() - begun
    spent, held = _own_seconds() - spent, usage.kernel_memory() - held
    changes = _changes(cluster)
    return Programmed(
        cold=cold,
        one=statistics.median(changes),
        burst=cluster.change(BURST) if services >= BURST else None,
        changes=len(changes),
        refused=len(applied.refused),
        cost=Cost(
            seconds=cold,
            proxy=spent,
            kernel_memory=max(0.0, held),
        ),
    )


def _changes(cluster: _Cluster) -> list[float]:
    for _ in range(_WARM):
        cluster.change(1)
    deadline = time.perf_counter() + _SECONDS
    taken: list[float] = []
    while len(taken) < _MOST and (len(taken) < _LEAST or time.perf_counter() < deadline):
        taken.append(cluster.change(1))
    return taken


def _timed(what: Callable[[], object]) -> float:
    begun = time.perf_counter()
    what()
    return time.perf_counter() - begun


def _own_seconds() -> float:
    """CPU of this process, of its threads, and of tools that it started and that have ended."""
    tools = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + tools.ru_utime + tools.ru_stime


def main() -> None:
    asked = ArgumentParser(prog="python -m kproxy.bench.programming_agent")
    asked.add_argument("mode")
    asked.add_argument("services", type=int)
    asked.add_argument("folder")
    given = asked.parse_args()
    raise_open_files()
    backend = registry.create(registry.parse(given.mode), V4)
    backend.probe()
    if isinstance(backend, Keeping):
        backend.keep(given.folder)
    try:
        found = _programmed(backend, given.services)
    finally:
        if isinstance(backend, Keeping):
            backend.close()
    sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")


if __name__ == "__main__":
    main()
