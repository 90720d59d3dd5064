"""What one change costs in a cluster of some size, and a burst of them; README.md says how to read.

    python -m pytest bench/bench_changes.py

Each figure stands beside the bare restore tool with the same text, turn by turn in the same kernel.
``KPROXY_BENCH_SIZES`` names other sizes than 5,000 and 10,000 services.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time

import pytest

from bench.bench_sync import ENDPOINTS, V4, backend, scratch
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.held import Held
from kproxy.backends.iptables.render import Desired
from kproxy.backends.xtables.door import tool
from kproxy.backends.xtables.variant import Variant
from kproxy.bench import workload
from kproxy.core.snapshot import Snapshot
from kproxy.kernel import command

SIZES = [int(size) for size in os.environ.get("KPROXY_BENCH_SIZES", "5000,10000").split(",")]
TURNS = 7
BURST = 1000

pytestmark = [
    pytest.mark.parametrize("variant", list(Variant)),
    pytest.mark.parametrize("services", SIZES),
]


class Cluster:
    """``services`` in force in a kernel of its own, one change after the other."""

    def __init__(self, services: int, variant: Variant) -> None:
        self.variant = variant
        self.backend: IptablesBackend = backend(variant)
        self.now: Snapshot = workload.snapshot(services, ENDPOINTS)
        self.desired: Desired = self.backend.render(self.now, None)
        self._shift = 0
        patch = self.backend.diff(self.desired, Held())
        assert patch is not None
        self.backend.apply(patch)

    def change(self, count: int) -> Snapshot:
        """``count`` services have one endpoint each replaced."""
        self._shift += 1
        plans = [
            workload.plan(number, ENDPOINTS, shift=self._shift) for number in range(3, 3 + count)
        ]
        before, self.now = self.now, workload.changed(self.now, *plans)
        assert self.now.base == before.generation
        return self.now

    def sync(self, now: Snapshot) -> None:
        before, self.desired = self.desired, self.backend.render(now, self.desired)
        patch = self.backend.diff(self.desired, self.backend.settled(before))
        assert patch is not None
        self.backend.apply(patch)

    def texts(self, now: Snapshot) -> list[bytes]:
        """The same change as text, call by call, for a tool that the caller runs."""
        before, self.desired = self.desired, self.backend.render(now, self.desired)
        patch = self.backend.diff(self.desired, self.backend.settled(before))
        assert patch is not None
        return ["".join(call).encode() for call in self.backend.script(patch)]


def _restored(texts: list[bytes], variant: Variant) -> None:
    argv = [tool(V4, variant, "restore"), "--noflush", "-w", "5"]
    for text in texts:
        command.run(argv, stdin=text)


def _measured(services: int, variant: Variant, count: int) -> str:
    walls: list[float] = []
    bares: list[float] = []
    cpus: list[float] = []
    with scratch():
        cluster = Cluster(services, variant)
        # One more than is counted: the first turn warms caches up.
        for turn in range(TURNS + 1):
            now = cluster.change(count)
            start, cpu = time.perf_counter(), time.process_time()
            cluster.sync(now)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - start
            texts = cluster.texts(cluster.change(count))
            start = time.perf_counter()
            _restored(texts, variant)
            bare = time.perf_counter() - start
            if turn:
                walls.append(wall)
                bares.append(bare)
                cpus.append(cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (
        f"{services} x {ENDPOINTS} {variant}, {count} changed: "
        f"{statistics.median(walls):.3f} s, bare tool {statistics.median(bares):.3f} s, "
        f"own CPU {1e3 * statistics.median(cpus):.1f} ms, peak {peak:.0f} MB"
    )


def bench_one_change(services: int, variant: Variant, capsys: pytest.CaptureFixture[str]) -> None:
    """One endpoint of one service is replaced: render, diff, apply, the tool's exit."""
    line = _measured(services, variant, 1)
    with capsys.disabled():
        sys.stdout.write(f"\n{line}\n")


def bench_burst(services: int, variant: Variant, capsys: pytest.CaptureFixture[str]) -> None:
    """A thousand services have an endpoint replaced, in one sync."""
    line = _measured(services, variant, BURST)
    with capsys.disabled():
        sys.stdout.write(f"\n{line}\n")
