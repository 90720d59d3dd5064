"""nftables mode beside the bare ``nft -f`` of the same ruleset; README.md says how to read it.

    python -m pytest bench/bench_nftables.py -s

Turn by turn in one run, each turn in a network namespace of its own (root). ``KPROXY_BENCH_SHAPES``
names other clusters than 1,000, 5,000 and 10,000 services of 10 endpoints and 5,000 of 50.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache

import pytest

from bench import workload
from kproxy.backends.nftables.apply import NftablesBackend
from kproxy.backends.nftables.library import Nft
from kproxy.backends.nftables.render import render
from kproxy.backends.nftables.text import script
from kproxy.backends.syncer import Syncer
from kproxy.core.objects import Family
from kproxy.core.snapshot import Snapshot
from kproxy.kernel import command, netns

V4 = Family.IPV4
SHAPES = [
    tuple(map(int, shape.split("x")))
    for shape in os.environ.get("KPROXY_BENCH_SHAPES", "1000x10,5000x10,10000x10,5000x50").split(
        ","
    )
]
TURNS = int(os.environ.get("KPROXY_BENCH_TURNS", "5"))
CHANGED, BURST = 10_000, 1000

shapes = pytest.mark.parametrize(("services", "endpoints"), SHAPES)


@contextmanager
def syncer() -> Iterator[Syncer]:  # type: ignore[type-arg]
    with netns.fresh(), closing(NftablesBackend(V4)) as backend:
        yield Syncer(backend)


@cache
def whole_text(services: int, endpoints: int) -> str:
    return "".join(script(render(workload.snapshot(services, endpoints), None)))


def kube_proxys_layout(services: int, endpoints: int) -> str:
    """The same services as kube-proxy 1.30 lays them out: a chain for each service and endpoint,
    and a map without a name in each service's chain."""
    table, lines, ways = "ip kube-proxy", ["add table ip kube-proxy"], []
    lines.append(
        f"add map {table} service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}"
    )
    for plan in workload.snapshot(services, endpoints).ports.values():
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


def timed(what: Callable[[], object]) -> float:
    start = time.perf_counter()
    what()
    return time.perf_counter() - start


def say(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\n{line}\n")


@shapes
def bench_cold(services: int, endpoints: int, capsys: pytest.CaptureFixture[str]) -> None:
    """From a finished Snapshot to the kernel's acknowledgement."""
    snapshot, text = workload.snapshot(services, endpoints), whole_text(services, endpoints)

    def bare() -> float:
        with netns.fresh():
            return timed(lambda: command.run(["nft", "-f", "-"], stdin=text.encode()))

    def library() -> float:
        with netns.fresh(), closing(Nft()) as nft:
            return timed(lambda: nft.run("".join(script(render(snapshot, None)))))

    def ours() -> float:
        with syncer() as sync:
            return timed(lambda: sync.sync(snapshot))

    taken: dict[Callable[[], float], list[float]] = {bare: [], library: [], ours: []}
    for _ in range(TURNS):
        for what, times in taken.items():
            times.append(what())
    ratios = [mine / alone for mine, alone in zip(taken[ours], taken[bare], strict=True)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    said = ", ".join(f"{each.__name__} {statistics.median(taken[each]):.3f} s" for each in taken)
    say(
        f"{services} x {endpoints}: {said}; ours to bare {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f}-{max(ratios):.2f}); peak {peak:.0f} MB",
        capsys,
    )


def bench_change(capsys: pytest.CaptureFixture[str]) -> None:
    """One endpoint is replaced; one comes and goes (another number of slots); and a burst."""
    now = workload.snapshot(CHANGED, 10)
    with syncer() as sync:
        sync.sync(now)
        figures: dict[str, list[float]] = {"replaced": [], "scaled": [], f"burst of {BURST}": []}

        def step(kind: str, *plans: workload.PortPlan) -> None:
            nonlocal now
            now = workload.changed(now, *plans)
            snapshot: Snapshot = now
            figures[kind].append(timed(lambda: sync.sync(snapshot)))

        for turn in range(1, 8 * TURNS):
            step("replaced", workload.plan(3, 10, shift=turn))
            step("scaled", workload.plan(4, 10 + turn % 2))
        for turn in range(1, TURNS + 1):
            burst = [workload.plan(each, 10, shift=turn) for each in range(5, 5 + BURST)]
            step(f"burst of {BURST}", *burst)
        again = timed(lambda: (sync.forget(), sync.sync(now)))
    for kind, times in figures.items():
        times = times[1:]
        say(
            f"{CHANGED} services, {kind}: median {statistics.median(times) * 1e3:.2f} ms "
            f"(max {max(times) * 1e3:.2f})",
            capsys,
        )
    say(f"{CHANGED} services, nothing to do after a read: {again:.2f} s", capsys)


def bench_contrast(capsys: pytest.CaptureFixture[str]) -> None:
    """kube-proxy's layout for 1,000 services, and for more where one has the patience."""
    services = int(os.environ.get("KPROXY_BENCH_CONTRAST", "1000"))
    theirs, ours = kube_proxys_layout(services, 10), whole_text(services, 10)
    for name, text in (("kube-proxy's layout", theirs), ("ours", ours)):
        with netns.fresh():
            took = timed(
                lambda text=text: subprocess.run(
                    ["nft", "-f", "-"], input=text.encode(), check=True
                )
            )
        say(f"{services} x 10, nft -f of {name}: {took:.2f} s", capsys)
