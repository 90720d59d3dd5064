"""Measures of IPVS mode, one a run, because each wants a kernel that has had no servers yet.

    python -m bench.ipvs_measures kproxy|tools|changes|churn COUNT

In the network namespace of the caller; :mod:`bench.bench_ipvs` gives each a kernel and says what
the figures mean. Prints one JSON object on the last line. Seconds everywhere.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from bench.churn import SETTINGS, Churn
from kproxy.backends.ipvs import text
from kproxy.backends.ipvs.apply import IpvsBackend
from kproxy.backends.ipvs.door import KernelDoor
from kproxy.backends.ipvs.fixed import Context
from kproxy.backends.ipvs.host import Machine
from kproxy.backends.ipvs.render import Desired, render
from kproxy.backends.ipvs.sets import kinds
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables.variant import Variant
from kproxy.bench import workload
from kproxy.core.objects import Family
from kproxy.core.snapshot import Snapshot
from kproxy.kernel import command, netns

V4 = Family.IPV4
ENDPOINTS = 10
#: One-endpoint changes that are averaged, and those before them that warm caches up.
CHANGES, WARM = 300, 20
#: Services of the cluster that changes at random.
CHURNING = 200

#: What autoload would load in the middle of a measure, but for what :func:`rehearse` needs.
_MODULES = ("ip_vs", "ip_vs_rr", "ip_vs_wrr", "ip_vs_lc", "ip_vs_wlc", "ip_vs_sh", "ip_vs_mh")

Figures = dict[str, Any]


class Timed(KernelDoor):
    """The kernel's door with a clock at it: what was asked of it -> seconds, all calls."""

    def __init__(self, records: Path) -> None:
        super().__init__(V4, Variant.LEGACY, records=records)
        self.spent: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found):
            return found

        def timed(*args: Any, **more: Any) -> Any:
            start = time.perf_counter()
            try:
                return found(*args, **more)
            finally:
                self.spent[name] += time.perf_counter() - start

        return timed


def snapshot(services: int) -> Snapshot:
    made = workload.snapshot(services, ENDPOINTS)
    return msgspec.structs.replace(made, settings=SETTINGS)


@contextmanager
def backend() -> Iterator[tuple[IpvsBackend, Timed]]:
    """One with records and a lock of its own."""
    with TemporaryDirectory(prefix="kproxy-bench-") as folder:
        os.environ["XTABLES_LOCKFILE"] = f"{folder}/lock"
        door = Timed(Path(folder) / "records")
        yield IpvsBackend(V4, Variant.LEGACY, door=door, machine=Machine()), door


def kproxy(services: int) -> Figures:
    """A first sync in an empty kernel, from the Snapshot until everything is in force."""
    now = snapshot(services)
    with backend() as (made, door):
        wall, cpu = time.perf_counter(), time.process_time()
        Syncer(made).sync(now)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        parts = _parts(door.spent)
        return {"wall": wall, "cpu": cpu, "parts": parts, "held": _held(door)}


def tools(services: int) -> Figures:
    """The same content by the bare tools, each started once with all of its text."""
    desired = _desired(snapshot(services))
    given: dict[str, tuple[list[str], Callable[[Desired], Iterator[str]]]] = {
        "ipset restore": (["ipset", "restore"], text.sets),
        "iptables-restore": (["iptables-legacy-restore", "--noflush"], text.rules),
        "ipvsadm --restore": (["ipvsadm", "--restore"], text.servers),
        "ip -batch": (["ip", "-batch", "-"], text.addresses),
    }
    parts = {}
    with backend() as (_, door):
        for name, (argv, lines) in given.items():
            content = "".join(lines(desired)).encode()
            start = time.perf_counter()
            command.run(argv, stdin=content, timeout=600)
            parts[name] = time.perf_counter() - start
        return {"wall": sum(parts.values()), "parts": parts, "held": _held(door)}


def changes(services: int) -> Figures:
    """One endpoint of one service is replaced, again and again, in a cluster that is in force."""
    now = snapshot(services)
    with backend() as (made, door):
        syncer = Syncer(made)
        syncer.sync(now)
        made.tend()
        history = []
        for number in range(WARM + CHANGES):
            now = workload.changed(
                now, workload.plan(number % services, ENDPOINTS, shift=1 + number // services)
            )
            history.append(now)
        for each in history[:WARM]:
            syncer.sync(each)
            made.tend()
        door.spent.clear()
        wall, cpu = time.perf_counter(), time.process_time()
        for each in history[WARM:]:
            syncer.sync(each)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        parts = {name: each / CHANGES for name, each in _parts(door.spent).items()}
        start = time.process_time()
        made.tend()
        tending = time.process_time() - start
        return {
            "wall": wall / CHANGES,
            "cpu": cpu / CHANGES,
            "parts": parts,
            "tending": tending,
            "settled": _settled(made, each),
        }


def churn(count: int) -> Figures:
    """Random changes; afterwards the kernel is compared with what a fresh start would make."""
    history = Churn(CHURNING)
    with backend() as (made, door):
        syncer = Syncer(made)
        syncer.sync(history.snapshot)
        start = time.perf_counter()
        for _ in range(count):
            syncer.sync(history.step())
            made.tend()
        wall = time.perf_counter() - start
        while made.tend() is not None:
            time.sleep(0.1)  # No connection holds anything: what is told to go goes.
        desired = _desired(history.afresh())
        wanted = {
            "servers": len(desired.servers),
            "reals": sum(len(virtual.reals) for virtual, _ in desired.servers.values()),
            "members": len(desired.members.all),
            "addresses": len(desired.addresses.all),
        }
        return {
            "wall": wall / count,
            "settled": _settled(made, history.afresh()),
            "held": _held(door),
            "wanted": wanted,
        }


def rehearse() -> None:
    """Rules, sets and the device once in another namespace: the kernel loads a dozen modules for
    them, which is neither kproxy's work nor the tools'."""
    command.run(["modprobe", "-a", *_MODULES])
    desired = _desired(Snapshot(V4, SETTINGS, {}))
    with netns.fresh():
        for argv, lines in (
            (["ipset", "restore"], text.sets),
            (["iptables-legacy-restore"], text.rules),
            (["ip", "-batch", "-"], text.addresses),
        ):
            command.run(argv, stdin="".join(lines(desired)).encode())


def _desired(now: Snapshot) -> Desired:
    machine = Machine()
    context = Context(
        V4, now.settings, random_fully=machine.random_fully, drop_invalid=machine.drop_invalid
    )
    return render(now, context, machine.kernel, None)


def _settled(made: IpvsBackend, now: Snapshot) -> bool:
    """Whether a proxy that starts now has nothing to write."""
    return made.diff(_desired(now), made.read()) is None


def _held(door: KernelDoor) -> Mapping[str, int]:
    """How many of each are in the kernel."""
    servers = door.servers().servers
    sets = door.read_sets(kinds(V4))
    return {
        "servers": len(servers),
        "reals": sum(len(server.reals) for server in servers.values()),
        "members": sum(len(members) for members in sets.values() if members),
        "addresses": len(door.addresses() or ()),
    }


def _parts(spent: Mapping[str, float]) -> dict[str, float]:
    """What took any time worth a figure, the longest first."""
    known = sorted(spent.items(), key=lambda item: -item[1])
    return {name: seconds for name, seconds in known if seconds > 1e-5}


MEASURES: Mapping[str, Callable[[int], Figures]] = {
    each.__name__: each for each in (kproxy, tools, changes, churn)
}


def main(name: str, count: str) -> None:
    rehearse()
    sys.stdout.write(json.dumps(MEASURES[name](int(count))) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
