"""``lab get``: kubectl's columns."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kproxy.lab import catalogue, wiring
from kproxy.lab.controllers import Completed, fill
from kproxy.lab.network import Network
from kproxy.lab.state import Allocations, LabState
from kproxy.lab.tables import aligned, duration, objects_of, table_of

NOW = 1_800_000_000.0
BORN = {"underlay": NOW - 90, "web-0": NOW - 7200}


def lab(*manifests: dict[str, Any]) -> LabState:
    topology = catalogue.load("standard")
    bare = LabState(
        "shown",
        topology,
        "iptables",
        "nft",
        Network("shown"),
        workloads=topology.workloads,
        manifests=manifests,
    )
    return wiring.place(bare)


def rows(kind: str, there: LabState, *, wide: bool = False) -> list[dict[str, str]]:
    done = fill(there, Allocations())
    assert done.refusals == ()
    table = table_of(kind, objects_of(kind, there, done, BORN), wide=wide, now=NOW)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def service(name: str, **spec: Any) -> dict[str, Any]:
    spec = {"ports": [{"port": 80}], "selector": {"app": "web"}, **spec}
    return {"kind": "Service", "metadata": {"name": name}, "spec": spec}


@pytest.mark.parametrize(
    ("spec", "cells"),
    [
        ({}, {"TYPE": "ClusterIP", "EXTERNAL-IP": "<none>", "PORT(S)": "80/TCP"}),
        ({"clusterIP": "10.96.0.7"}, {"CLUSTER-IP": "10.96.0.7", "SELECTOR": "app=web"}),
        ({"clusterIP": "None"}, {"CLUSTER-IP": "None"}),
        (
            {"type": "NodePort", "ports": [{"port": 53, "protocol": "UDP", "nodePort": 30053}]},
            {"PORT(S)": "53:30053/UDP"},
        ),
        (
            {"type": "LoadBalancer", "loadBalancerIP": "203.0.113.7"},
            {"EXTERNAL-IP": "203.0.113.7"},
        ),
        ({"type": "LoadBalancer", "loadBalancerClass": "x.io/y"}, {"EXTERNAL-IP": "<pending>"}),
        ({"externalIPs": ["203.0.113.8"]}, {"EXTERNAL-IP": "203.0.113.8"}),
        (
            {"type": "ExternalName", "externalName": "db.example.com", "ports": []},
            {"CLUSTER-IP": "<none>", "EXTERNAL-IP": "db.example.com", "PORT(S)": "<none>"},
        ),
    ],
)
def test_services(spec: dict[str, Any], cells: dict[str, str]) -> None:
    """Each type of service in the words of kubectl."""
    (row,) = rows("Service", lab(service("s", **spec)), wide=True)
    assert cells.items() <= row.items()
    assert row["AGE"] == "90s"


def test_endpoints_and_slices() -> None:
    """Endpoints of a service are its ready addresses; three at most are listed."""
    there = lab(service("s", ports=[{"port": 80, "targetPort": "http"}]), service("n", selector={}))
    (row, none) = rows("Endpoints", there)
    assert row["ENDPOINTS"] == "10.244.1.2:8080,10.244.2.2:8080"
    assert none["ENDPOINTS"] == "<none>"
    web = next(load for load in there.workloads if load.name == "web")
    more = msgspec.structs.replace(
        there, workloads=(msgspec.structs.replace(web, replicas=5),), pods=()
    )
    more = wiring.place(more)
    first = msgspec.structs.replace(more.pods[0], ready=False, terminating=True)
    more = msgspec.structs.replace(more, pods=(first, *more.pods[1:]))
    (row, _) = rows("Endpoints", more)
    assert row["ENDPOINTS"].endswith("+ 1 more...")
    assert first.addresses[0] not in row["ENDPOINTS"]
    (row,) = rows("EndpointSlice", more, wide=True)
    assert (row["ADDRESSTYPE"], row["PORTS"]) == ("IPv4", "8080")
    assert row["CONDITIONS"].startswith("terminating,ready,ready")


def test_pods_nodes_and_workloads() -> None:
    """Pods with their own age, nodes with both addresses, workloads with their counts."""
    there = lab()
    pods = {row["NAME"]: row for row in rows("Pod", there, wide=True)}
    assert pods["web-0"]["AGE"] == "120m"
    assert pods["web-0"]["IP"] == "10.244.1.2,fd00:10:244:1::2"
    assert (pods["web-0"]["READY"], pods["web-0"]["NODE"]) == ("1/1", "node1")
    node = rows("Node", there, wide=True)[0]
    assert (node["NAME"], node["STATUS"], node["ZONE"]) == ("node1", "Ready", "a")
    assert node["INTERNAL-IP"] == "192.168.100.11,fd00:192:168:100::11"
    load = rows("Deployment", there)[0]
    assert (load["NAME"], load["READY"]) == ("web", "2/2")


def test_narrow_tables_are_kubectls() -> None:
    """Without -o wide nothing but kubectl's own columns is shown."""
    done = Completed((), Allocations())
    columns = {kind: table_of(kind, done.of(kind), wide=False, now=NOW).columns for kind in KINDS}
    assert columns == KINDS


KINDS = {
    "Service": ("NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"),
    "Endpoints": ("NAME", "ENDPOINTS", "AGE"),
    "EndpointSlice": ("NAME", "ADDRESSTYPE", "PORTS", "ENDPOINTS", "AGE"),
    "Pod": ("NAME", "READY", "STATUS", "RESTARTS", "AGE"),
    "Node": ("NAME", "STATUS", "ROLES", "AGE", "VERSION"),
    "Deployment": ("NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"),
}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (275, "4m35s"),
        (600, "10m"),
        (10799, "179m"),
        (10800, "3h"),
        (11100, "3h5m"),
        (28800, "8h"),
        (172800, "2d"),
    ],
)
def test_durations(seconds: int, text: str) -> None:
    """Ages in two units at most."""
    assert duration(seconds) == text


def test_columns_are_as_wide_as_they_must_be() -> None:
    """Aligned, three blanks between, none at the end."""
    assert aligned(("A", "BB"), [("ccc", "d")]) == ["A     BB", "ccc   d"]
