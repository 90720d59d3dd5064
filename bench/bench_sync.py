"""Each stage of a sync apart, and the whole beside a bare restore; README.md says how to read it.

    python -m pytest bench/bench_sync.py --benchmark-columns=median,min,rounds

The kernel is that of a network namespace made for each measurement (root). ``KPROXY_BENCH_SIZES``
names other sizes than 100, 1,000 and 5,000 services. iptables mode; the same of nftables mode is
``bench_nftables.py``, of IPVS mode ``bench_ipvs.py``.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.endpoint_set import NAMES
from kproxy.backends.iptables.host import Machine
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables.door import ToolDoor
from kproxy.backends.xtables.variant import Variant
from kproxy.bench import workload
from kproxy.core.decode import decode_json
from kproxy.core.events import Delta
from kproxy.core.objects import ClusterObject, Family
from kproxy.core.planner import Planner
from kproxy.core.snapshot import Snapshot
from kproxy.core.tracker import Tracker
from kproxy.kernel import command, netns

SIZES = [int(size) for size in os.environ.get("KPROXY_BENCH_SIZES", "100,1000,5000").split(",")]
ENDPOINTS = 10
ROUNDS = {100: 15, 1000: 7}
FEW_ROUNDS = 5

#: Locks and records of this run.
_FOLDER = TemporaryDirectory(prefix="kproxy-bench-")
SCRATCH = Path(_FOLDER.name)

V4 = Family.IPV4
SETTINGS = workload.SETTINGS[V4]

sizes = pytest.mark.parametrize("services", SIZES)
variants = pytest.mark.parametrize("variant", list(Variant))


@contextmanager
def scratch() -> Iterator[None]:
    """A fresh namespace with a lock of its own: the default lock is shared by all of the host."""
    with netns.fresh():
        os.environ["XTABLES_LOCKFILE"] = str(SCRATCH / "lock")
        try:
            yield
        finally:
            del os.environ["XTABLES_LOCKFILE"]


@pytest.fixture
def kernel() -> Iterator[None]:
    with scratch():
        yield


def rounds(services: int) -> int:
    return ROUNDS.get(services, FEW_ROUNDS)


@cache
def raw(services: int) -> bytes:
    return workload.json_list(services, ENDPOINTS)


@cache
def objects(services: int) -> tuple[ClusterObject, ...]:
    return tuple(obj for item in decode_json(raw(services)).items for obj in item.objects)


def tracked(services: int) -> Tracker:
    tracker = Tracker()
    tracker.apply(Delta(upserted=objects(services)))
    return tracker


@cache
def planned(services: int) -> Snapshot:
    return Planner(V4).plan(tracked(services), SETTINGS)


def backend(variant: Variant = Variant.LEGACY) -> IptablesBackend:
    door = ToolDoor(V4, variant, records=SCRATCH / "records")
    return IptablesBackend(V4, variant, door=door, machine=Machine())


def whole_text(services: int, variant: Variant = Variant.LEGACY) -> bytes:
    return "".join(backend(variant).text(planned(services))).encode()


Bench = Callable[..., object]


@sizes
def bench_decode(benchmark: Bench, services: int) -> None:
    """JSON of Services and EndpointSlices to frozen values."""
    data = raw(services)
    benchmark.pedantic(decode_json, args=(data,), rounds=rounds(services))  # type: ignore[attr-defined]


@sizes
def bench_plan(benchmark: Bench, services: int) -> None:
    """Frozen values to a first Snapshot: tracker and planner."""
    objects(services)
    benchmark.pedantic(  # type: ignore[attr-defined]
        lambda: Planner(V4).plan(tracked(services), SETTINGS), rounds=rounds(services)
    )


@sizes
def bench_render(benchmark: Bench, services: int) -> None:
    """A Snapshot to all of its text."""
    planned(services)
    benchmark.pedantic(lambda: whole_text(services), rounds=rounds(services))  # type: ignore[attr-defined]


@sizes
@variants
def bench_apply(benchmark: Bench, services: int, variant: Variant) -> None:
    """A first sync in an empty kernel, from the Snapshot to the last tool's exit."""

    def run(sync: Syncer) -> None:  # type: ignore[type-arg]
        with scratch():
            sync.sync(planned(services))

    planned(services)
    benchmark.pedantic(  # type: ignore[attr-defined]
        run, setup=lambda: ((Syncer(backend(variant)),), {}), rounds=rounds(services)
    )


@sizes
@variants
def bench_one_endpoint(benchmark: Bench, kernel: None, services: int, variant: Variant) -> None:
    """One endpoint of one service is replaced: render, diff, apply."""
    syncer = Syncer(backend(variant))
    now = workload.snapshot(services, ENDPOINTS)
    syncer.sync(now)
    shift = 0

    def change() -> tuple[tuple[Snapshot], dict[str, object]]:
        nonlocal now, shift
        shift += 1
        now = workload.changed(now, workload.plan(3, ENDPOINTS, shift=shift))
        return (now,), {}

    benchmark.pedantic(syncer.sync, setup=change, rounds=rounds(services))  # type: ignore[attr-defined]


@sizes
@variants
def bench_nothing_changed(benchmark: Bench, kernel: None, services: int, variant: Variant) -> None:
    """A full sync that finds everything in place: read and compare."""
    syncer = Syncer(backend(variant))
    syncer.sync(planned(services))

    def again() -> None:
        syncer.forget()
        assert syncer.sync(planned(services)).written == 0

    benchmark.pedantic(again, rounds=rounds(services))  # type: ignore[attr-defined]


@sizes
def bench_ratio(services: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The sync beside a bare restore of the same text, turn by turn in one run."""
    text = whole_text(services)
    snapshot = planned(services)
    restore = ["iptables-legacy-restore", "--noflush", "-w", "5"]

    def bare() -> None:
        command.run(restore, stdin=text)

    def sync() -> None:
        Syncer(backend()).sync(snapshot)

    taken: dict[Callable[[], None], list[float]] = {bare: [], sync: []}
    for _ in range(max(5, rounds(services))):
        for what, times in taken.items():
            with scratch():
                if what is bare:
                    # A rule of the text asks it, and the tool makes none.
                    backend().door.fill(NAMES[V4], (), create=True)
                start = time.perf_counter()
                what()
                times.append(time.perf_counter() - start)
    ratios = [mine / alone for mine, alone in zip(taken[sync], taken[bare], strict=True)]
    with capsys.disabled():
        sys.stdout.write(
            f"\n{services} x {ENDPOINTS}: bare restore {statistics.median(taken[bare]):.2f} s, "
            f"sync {statistics.median(taken[sync]):.2f} s, ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}-{max(ratios):.2f})\n"
        )


_IN_A_PROCESS = """
import sys, time
from bench import bench_sync as b

def peak():
    # Not ru_maxrss: a child inherits its parent's across exec.
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

services = int(sys.argv[1])
tracker = b.tracked(services)
b.raw.cache_clear(); b.objects.cache_clear()
decoded, start = peak(), time.process_time()
snapshot = b.Planner(b.V4).plan(tracker, b.SETTINGS)
middle = time.process_time()
size = sum(len(piece) for piece in b.backend().text(snapshot))
end = time.process_time()
print(f"plan {middle - start:.2f} s, render {end - middle:.2f} s of CPU, {size / 1e6:.1f} MB of "
      f"text, peak {peak():.0f} MB of memory ({decoded:.0f} MB after decoding)")
"""


@sizes
def bench_cpu_and_memory(services: int, capsys: pytest.CaptureFixture[str]) -> None:
    """CPU time of plan and render, and the peak of memory, in a process of their own."""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", _IN_A_PROCESS, str(services)],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    with capsys.disabled():
        sys.stdout.write(f"\n{services} x {ENDPOINTS}: {done.stdout}")
