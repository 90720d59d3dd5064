"""What it costs to mend what others changed; README.md says how to read the figures.

    python -m pytest bench/bench_repair.py

As the daemon does it: a watch notices and says where, and a sync reads that, compares and writes.
``KPROXY_BENCH_SIZES`` names other sizes than 1,000 and 5,000 services.
"""

from __future__ import annotations

import os
import select
import statistics
import sys
import time
from collections.abc import Iterable, Sequence

import pytest

from bench.bench_sync import ENDPOINTS, SCRATCH, V4, scratch
from kproxy.backends.base import Applied, Scope
from kproxy.backends.iptables import chains
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.diff import Patch
from kproxy.backends.iptables.held import Held
from kproxy.backends.iptables.host import Machine
from kproxy.backends.iptables.render import Desired
from kproxy.backends.iptables.watch import watch
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables.door import ToolDoor, tool
from kproxy.backends.xtables.variant import Variant
from kproxy.bench import workload
from kproxy.kernel import command

SIZES = [int(size) for size in os.environ.get("KPROXY_BENCH_SIZES", "1000,5000").split(",")]
TURNS = 3

#: What somebody does: arguments of the tool. A chain that is gone is one that is emptied, too: the
#: kernel deletes none to which a rule goes.
HARM: dict[str, Sequence[str]] = {
    "nothing known, all read": (),
    "a chain emptied": ("-t", "nat", "-F", "CHAIN"),
    "KUBE-SERVICES emptied": ("-t", "nat", "-F", "KUBE-SERVICES"),
    "filter emptied": ("-F",),
    "nat emptied": ("-t", "nat", "-F"),
}


class Recording(ToolDoor):
    """Keeps what each call of the restore tool was given."""

    calls: list[bytes]

    def restore(self, chunks: Iterable[bytes]) -> None:
        kept: list[bytes] = []

        def keeping() -> Iterable[bytes]:
            for chunk in chunks:
                kept.append(chunk)
                yield chunk

        super().restore(keeping())
        self.calls.append(b"".join(kept))


class Timed(IptablesBackend):
    """Seconds of reading and of writing."""

    reading = writing = 0.0

    def read(self) -> Held:
        begun = time.perf_counter()
        held = super().read()
        self.reading = time.perf_counter() - begun
        return held

    def reread(self, believed: Desired, scope: Scope) -> Held:
        begun = time.perf_counter()
        held = super().reread(believed, scope)
        self.reading = time.perf_counter() - begun
        return held

    def apply(self, patch: Patch) -> Applied:
        begun = time.perf_counter()
        applied = super().apply(patch)
        self.writing = time.perf_counter() - begun
        return applied


@pytest.mark.parametrize("harm", list(HARM))
@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.parametrize("services", SIZES)
def bench_repair(
    services: int, variant: Variant, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the end of the foreign command to the end of the sync that mends it, and what of it is
    noticing, reading and writing; and the bare tool with what was written, turn by turn."""
    rows: list[tuple[float, ...]] = []
    snapshot = workload.snapshot(services, ENDPOINTS)
    chain = chains.CLUSTER + chains.port_hash(workload.plan(3, ENDPOINTS).name)
    argv = [tool(V4, variant), "-w", "5", *HARM[harm]]
    argv = [word if word != "CHAIN" else chain for word in argv]
    with scratch():
        door = Recording(V4, variant, records=SCRATCH / "records")
        its = Timed(V4, variant, door=door, machine=Machine())
        syncer, seen = Syncer(its), watch(variant, [V4])
        door.calls = []
        seen.pause()
        seen.resume(syncer.sync(snapshot).transactions)
        for _ in range(TURNS):
            its.reading = its.writing = 0.0
            door.calls = []
            if HARM[harm]:
                # The tick of the legacy watch comes at any moment after it.
                command.run(argv)
            begun, cpu = time.perf_counter(), time.process_time()
            while HARM[harm]:
                select.select([seen], [], [])
                if seen.look():
                    break
            noticed = time.perf_counter() - begun
            seen.pause()
            where = seen.harm()
            syncer.forget(where[V4] if where and V4 in where else None)
            seen.resume(syncer.sync(snapshot).transactions, {V4: its.entries or {}})
            whole, own = time.perf_counter() - begun, time.process_time() - cpu
            bare = _bare(its, argv, [*door.calls]) if HARM[harm] else 0.0
            seen.pause()
            seen.resume(0)
            rows.append((whole, noticed, its.reading, its.writing, own, bare))
        seen.close()
    columns = [statistics.median(column) for column in zip(*rows, strict=True)]
    with capsys.disabled():
        sys.stdout.write(_line(services, variant, harm, columns))


def _bare(its: IptablesBackend, argv: Sequence[str], calls: Sequence[bytes]) -> float:
    """The same harm once more, and the restore tool alone with what mended it."""
    command.run(argv)
    restore = [tool(V4, its.variant, "restore"), "--noflush", "-w", "5"]
    begun = time.perf_counter()
    for text in calls:
        command.run(restore, stdin=text)
    return time.perf_counter() - begun


def _line(services: int, variant: Variant, harm: str, columns: Sequence[float]) -> str:
    whole, noticed, read, write, own, bare = columns
    return (
        f"\n{services} x {ENDPOINTS} {variant}, {harm}: {whole:.2f} s (noticed {noticed:.2f}, read"
        f" {read:.2f}, write {write:.2f}, own CPU {own:.2f}); bare tool {bare:.2f} s\n"
    )
