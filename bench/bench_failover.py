"""Fail-over: what clients see while a backend fails; README.md says how to read the figures.

    python -m pytest bench/bench_failover.py -s [-k userspace]

``KPROXY_BENCH_RATE`` names another number of new connections a second than 1,000. IPVS runs on the
host where it has it, else in user-mode Linux, at a rate that its one slow processor can do. Writes
``build/bench/failover-MODE-FAULT.json``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import pytest

from bench.machine import in_machine
from kproxy.bench import report
from kproxy.bench.failover import (
    CHECK,
    FALL,
    FAULTS,
    INTERVAL,
    RATE,
    TIMEOUT,
    Rolled,
    Row,
    failover,
    rolling,
)
from kproxy.bench.ours import MODES
from kproxy.bench.uml import host_has_ipvs

ROOT = Path(__file__).resolve().parent.parent

SOUGHT = float(os.environ.get("KPROXY_BENCH_RATE", RATE))
#: A system call takes up to half a millisecond there.
IN_MACHINE = min(SOUGHT, 100.0)

#: Who tries another endpoint for a connection that one does not take.
RETRYING = frozenset({"userspace", "fastpath"})

#: Seconds from the fault to the last request that it cost.
WINDOW = INTERVAL * FALL + TIMEOUT + 0.3

Found = TypeVar("Found", Row, Rolled)


class Bar(NamedTuple):
    """Requests begun after the fault that may fail, and how long after it (seconds)."""

    failed: float = float("inf")
    window: float = float("inf")


def bar(mode: str, fault: str) -> Bar:
    """Nobody can take back a request that a hung process has; and the kernel's own modes leave a
    SYN to whom it was sent once, for as long as its client tries (see README.md)."""
    if mode in RETRYING:
        return Bar(window=WINDOW) if fault == "hang" else Bar(failed=0)
    return Bar() if fault == "vanish" else Bar(window=WINDOW)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("mode", MODES)
def bench_failover(mode: str, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One of four backends is killed, refuses, hangs, or is no longer there."""
    at_ipvs = mode == "ipvs"
    row = _of_ipvs(Row, "failover", fault) if at_ipvs else failover(mode, fault, rate=SOUGHT)
    _keep(f"{mode}-{fault}", row)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{mode:15} {fault:7} {row.started} requests; {row.kind} after {row.detected:.2f} s,"
            f" in force after {row.in_force:.2f} s; failed {row.failed} {row.kinds or ''}"
            f" (and {row.under_way} under way) until {row.window:.2f} s;"
            f" longest gap {1e3 * row.gap:.0f} ms, longest wait {1e3 * row.longest:.0f} ms\n"
        )
    held = bar(mode, fault)
    assert row.failed <= held.failed, row.kinds
    assert row.window <= held.window


@pytest.mark.parametrize("mode", MODES)
def bench_rolling(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every backend is replaced, one by one, by the book: nothing fails."""
    rolled = _of_ipvs(Rolled, "rolling") if mode == "ipvs" else rolling(mode, rate=SOUGHT)
    _keep(f"{mode}-rolling", rolled)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{mode:15} {rolled.replaced} pods replaced in {rolled.seconds:.1f} s:"
            f" {rolled.started} requests, {rolled.failures or 'none failed'};"
            f" longest gap {1e3 * rolled.gap:.0f} ms, longest wait {1e3 * rolled.longest:.0f} ms\n"
        )
    assert not rolled.failures


def _keep(name: str, found: Row | Rolled) -> None:
    report.save(
        f"failover-{name}", {"fingerprint": report.fingerprint(), "check": CHECK, "row": found}
    )


def _of_ipvs(form: type[Found], *what: str) -> Found:
    """A row of IPVS mode, in a kernel that has it."""
    argv = [sys.executable, "-m", "kproxy.bench.failover", *what[:1], "ipvs", *what[1:]]
    if host_has_ipvs():
        argv += ["--rate", str(SOUGHT)]
        said = subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    else:
        said = in_machine([*argv, "--rate", str(IN_MACHINE)])
    return msgspec.json.decode(said.splitlines()[-1], type=form)
