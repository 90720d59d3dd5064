"""``lab ping``: which flows it tries, what it makes of them, and that it finds a gap."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from kproxy.core.objects import Protocol
from kproxy.kernel import command, netns
from kproxy.lab import catalogue, changes, lifecycle, ping, state, wiring
from kproxy.lab.controllers import fill
from kproxy.lab.manifests import Raw
from kproxy.lab.network import Network
from kproxy.lab.ping import Attempt, Result
from kproxy.lab.state import Allocations, LabState
from kproxy.lab.traffic import Outcome, Reach

LAB = "fping"


def value(*manifests: dict[str, Any]) -> LabState:
    topology = catalogue.load("standard")
    bare = LabState(
        LAB,
        topology,
        "iptables",
        "nft",
        Network(LAB),
        workloads=topology.workloads,
        manifests=manifests,
    )
    return wiring.place(bare)


def service(**spec: Any) -> dict[str, Any]:
    ports = [{"port": 80, "targetPort": "http"}]
    spec = {"ports": ports, "selector": {"app": "web"}, **spec}
    return {"kind": "Service", "metadata": {"name": "s"}, "spec": spec}


def tried(lab: LabState) -> set[tuple[str, str, str]]:
    """(way in, sender, what is expected) of all service flows."""
    flows = ping.services(lab, fill(lab, Allocations()))
    return {(flow.row.partition(" ")[2], flow.sender, flow.expect.value) for flow in flows}


def test_all_pairs_of_all_families() -> None:
    """Everybody asks everybody else, over both families, and no one himself."""
    lab = value()
    hosts = {*lab.topology.hosts, *(pod.name for pod in lab.pods)}
    flows = ping.pairs(lab)
    seen = {(flow.sender, flow.column, ":" in flow.to) for flow in flows}
    assert seen == {(a, b, six) for a in hosts for b in hosts if a != b for six in (False, True)}
    assert {flow.who for flow in flows if flow.expect is Reach.REACHED} == {
        pod.name for pod in lab.pods
    }


def test_big_labs_are_told_by_node() -> None:
    """With many hosts the rows are nodes' pods; every flow is tried all the same."""
    topology = catalogue.scaled(catalogue.load("wide"), nodes=3, pods=10)
    lab = wiring.place(
        LabState(LAB, topology, "iptables", "", Network(LAB), workloads=topology.workloads)
    )
    flows = ping.pairs(lab)
    assert {flow.row for flow in flows} == {
        *("pods@node1", "pods@node2", "pods@node3"),
        *lab.topology.hosts,
    }
    assert len(flows) == 2 * 34 * 33


def test_cluster_ip_from_inside_only() -> None:
    """The underlay knows no cluster IPs, so clients do not try them; nodes and pods do."""
    assert tried(value(service())) == {
        ("cluster IP", sender, "reached") for sender in ("node1", "node2", "web-0", "web-1")
    }


def test_node_ports_from_everywhere() -> None:
    """A node port is tried at every node by all kinds of clients."""
    lab = value(service(type="NodePort"))
    flows = ping.services(lab, fill(lab, Allocations()))
    found = {(flow.sender, flow.to) for flow in flows if "node port" in flow.row}
    assert found == {
        (sender, to)
        for sender in ("node1", "node2", "web-0", "web-1", "client")
        for to in ("192.168.100.11", "192.168.100.12")
    }


def test_nobody_there_must_be_refused() -> None:
    """A service without endpoints is expected to refuse."""
    assert {expect for _, _, expect in tried(value(service(selector={"app": "no"})))} == {"refused"}


def test_local_policies_narrow_what_is_tried() -> None:
    """Where a Local policy drops on purpose nothing is tried."""
    by_hand = {  # the only endpoint is on node1
        "kind": "EndpointSlice",
        "metadata": {"name": "mine", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": "IPv4",
        "ports": [{"port": 8080}],
        "endpoints": [{"addresses": ["web-0"]}],
    }
    policies = {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}
    lab = value(service(type="NodePort", selector=None, **policies), by_hand)
    flows = ping.services(lab, fill(lab, Allocations()))
    assert {flow.sender for flow in flows if "cluster IP" in flow.row} == {"node1", "web-0"}
    assert {flow.to for flow in flows if "node port" in flow.row} == {"192.168.100.11"}


def result(sender: str, column: str, reach: Reach, **more: Any) -> Result:
    expect = more.pop("expect", Reach.REACHED)
    attempt = Attempt(sender, "192.0.2.1", 80, Protocol.TCP, expect, sender, column, **more)
    return Result(attempt, Outcome(reach, endpoint="web-0"))


@pytest.mark.parametrize(
    ("made", "passed"),
    [
        (result("a", "b", Reach.REACHED), True),
        (result("a", "b", Reach.SILENCE), False),
        (result("a", "b", Reach.REFUSED), False),
        (result("a", "b", Reach.REFUSED, expect=Reach.REFUSED), True),
        (result("a", "b", Reach.REACHED, who="web-0"), True),
        (result("a", "b", Reach.REACHED, who="web-1"), False),
    ],
)
def test_what_passes(made: Result, passed: bool) -> None:
    """The expected outcome, from the expected responder."""
    assert made.passed is passed
    assert "expected, seen" in str(made)


def test_matrix() -> None:
    """A cell counts its gaps; the diagonal stays empty and in place."""
    made = ping.matrix(
        "x",
        [
            result("a", "b", Reach.REACHED),
            result("b", "a", Reach.REACHED),
            result("b", "a", Reach.SILENCE),
            result("c", "a", Reach.REFUSED, expect=Reach.REFUSED, service=True),
        ],
    )
    assert made.columns == ("x", "a", "b")
    assert made.rows == (("a", "·", "✓"), ("b", "✗ 1/2", "·"), ("c", "⊘", "·"))


def test_an_empty_balancer_is_not_asked_by_the_node_that_its_packets_come_back_to() -> None:
    """kube-proxy refuses it where packets arrive; every other sender is refused."""
    empty = service(type="LoadBalancer", selector={"app": "nobody"})
    senders = {sender for way, sender, _ in tried(value(empty)) if way.endswith("balancer")}
    full = service(type="LoadBalancer")
    everybody = {sender for way, sender, _ in tried(value(full)) if way.endswith("balancer")}
    assert everybody - senders == {"node1"}


def test_a_pod_without_ports_is_knocked_at() -> None:
    """It runs nothing, so a reset is the proof, as with nodes and clients."""
    lab = value()
    bare = msgspec.structs.replace(lab.pods[0], ports=())
    flows = ping.pairs(msgspec.structs.replace(lab, pods=(bare, *lab.pods[1:])))
    to_it = {(flow.port, flow.expect, flow.who) for flow in flows if flow.to in bare.addresses}
    assert to_it == {(ping.CLOSED_PORT, Reach.REFUSED, "")}


@pytest.fixture
def lab() -> Iterator[LabState]:
    lifecycle.down(LAB)
    yield lifecycle.up(LAB, catalogue.load("standard"), lifecycle.mode_of("iptables")).lab
    lifecycle.down(LAB)
    state.forget_allocations(LAB)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "kproxy", "lab", *words, "--name", LAB]
    return subprocess.run(argv, capture_output=True, text=True, timeout=180, check=False)


@pytest.mark.kernel
def test_whole_lab_and_a_gap(lab: LabState) -> None:
    """A healthy lab has no gap; a pod whose link is down is found, and nobody else is blamed."""
    good = run("ping")
    assert (good.returncode, good.stderr) == (0, "")
    assert "no gap" in good.stdout
    fd = netns.open_fd(lab.network.namespace("echo-1"))
    try:
        command.run(["ip", "link", "set", "lo", "down"], namespace=fd)
        command.run(["ip", "link", "set", "eth0", "down"], namespace=fd)
    finally:
        os.close(fd)
    bad = run("ping", "-o", "json")
    assert bad.returncode == 1
    gaps = [flow for flow in json.loads(bad.stdout) if not flow["passed"]]
    own = set(lab.pod("echo-1").addresses)  # type: ignore[union-attr]
    direct = {(flow["from"], flow["to"]) for flow in gaps if flow["service"] is None}
    assert {to for sender, to in direct if sender != "echo-1"} == own
    assert {flow["service"].partition(":")[0] for flow in gaps if flow["service"]} <= {"echo"}
    assert "✗" in run("ping").stdout


@pytest.mark.kernel
def test_many_refusals_at_once_all_arrive(lab: LabState) -> None:
    """A refusal is an ICMP error, and no node may save on them: forty empty services are refused
    to everybody who asks."""
    empty = [
        Raw(
            {
                "kind": "Service",
                "metadata": {"name": f"none-{number}"},
                "spec": {"ports": [{"port": 80}], "selector": {"app": "nobody"}},
            }
        )
        for number in range(40)
    ]
    now = changes.apply(LAB, empty).state
    done = fill(now, state.load_allocations(LAB))
    flows = [flow for flow in ping.services(now, done) if flow.row.startswith("none-")]
    assert len({flow.row for flow in flows}) == 40
    assert [str(result) for result in ping.run(lab, flows) if not result.passed] == []
