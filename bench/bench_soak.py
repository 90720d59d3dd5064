"""The relay under mixed load while its endpoints change all the time.

    python -m pytest bench/bench_soak.py -s

``KPROXY_SOAK_SECONDS`` (600) of load, ``KPROXY_SOAK_CHANGES`` (20) a second. Each change gives one
service another list: one to six living endpoints, sometimes one that refuses, sometimes one that is
silent. No TCP request may fail, because a living endpoint is always there; memory and descriptors
must not grow. Datagrams that are under way to an endpoint when it is taken out are lost with its
session: they are counted, and few. Writes ``build/bench/soak.json``.
"""

from __future__ import annotations

import os
import random
import sys
import time
from statistics import median

import pytest
from msgspec.structs import replace

from kproxy.bench import report, usage
from kproxy.bench.load import Kind, Load, Place, Result
from kproxy.bench.ours import BareRelay
from kproxy.bench.path import PORT, Path
from kproxy.bench.peers import running
from kproxy.core.objects import Family, Value

SECONDS = float(os.environ.get("KPROXY_SOAK_SECONDS", "600"))
CHANGES = float(os.environ.get("KPROXY_SOAK_CHANGES", "20"))

PODS = 6
#: A port of the pods at which nobody listens, and an address that nobody has.
REFUSING = PORT + 9
SILENT = {Family.IPV4: "10.78.0.250", Family.IPV6: "fd78::250"}

#: Of how many lists one has an endpoint that refuses, and one that is silent.
REFUSE_EVERY, SILENCE_EVERY = 4, 10

#: Share of the datagrams that the changes may cost: what is on its way to an endpoint that is taken
#: out (five lists a second are the datagrams'). On a machine with other work more are on their way.
LOST = 0.02

#: What may be more at the end than after the first tenth: memory as a share, descriptors by number.
GROWTH, DESCRIPTORS = 0.05, 40

#: Long enough for a connection that meets every wait of the ladder.
_PATIENCE = 10.0

#: By family and kind: at a rate, so that a slow moment is in the latency and not in a smaller load.
LOADS: dict[str, tuple[Family, Load]] = {
    "short": (
        Family.IPV4,
        Load(Kind.CRR, connections=400, rate=300, timeout=_PATIENCE),
    ),
    "short, reset": (
        Family.IPV6,
        Load(Kind.CRR, connections=400, rate=150, closer="reset", timeout=_PATIENCE),
    ),
    "short, server closes": (
        Family.IPV4,
        Load(Kind.CRR, connections=400, rate=100, closer="server", timeout=_PATIENCE),
    ),
    "kept": (
        Family.IPV6,
        Load(Kind.RR, connections=50, rate=500, timeout=_PATIENCE),
    ),
    "large": (
        Family.IPV4,
        Load(
            Kind.RR,
            connections=4,
            rate=5,
            request_bytes=200_000,
            response_bytes=2_000_000,
            timeout=_PATIENCE,
        ),
    ),
    "datagrams": (
        Family.IPV4,
        Load(Kind.UDP, connections=20, rate=500, window=64, timeout=1),
    ),
}


class Sample(Value, frozen=True):
    """What the relay uses at a moment (seconds since the beginning)."""

    at: float
    pss: int
    descriptors: int
    flows: int
    sessions: int


def bench_soak(capsys: pytest.CaptureFixture[str]) -> None:
    """Mixed load with endpoint churn."""
    relay = BareRelay()
    with Path(pods=PODS, clients=8) as path, running(relay, path):
        clients = {name: path.agent("client") for name in LOADS}
        _change(random.Random(0), relay, path, everything=True)
        for name, (family, load) in LOADS.items():
            clients[name].begin(
                replace(load, seconds=SECONDS, warmup=0.5),
                [relay.place(family)],
                sources=path.client_addresses(family),
            )
        samples, changes = _churn(relay, path)
        results = {name: client.result() for name, client in clients.items()}
        counters = relay.counters()
    report.save(
        "soak",
        {
            "fingerprint": report.fingerprint([BareRelay()]),
            "changes": changes,
            "results": results,
            "samples": samples,
            "counters": counters,
        },
    )
    with capsys.disabled():
        sys.stdout.write("\n".join(["", *_table(samples, changes, results), ""]))
        sys.stdout.flush()
    _judge(samples, results)


def _churn(relay: BareRelay, path: Path) -> tuple[list[Sample], int]:
    """Change lists at the rate until the time is over; a sample each second, and how many."""
    chance, begun = random.Random(1), time.monotonic()
    samples: list[Sample] = []
    changes = 0
    while (now := time.monotonic() - begun) < SECONDS:
        if now >= len(samples):
            totals = relay.counters()["totals"]
            samples.append(
                Sample(
                    round(now, 2),
                    usage.memory(relay.pids()).pss,
                    usage.descriptors(relay.pids()),
                    totals["flows"],
                    totals["sessions"],
                )
            )
        due = changes / CHANGES
        if now < due:
            time.sleep(min(due - now, 1 / CHANGES))
            continue
        _change(chance, relay, path)
        changes += 1
    return samples, changes


def _change(
    chance: random.Random, relay: BareRelay, path: Path, *, everything: bool = False
) -> None:
    """Another list for one service, or for all."""
    every = [(protocol, family) for protocol in ("tcp", "udp") for family in Family]
    for protocol, family in every if everything else [chance.choice(every)]:
        relay.set_endpoints(protocol, family, _endpoints(chance, path, protocol, family))


def _endpoints(chance: random.Random, path: Path, protocol: str, family: Family) -> list[Place]:
    """Dead ones for TCP only: nobody can tell a silent datagram from one that needs no answer."""
    pods = path.pod_addresses(family)
    chosen = [(address, PORT) for address in chance.sample(pods, chance.randint(1, PODS))]
    if protocol == "tcp":
        if not chance.randrange(REFUSE_EVERY):
            chosen.append((chance.choice(pods), REFUSING))
        if not chance.randrange(SILENCE_EVERY):
            chosen.append((SILENT[family], PORT))
    return chosen


# --- what came of it ----------------------------------------------------------------------------


def _table(samples: list[Sample], changes: int, results: dict[str, Result]) -> list[str]:
    lines = [f"soak: {SECONDS:g} s, {changes} changes of endpoints"]
    for name, result in results.items():
        waits = "/".join(f"{1e3 * result.latency.percentile(share):.1f}" for share in (50, 99, 100))
        lines.append(
            f"  {name:22} {result.started:>9,} started, {result.failed} failed"
            f"{f' {result.failures}' if result.failures else ''}, p50/p99/max {waits} ms"
        )
    lines.append("  seconds   memory, MB   descriptors   flows   sessions")
    lines += [
        f"  {sample.at:7.0f}   {sample.pss / 1e6:10.2f}   {sample.descriptors:11}"
        f"   {sample.flows:5}   {sample.sessions:8}"
        for sample in samples[:: max(1, len(samples) // 10)]
    ]
    return lines


def _judge(samples: list[Sample], results: dict[str, Result]) -> None:
    for name, (_, load) in LOADS.items():
        allowed = LOST * results[name].started if load.kind is Kind.UDP else 0
        assert results[name].failed <= allowed, name
    tenth = max(1, len(samples) // 10)
    early, late = samples[tenth : 2 * tenth], samples[-tenth:]
    assert median(each.pss for each in late) <= (1 + GROWTH) * median(each.pss for each in early)
    assert (
        median(each.descriptors for each in late)
        <= median(each.descriptors for each in early) + DESCRIPTORS
    )
