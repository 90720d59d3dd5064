"""What it costs to mend what others changed; README.md says how to read the figures.

    python -m pytest bench/bench_repair.py

A repair reads the kernel, compares everything and writes what differs. ``KPROXY_BENCH_SIZES`` names
other sizes than 1,000 and 5,000 services.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Sequence

import pytest

from bench import workload
from bench.bench_sync import ENDPOINTS, V4, backend, scratch
from kproxy.backends.iptables import chains
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables.door import tool
from kproxy.backends.xtables.variant import Variant
from kproxy.kernel import command

SIZES = [int(size) for size in os.environ.get("KPROXY_BENCH_SIZES", "1000,5000").split(",")]
TURNS = 3

#: What somebody does: arguments of the tool. A chain that is gone is one that is emptied, too: the
#: kernel deletes none to which a rule goes.
HARM: dict[str, Sequence[str]] = {
    "nothing": (),
    "a chain emptied": ("-t", "nat", "-F", "CHAIN"),
    "filter emptied": ("-F",),
    "nat emptied": ("-t", "nat", "-F"),
}


@pytest.mark.parametrize("harm", list(HARM))
@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.parametrize("services", SIZES)
def bench_repair(
    services: int, variant: Variant, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sync that follows, and of it the reading and the tool that writes."""
    rows: list[tuple[float, ...]] = []
    snapshot = workload.snapshot(services, ENDPOINTS)
    chain = chains.CLUSTER + chains.port_hash(workload.plan(3, ENDPOINTS).name)
    with scratch():
        its = backend(variant)
        syncer = Syncer(its)
        syncer.sync(snapshot)
        for _ in range(TURNS):
            argv = [word if word != "CHAIN" else chain for word in HARM[harm]]
            if argv:
                command.run([tool(V4, variant), "-w", "5", *argv])
            start, cpu = time.perf_counter(), time.process_time()
            held = its.read()
            read = time.perf_counter() - start
            patch = its.diff(syncer.desired, held)
            compared = time.perf_counter() - start - read
            if patch is not None:
                its.apply(patch)
            whole = time.perf_counter() - start
            rows.append((whole, read, compared, time.process_time() - cpu))
    whole, read, compared, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
    with capsys.disabled():
        sys.stdout.write(
            f"\n{services} x {ENDPOINTS} {variant}, {harm}: {whole:.2f} s"
            f" (read {read:.2f}, compare {compared:.2f}, own CPU {cpu:.2f})\n"
        )
