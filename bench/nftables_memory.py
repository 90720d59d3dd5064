"""What a first sync in nftables mode takes of memory; for :mod:`bench.bench_nftables`.

    python -m bench.nftables_memory SERVICES ENDPOINTS

In the network namespace of the caller. Prints one JSON object, all in bytes: ``before`` and
``after`` the sync, and at its ``peak``, what the process has (RSS), and what the ``kernel`` holds
more afterwards.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from contextlib import closing
from pathlib import Path

from kproxy.backends.nftables.apply import NftablesBackend
from kproxy.backends.syncer import Syncer
from kproxy.bench import usage, workload
from kproxy.core.objects import Family


def main(services: int, endpoints: int) -> None:
    own = (os.getpid(),)
    with closing(NftablesBackend(Family.IPV4)) as backend:
        sync = Syncer(backend)
        # What comes with the first use: the library, a scratch namespace.
        sync.sync(workload.snapshot(1, 1))
        plan = workload.snapshot(services, endpoints)
        gc.collect()
        before, kernel = usage.memory(own).rss, usage.kernel_memory()
        sync.forget()
        sync.sync(plan)
        gc.collect()
        found = {
            "before": before,
            "after": usage.memory(own).rss,
            "peak": _peak(),
            "kernel": usage.kernel_memory() - kernel,
        }
    sys.stdout.write(json.dumps(found) + "\n")


def _peak() -> int:
    """Of this program: getrusage(2) also knows what its parent had when it was started."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
