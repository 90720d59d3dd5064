"""nftables mode beside the bare ``nft -f`` of the same ruleset; README.md says how to read it.

    python -m pytest bench/bench_nftables.py [-k cold]

Turn by turn in one run, each turn in a network namespace of its own (root) on a machine that has
come to rest: the kernel frees the last one's elements in the background.
``KPROXY_BENCH_SHAPES`` names other clusters than :data:`SHAPES`, ``KPROXY_BENCH_CONTRAST`` another
number of services for :func:`bench_contrast` than 1,000.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kproxy.backends.nftables.apply import NftablesBackend
from kproxy.backends.nftables.library import Nft
from kproxy.backends.nftables.render import render
from kproxy.backends.nftables.rules import ALWAYS
from kproxy.backends.nftables.text import script
from kproxy.backends.syncer import Syncer
from kproxy.bench import report, usage, workload
from kproxy.bench.rounds import Figure, Round, compare, middle, take
from kproxy.core.objects import Family
from kproxy.core.snapshot import PortPlan, Snapshot
from kproxy.kernel import command, netns

V4 = Family.IPV4
ROOT = Path(__file__).resolve().parent.parent
_DEFAULT = "1000x10,5000x10,10000x10,5000x50,30000x10"
#: Services x endpoints of each.
SHAPES = [
    (int(services), int(endpoints))
    for shape in os.environ.get("KPROXY_BENCH_SHAPES", _DEFAULT).split(",")
    for services, _, endpoints in (shape.partition("x"),)
]
CONTRAST = int(os.environ.get("KPROXY_BENCH_CONTRAST", "1000"))
ROUNDS = int(os.environ.get("KPROXY_BENCH_ROUNDS", "7"))
#: Of those for which the bare tool takes seconds.
FEW_ROUNDS, MANY_ENDPOINTS = 3, 100_000
CHANGED, BURST = 10_000, 1_000

NFT, LIBRARY, OURS = "nft -f", "libnftables", "kproxy"
#: At most so much of the bare tool's time, seconds for 250,000 endpoints, seconds for a change.
BARS = {OURS: 0.8, LIBRARY: 1.3}
MASSES, MASSES_BAR = (5000, 50), 10.0
CHANGE_BAR, BURST_BAR = 3e-3, 50e-3
#: Where both ways of programming are measured.
BOTH = (5000, 10)

shapes = pytest.mark.parametrize(("services", "endpoints"), SHAPES, ids=lambda number: f"{number}")


@contextmanager
def syncer() -> Iterator[Syncer]:  # type: ignore[type-arg]
    with netns.fresh(), closing(NftablesBackend(V4)) as backend:
        yield Syncer(backend)


@cache
def snapshot(services: int, endpoints: int) -> Snapshot:
    return workload.snapshot(services, endpoints)


@cache
def whole_text(services: int, endpoints: int) -> bytes:
    return "".join(script(render(snapshot(services, endpoints), None))).encode()


def at_rest(patience: float = 10.0) -> None:
    """Until the machine has next to nothing to do, or patience ends."""
    deadline, before = time.monotonic() + patience, float("-inf")
    while usage.machine_seconds() - before > 0.01 and time.monotonic() < deadline:
        before = usage.machine_seconds()
        time.sleep(0.1)


def timed(what: Callable[[], object]) -> float:
    start = time.perf_counter()
    what()
    return time.perf_counter() - start


def say(capsys: pytest.CaptureFixture[str], *lines: str) -> None:
    with capsys.disabled():
        sys.stdout.write("".join(f"\n{line}" for line in lines) + "\n")


def verdict(value: float, bar: float) -> str:
    return f"bar {bar:g}: {'met' if value <= bar else 'MISSED'}"


# --- from nothing ---------------------------------------------------------------------------------


@shapes
def bench_cold(services: int, endpoints: int, capsys: pytest.CaptureFixture[str]) -> None:
    """From a finished Snapshot to the kernel's acknowledgement, and of what that takes."""
    plan, text = snapshot(services, endpoints), whole_text(services, endpoints)

    def bare() -> float:
        with netns.fresh():
            return timed(lambda: command.run(["nft", "-f", "-"], stdin=text))

    def library() -> float:
        with netns.fresh(), closing(Nft()) as nft:
            return timed(lambda: nft.run("".join(script(render(plan, None)))))

    def ours() -> float:
        with syncer() as sync:
            return timed(lambda: sync.sync(plan))

    subjects = {NFT: bare, LIBRARY: library, OURS: ours}
    if (services, endpoints) != BOTH:
        del subjects[LIBRARY]

    def measured(name: str) -> Figure:
        at_rest()
        return Figure(subjects[name]())

    few = services * endpoints > MANY_ENDPOINTS
    rounds = take(measured, list(subjects), rounds=FEW_ROUNDS if few else ROUNDS)
    _keep(f"nftables-cold-{services}x{endpoints}", rounds)
    say(capsys, f"{services:,} x {endpoints}, first sync", *_rows(rounds))
    if (services, endpoints) == MASSES:
        seconds = middle(rounds, OURS)
        say(capsys, f"  250,000 endpoints in {seconds:.2f} s, {verdict(seconds, MASSES_BAR)}")


def _rows(rounds: list[Round]) -> Iterator[str]:
    for name in rounds[0]:
        row = f"  {name:12} {middle(rounds, name):8.3f} s"
        if name != NFT:
            found = compare(rounds, name, NFT)
            row += f"   {found} of {NFT}, {verdict(found.ratio, BARS[name])}"
        yield row


def _keep(name: str, rounds: list[Round]) -> None:
    report.save(
        name,
        {
            "fingerprint": report.fingerprint(),
            "seconds": [{who: one.value for who, one in each.items()} for each in rounds],
        },
    )


# --- changes --------------------------------------------------------------------------------------


#: What is other in a turn of this number.
Change = Callable[[int], list[PortPlan]]


class Cluster:
    """A cluster of :data:`CHANGED` services in force, and what comes next."""

    def __init__(self, sync: Syncer) -> None:  # type: ignore[type-arg]
        self._sync = sync
        self._now = workload.snapshot(CHANGED, 10)
        sync.sync(self._now)
        self._turn = 0

    def next(self, change: Change) -> tuple[tuple[Snapshot], dict[str, Any]]:
        """The Snapshot after a change, which is told the number of the turn."""
        self._turn += 1
        self._now = workload.changed(self._now, *change(self._turn))
        return (self._now,), {}


CHANGES: dict[str, Change] = {
    "one endpoint replaced": lambda turn: [workload.plan(3, 10, shift=turn)],
    "one endpoint more or less": lambda turn: [workload.plan(4, 10 + turn % 2)],
    # Beyond the numbers of slots for which there are chains in any case.
    "a new number of slots": lambda turn: [workload.plan(4, ALWAYS + 1 + turn % 7)],
    "a node port's, more or less": lambda turn: [workload.plan(10, 10 + turn % 2)],
    "a thousand replaced": lambda turn: [
        workload.plan(each, 10, shift=turn) for each in range(5, 5 + BURST)
    ],
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Syncer, Cluster]]:  # type: ignore[type-arg]
    """One for all changes: it stands for as long as they take."""
    with syncer() as sync:
        yield sync, Cluster(sync)


@pytest.mark.parametrize("change", CHANGES)
def bench_change(
    benchmark: Any,
    cluster: tuple[Syncer, Cluster],  # type: ignore[type-arg]
    change: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Render, diff, pack, and the kernel's acknowledgement, at 10,000 services of 10."""
    sync, now = cluster
    many = change == "a thousand replaced"
    at_rest()
    benchmark.pedantic(
        sync.sync,
        setup=lambda: now.next(CHANGES[change]),
        rounds=15 if many else 60,
        warmup_rounds=2,
    )
    took, bar = benchmark.stats.stats, BURST_BAR if many else CHANGE_BAR
    say(
        capsys,
        f"{CHANGED:,} x 10, {change}: {1e3 * took.median:.2f} ms "
        f"({1e3 * took.min:.2f}–{1e3 * took.max:.2f}), {verdict(took.median, bar)}",
    )


def bench_nothing_to_do(benchmark: Any, cluster: tuple[Syncer, Cluster]) -> None:  # type: ignore[type-arg]
    """All of it is read and compared."""
    sync, now = cluster
    ((plan,), _) = now.next(lambda turn: [])
    sync.sync(plan)

    def again() -> None:
        sync.forget()
        assert sync.sync(plan).written == 0

    benchmark.pedantic(again, rounds=5)


# --- memory ---------------------------------------------------------------------------------------


@shapes
def bench_memory(services: int, endpoints: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a process that has nothing but the Snapshot, before and after its first sync; and what the
    kernel holds more (SUnreclaim, VmallocUsed and Percpu of /proc/meminfo, all of the machine)."""
    argv = [sys.executable, "-m", "bench.nftables_memory", str(services), str(endpoints)]
    found: list[dict[str, float]] = []
    for _ in range(3):
        at_rest()
        with netns.fresh():
            out = subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        found.append(json.loads(out))
    best = {name: sorted(each[name] for each in found)[1] / 1e6 for name in found[0]}
    per_element = 1e6 * best["kernel"] / (services * (endpoints + 2))
    say(
        capsys,
        f"{services:,} x {endpoints}: process {best['before']:.0f} MB with the Snapshot, "
        f"{best['after']:.0f} MB after the sync, {best['peak']:.0f} MB at its peak; "
        f"kernel {best['kernel']:.1f} MB ({per_element:.0f} bytes an element)",
    )


# --- kube-proxy's layout --------------------------------------------------------------------------


def kube_proxys_layout(services: int, endpoints: int) -> str:
    """The same services as kube-proxy 1.30 lays them out: a chain for each service and endpoint,
    and a map without a name in each service's chain."""
    table, lines, ways = "ip kube-proxy", ["add table ip kube-proxy"], []
    lines.append(
        f"add map {table} service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}"
    )
    for plan in snapshot(services, endpoints).ports.values():
        service = f"service-{plan.name.namespace}-{plan.name.name}"
        ends = []
        for end in plan.endpoints.all:
            chain = f"endpoint-{plan.name.name}-{end.ip}-{end.port}"
            lines.append(f"add chain {table} {chain}")
            lines.append(f"add rule {table} {chain} ip saddr {end.ip} meta mark set mark or 0x4000")
            lines.append(f"add rule {table} {chain} meta l4proto tcp dnat to {end.ip}:{end.port}")
            ends.append(chain)
        choices = ", ".join(f"{slot} : goto {chain}" for slot, chain in enumerate(ends))
        lines.append(f"add chain {table} {service}")
        lines.append(
            f"add rule {table} {service} numgen random mod {len(ends)} vmap {{ {choices} }}"
        )
        ways.append(f"{plan.cluster_ip} . tcp . {plan.port} : goto {service}")
    lines.append(f"add element {table} service-ips {{ {', '.join(ways)} }}")
    lines.append(f"add chain {table} nat-prerouting {{ type nat hook prerouting priority -100; }}")
    lines.append(
        f"add rule {table} nat-prerouting ip daddr . meta l4proto . th dport vmap @service-ips"
    )
    return "\n".join(lines) + "\n"


def bench_contrast(capsys: pytest.CaptureFixture[str]) -> None:
    """kube-proxy's layout beside ours, both by the bare tool; and ours as it is programmed."""
    texts = {
        "theirs": kube_proxys_layout(CONTRAST, 10).encode(),
        "ours": whole_text(CONTRAST, 10),
    }
    seconds = {}
    for name, text in texts.items():
        at_rest()
        with netns.fresh():
            seconds[name] = timed(lambda text=text: command.run(["nft", "-f", "-"], stdin=text))
    at_rest()
    with syncer() as sync:
        seconds["kproxy"] = timed(lambda: sync.sync(snapshot(CONTRAST, 10)))
    report.save(
        f"nftables-contrast-{CONTRAST}",
        {"fingerprint": report.fingerprint(), "seconds": seconds},
    )
    theirs = seconds["theirs"]
    say(
        capsys,
        f"{CONTRAST:,} x 10, kube-proxy's layout: nft -f {theirs:.2f} s",
        f"  this mode's: nft -f {seconds['ours']:.2f} s ({theirs / seconds['ours']:.0f} times), "
        f"kproxy {seconds['kproxy']:.2f} s ({theirs / seconds['kproxy']:.0f} times)",
    )
