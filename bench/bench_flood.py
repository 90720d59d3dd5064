"""A flood of first SYNs on fastpath's device, while connections that are there carry data.

    python -m pytest bench/bench_flood.py -s

From the client's namespace a program in C sends SYNs from random addresses and ports to the
service, one million at least, as fast as the machine makes them, and 100 connections of another
process there ask and are answered at a rate that the node carries on one processor. The addresses
that are made up lead back to the client, which drops what it is told.

Must hold: no request fails, no connection is made anew, and the daemon's memory does not grow
beyond what its tables have room for.
``KPROXY_BENCH_FLOOD`` is another number of SYNs. Writes ``build/bench/fastpath-flood.json``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path as File

import pytest

from kproxy.bench import report, usage
from kproxy.bench.helper import ROOT
from kproxy.bench.load import Kind, Load
from kproxy.bench.ours import CLUSTER_IPS, Mode
from kproxy.bench.path import PORT, Path
from kproxy.bench.peers import running
from kproxy.core.objects import Family
from kproxy.kernel import command
from kproxy.kernel.netns import entered

SYNS = int(os.environ.get("KPROXY_BENCH_FLOOD", "1000000"))

#: So many go on, each with so many requests a second.
CONNECTIONS, RATE = 100, 2000.0

#: What the flood says it comes from: pods, as far as the node knows, so that nobody is hidden and
#: no port of the node is what runs out.
_FROM, _BITS = "10.79.0.0", 16
#: Seconds that it lasts at least: the requests have to be under it.
_LEAST = 10

_CLUSTER = ("--cluster-cidr", "10.76.0.0/14,fd00::/8")

#: Flows of each family that the daemon may have, and what one is in memory with its two cells of
#: an index that is at most half full (docs/fastpath-engine.md).
FLOWS, BYTES_OF_A_FLOW = 262_144, 64 + 2 * 2 * 8
#: Beside it: the ring of first SYNs, buffers, conntrack of the daemon's own threads, Python.
_SPARE = 16 << 20

_SOURCE = File(__file__).parent / "floor" / "flood.c"
_PROGRAM = ROOT / "build" / "bench" / "flood"


def build() -> File:
    """The program, made anew when its source is younger."""
    if not _PROGRAM.exists() or _PROGRAM.stat().st_mtime < _SOURCE.stat().st_mtime:
        _PROGRAM.parent.mkdir(parents=True, exist_ok=True)
        command.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", str(_PROGRAM), str(_SOURCE)])
    return _PROGRAM


def bench_flood(capsys: pytest.CaptureFixture[str]) -> None:
    """One million and more, with everything that is there going on."""
    program, mode = build(), Mode("fastpath", *_CLUSTER)
    with Path() as path, running(mode, path):
        with entered(path.fd("node")):
            client = path.client_addresses()[0]
            command.run(["ip", "route", "add", f"{_FROM}/{32 - _BITS}", "via", client])
        quiet = path.run(_load(3.0), mode.place(Family.IPV4))
        before = usage.memory(mode.pids())
        already = path.pod.counters()["accepted"]
        path.client.begin(_load(_LEAST), [mode.place(Family.IPV4)])
        while path.pod.counters()["accepted"] < already + CONNECTIONS:
            time.sleep(0.01)
        words = (_FROM, _BITS, CLUSTER_IPS[Family.IPV4], PORT, SYNS, _LEAST)
        with entered(path.fd("client")):
            flood = subprocess.Popen(
                [str(program), *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
            )
        carried = _carried(path)
        under = path.client.result()
        sent, seconds = flood.communicate()[0].split()
        arrived = _carried(path) - carried
        after = usage.memory(mode.pids())
    grown = after.pss - before.pss
    figures = {
        "sent": int(sent),
        "sent a second": int(sent) / float(seconds),
        "led to the device, answers included": arrived,
        "p99 before, us": 1e6 * quiet.latency.percentile(99),
        "p99 under it, us": 1e6 * under.latency.percentile(99),
        "requests under it": under.completed,
        "failed": under.failed,
        "retransmitted": under.retransmits,
        "grown by, MB": grown / 1e6,
    }
    report.save("fastpath-flood", {"fingerprint": report.fingerprint([mode]), **figures})
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(f"  {k}: {v:,.1f}" for k, v in figures.items()) + "\n")
    assert int(sent) >= SYNS
    assert arrived >= SYNS // 2, "most of the flood did not come to the device"
    assert under.completed
    assert not under.failures
    assert grown <= FLOWS * BYTES_OF_A_FLOW + _SPARE


def _load(seconds: float) -> Load:
    """Requests on connections that are made first and kept: one that breaks is a failure."""
    return Load(Kind.RR, connections=CONNECTIONS, rate=RATE, seconds=seconds, warmup=0.3)


def _carried(path: Path) -> int:
    """Packets that the node has given to the device."""
    with entered(path.fd("node")):
        for line in File("/proc/thread-self/net/dev").read_text().splitlines():
            name, _, counts = line.partition(":")
            if name.strip() == "kp4":
                return int(counts.split()[9])
    raise LookupError("there is no device kp4")
