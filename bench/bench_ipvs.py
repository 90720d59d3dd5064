"""IPVS mode beside the bare tools, and what changes cost; README.md says how to read it.

    python -m pytest bench/bench_ipvs.py

Every measure is a process of its own in a kernel of its own: one that had servers before is slower
(it keeps removed real servers for a while, and each new one is compared with them). A host without
IPVS boots user-mode Linux for each; on one that has it each gets a network namespace.
``KPROXY_BENCH_SIZES`` names other sizes than 1,000 and 5,000 services, ``KPROXY_BENCH_CHURN``
another number of random changes than 10,000.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.machine import in_machine
from kproxy.bench.uml import host_has_ipvs
from kproxy.kernel import netns

SIZES = [int(size) for size in os.environ.get("KPROXY_BENCH_SIZES", "1000,5000").split(",")]
CHURN = int(os.environ.get("KPROXY_BENCH_CHURN", "10000"))
ENDPOINTS = 10

#: At most so much of the tools' time, and of a processor for one change.
BAR, CPU_BAR = 1 / 20, 5e-3

ROOT = Path(__file__).resolve().parent.parent


def measured(name: str, count: int) -> dict[str, Any]:
    """The figures of one measure, in a kernel that has had no servers."""
    argv = [sys.executable, "-m", "bench.ipvs_measures", name, str(count)]
    said = _on_host(argv) if host_has_ipvs() else in_machine(argv)
    return dict(json.loads(said.splitlines()[-1]))


def _on_host(argv: list[str]) -> bytes:
    with netns.fresh():
        return subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout


def _show(capsys: pytest.CaptureFixture[str], *lines: str) -> None:
    with capsys.disabled():
        sys.stdout.write("".join(f"\n{line}" for line in lines) + "\n")


def _in_words(parts: dict[str, float], unit: str = "s", scale: float = 1) -> str:
    return ", ".join(f"{name} {seconds * scale:.2f} {unit}" for name, seconds in parts.items())


@pytest.mark.parametrize("services", SIZES)
def bench_beside_the_tools(services: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Program everything into an empty kernel, by kproxy and by the tools with the same content."""
    mine, theirs = measured("kproxy", services), measured("tools", services)
    parts = theirs["parts"]
    barred = parts["ipset restore"] + parts["ipvsadm --restore"]
    _show(
        capsys,
        f"{services} x {ENDPOINTS}: kproxy {mine['wall']:.2f} s ({mine['cpu']:.2f} s of CPU), "
        f"tools {theirs['wall']:.1f} s; of ipset and ipvsadm alone (bar {BAR:.3f}) "
        f"{mine['wall'] / barred:.4f}",
        f"  kproxy: {_in_words(mine['parts'])}",
        f"  tools: {_in_words(parts)}",
        f"  in force: {mine['held']}",
    )
    assert mine["held"] == theirs["held"]


@pytest.mark.parametrize("services", SIZES)
def bench_one_change(services: int, capsys: pytest.CaptureFixture[str]) -> None:
    """One endpoint of one service is replaced: render, diff, apply."""
    found = measured("changes", services)
    _show(
        capsys,
        f"{services} x {ENDPOINTS}, one endpoint: {1e3 * found['cpu']:.2f} ms of CPU "
        f"(bar {1e3 * CPU_BAR:.0f}), {1e3 * found['wall']:.2f} ms",
        f"  {_in_words(found['parts'], 'ms', 1e3)}",
    )
    assert found["settled"]


def bench_random_changes(capsys: pytest.CaptureFixture[str]) -> None:
    """Services and endpoints come, change and go at random; nothing is left that a fresh start
    would not make."""
    found = measured("churn", CHURN)
    _show(
        capsys,
        f"{CHURN} random changes, {1e3 * found['wall']:.1f} ms each: "
        f"{'as a fresh start' if found['settled'] else 'NOT as a fresh start'}",
        f"  in force: {found['held']}",
        f"  wanted:   {found['wanted']}",
    )
    assert found["settled"]
    assert found["held"] == found["wanted"]
