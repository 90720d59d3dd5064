"""Clusters of a given size, for benchmarks: S services with E endpoints each.

Addresses follow one plan: cluster IPs from 172.30.0.0/16 (fd00:10:96::/112), pods from 10.0.0.0/8
(fd00:10::/32), one TCP port a service, every tenth service with a node port.
"""

from __future__ import annotations

import json
from typing import Any

from kproxy.core.objects import Family, PortName, Protocol, TrafficPolicy
from kproxy.core.snapshot import (
    Endpoint,
    EndpointSets,
    LocalDetector,
    NodeSettings,
    PortPlan,
    Snapshot,
)

NODE = "node-0"
_NODES = 100

SETTINGS = {
    Family.IPV4: NodeSettings(
        NODE, addresses=("192.168.0.2",), detector=LocalDetector(cidr="10.0.0.0/8")
    ),
    Family.IPV6: NodeSettings(
        NODE, addresses=("fd00:192::2",), detector=LocalDetector(cidr="fd00:10::/32")
    ),
}


def cluster_ip(index: int, family: Family = Family.IPV4) -> str:
    if family is Family.IPV6:
        return f"fd00:10:96::{index + 1:x}"
    return f"172.30.{index // 250}.{index % 250 + 1}"


def pod_ip(number: int, family: Family = Family.IPV4) -> str:
    if family is Family.IPV6:
        return f"fd00:10:{number // 65000 + 1:x}::{number % 65000 + 1:x}"
    return f"10.{number // 62500}.{number // 250 % 250}.{number % 250 + 1}"


def plan(index: int, endpoints: int, family: Family = Family.IPV4, *, shift: int = 0) -> PortPlan:
    """The plan of service ``index``; ``shift`` moves its endpoints to other addresses."""
    first = index * endpoints + shift
    ends = tuple(
        sorted(
            (
                Endpoint(pod_ip(number, family), 8080, local=number % _NODES == 0)
                for number in range(first, first + endpoints)
            ),
            key=lambda end: (end.ip, end.port),
        )
    )
    return PortPlan(
        name=PortName(f"ns-{index % 20}", f"service-{index}", "http", Protocol.TCP),
        port=80,
        endpoints=EndpointSets(cluster=ends, local=None, all=ends, has_any=bool(ends)),
        cluster_ip=cluster_ip(index, family),
        node_port=30000 + index // 10 if index % 10 == 0 else 0,
        internal_policy=TrafficPolicy.CLUSTER,
    )


def snapshot(services: int, endpoints: int, family: Family = Family.IPV4) -> Snapshot:
    """A first Snapshot, made without decoding or planning."""
    plans = [plan(index, endpoints, family) for index in range(services)]
    return Snapshot(
        family=family,
        settings=SETTINGS[family],
        ports={each.name: each for each in plans},
        changed=frozenset(each.name for each in plans),
        endpoint_count=services * endpoints,
    )


def changed(before: Snapshot, *new: PortPlan) -> Snapshot:
    """The Snapshot after ``before`` in which some service ports have new plans."""
    gone = sum(len(before.ports[plan.name].endpoints.all) for plan in new)
    come = sum(len(plan.endpoints.all) for plan in new)
    return Snapshot(
        family=before.family,
        settings=before.settings,
        ports={**before.ports, **{plan.name: plan for plan in new}},
        generation=before.generation + 1,
        base=before.generation,
        changed=frozenset(plan.name for plan in new),
        endpoint_count=before.endpoint_count - gone + come,
    )


def manifests(services: int, endpoints: int) -> list[dict[str, object]]:
    """The same cluster as Kubernetes objects: a Service and an EndpointSlice each, and the node."""
    objects: list[dict[str, object]] = [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": NODE},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.2"}]},
        }
    ]
    for index in range(services):
        objects += [service(index), endpoint_slice(index, endpoints)]
    return objects


def json_list(services: int, endpoints: int) -> bytes:
    """The manifests as one ``List`` in JSON."""
    whole = {"apiVersion": "v1", "kind": "List", "items": manifests(services, endpoints)}
    return json.dumps(whole).encode()


def _metadata(index: int) -> dict[str, object]:
    return {
        "namespace": f"ns-{index % 20}",
        "name": f"service-{index}",
        "uid": f"00000000-0000-4000-8000-{index:012d}",
        "creationTimestamp": "2024-01-01T00:00:00Z",
        "resourceVersion": str(1000 + index),
        "labels": {"app": f"app-{index}"},
    }


def service(index: int) -> dict[str, Any]:
    """The Service of that number."""
    address = cluster_ip(index)
    port: dict[str, object] = {
        "name": "http",
        "protocol": "TCP",
        "port": 80,
        "targetPort": 8080,
    }
    if index % 10 == 0:
        port["nodePort"] = 30000 + index // 10
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(index),
        "spec": {
            "type": "NodePort" if index % 10 == 0 else "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "selector": {"app": f"app-{index}"},
            "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
            "ports": [port],
        },
    }


def endpoint_slice(index: int, endpoints: int) -> dict[str, Any]:
    """Its EndpointSlice."""
    metadata = _metadata(index)
    metadata["name"] = f"service-{index}-abcde"
    metadata["labels"] = {"kubernetes.io/service-name": f"service-{index}"}
    numbers = range(index * endpoints, (index + 1) * endpoints)
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata,
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [endpoint(number) for number in numbers],
    }


def endpoint(number: int) -> dict[str, Any]:
    """A ready one, as it stands in a slice."""
    return {
        "addresses": [pod_ip(number)],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "nodeName": f"node-{number % _NODES}",
        "zone": "zone-a",
        "targetRef": {
            "kind": "Pod",
            "namespace": f"ns-{number % 20}",
            "name": f"pod-{number}",
        },
    }
