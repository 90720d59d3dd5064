"""Comparing a full conntrack table with the plan; README.md says how to read it.

    python -m pytest bench/bench_conntrack.py --benchmark-columns=median,min,rounds

The table is that of a network namespace made for each measurement (root). It holds 100,000 UDP
flows through 1,000 VIPs to 5,000 endpoints, and 400 of them are stale. The limit of entries,
nf_conntrack_max, is the host's and cannot be changed in a namespace.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kproxy.core.objects import Family, PortName, Protocol
from kproxy.core.snapshot import Endpoint, EndpointSets, NodeSettings, PortPlan, Snapshot
from kproxy.core.stale_flows import WHOLE, StaleFlows
from kproxy.core.ways import packed, packed_port
from kproxy.flows import FlowCleaner
from kproxy.kernel import netns
from kproxy.kernel.conntrack import Conntrack
from tests.kernel.entries import Entry, put

FLOWS = 100_000
SERVICES = 1_000
ENDPOINTS = 5
STALE = 400
ROUNDS = 7

families = pytest.mark.parametrize("family", list(Family), ids=["ipv4", "ipv6"])


def vip(number: int, family: Family) -> str:
    if family is Family.IPV6:
        return f"fd00:30::{number + 1:x}"
    return f"172.30.{number >> 8}.{number & 255}"


def pod(number: int, family: Family) -> str:
    if family is Family.IPV6:
        return f"fd00:10::{number + 1:x}"
    return f"10.180.{number >> 8}.{number & 255}"


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def plan(family: Family) -> Snapshot:
    ports = {}
    for number in range(SERVICES):
        name = PortName("ns", f"svc{number}", "dns", Protocol.UDP)
        ends = tuple(
            Endpoint(pod(number * ENDPOINTS + one, family), 53) for one in range(ENDPOINTS)
        )
        sets = EndpointSets(ends, None, ends, True)
        ports[name] = PortPlan(name, 53, sets, cluster_ip=vip(number, family))
    return Snapshot(family, NodeSettings("node1"), ports, changed=frozenset(ports))


def entries(family: Family) -> Iterator[Entry]:
    """Flows of 50 client addresses, each stale one to an endpoint of another service."""
    for number in range(FLOWS):
        service = number % SERVICES
        owner = service if number >= STALE else (service + 1) % SERVICES
        place = pod(owner * ENDPOINTS + number // SERVICES % ENDPOINTS, family)
        last = number % 50 + 1
        client = f"[fd00:9::{last:x}]" if family is Family.IPV6 else f"10.9.0.{last}"
        source = f"{client}:{1024 + number // 50}"
        yield Entry(source, f"{_host(vip(service, family))}:53", f"{_host(place)}:53")


@contextmanager
def full_table(family: Family) -> Iterator[None]:
    with netns.fresh():
        put(entries(family))
        yield


@families
def bench_list(benchmark, family):
    """The kernel's dump, parsed; nothing judged."""
    with full_table(family), Conntrack(family) as table:
        listed = benchmark.pedantic(
            lambda: sum(len(batch.flows) for batch in table.udp()), rounds=ROUNDS
        )
    assert listed == FLOWS


@families
def bench_list_part(benchmark, family):
    """The flows through one VIP, picked by the kernel: 100 of them in IPv4, all in IPv6."""
    with full_table(family), Conntrack(family) as table:
        part = (packed(vip(7, family)), packed_port(53))
        listed = benchmark.pedantic(
            lambda: sum(len(batch.flows) for batch in table.udp(*part)), rounds=ROUNDS
        )
    assert listed == (FLOWS // SERVICES if family is Family.IPV4 else FLOWS)


@families
def bench_judge(benchmark, family):
    """The decision alone, in memory."""
    stale = StaleFlows(family)
    stale.plan(plan(family), ())
    assert stale.parts() == WHOLE
    with full_table(family), Conntrack(family) as table:
        batches = [batch.flows for batch in table.udp()]
    found = benchmark.pedantic(
        lambda: sum(len(stale.judge(flows)) for flows in batches), rounds=ROUNDS
    )
    assert found == STALE


@families
def bench_clean(benchmark, family):
    """All of it, as after a first sync: list, judge, delete the stale ones, acknowledged."""
    snapshot = plan(family)

    def prepared() -> tuple[tuple[FlowCleaner], dict[str, object]]:
        cleaner = FlowCleaner(family, "iptables")
        cleaner.plan(snapshot, ())
        with Conntrack(family) as table:
            batches = list(table.udp())
            table.delete(batch.handle(at) for batch in batches for at in range(len(batch.flows)))
        put(entries(family))
        return (cleaner,), {}

    def clean(cleaner: FlowCleaner) -> None:
        cleaned = cleaner.clean(all_of_it=True)
        assert cleaned is not None
        assert (cleaned.listed, cleaned.deleted) == (FLOWS, STALE)

    with netns.fresh():
        benchmark.pedantic(clean, setup=prepared, rounds=ROUNDS)


@families
def bench_tool(benchmark, family):
    """For comparison: the conntrack tool prints the same table."""
    argv = ["conntrack", "-L", "-p", "udp", "-f", f"ipv{int(family)}"]
    with full_table(family):
        done = benchmark.pedantic(
            lambda: subprocess.run(argv, check=True, capture_output=True), rounds=ROUNDS
        )
    assert done.stdout.count(b"\n") == FLOWS
