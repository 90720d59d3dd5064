"""EndpointSlices made from selectors and pods, as the endpoint slice controller makes them.

Pure. A slice holds endpoints of one family that answer on the same ports: pods whose named port
has another number get a slice of their own. A service that selects nobody has one empty slice for
each family, so that "no endpoints" can be told from "not looked at yet".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from kproxy.core.objects import Family
from kproxy.lab.controllers.cluster import FAMILIES, FAMILY_NAMES, Cluster
from kproxy.lab.state import Pod

#: --max-endpoints-per-slice of kube-controller-manager.
MAX_ENDPOINTS = 100

MANAGED_BY = "endpointslice-controller.k8s.io"

#: (name, protocol, number, appProtocol) of each port of a slice.
PortSet = tuple[tuple[str, str, int, str], ...]


def selected(service: Mapping[str, Any], pods: Iterable[Pod]) -> list[Pod]:
    """Pods that a service selects: its namespace, all labels; none without a selector."""
    wanted = service["spec"].get("selector") or {}
    namespace = service["metadata"]["namespace"]
    return [
        pod
        for pod in pods
        if wanted and pod.namespace == namespace and wanted.items() <= dict(pod.labels).items()
    ]


def make_slices(service: Mapping[str, Any], cluster: Cluster) -> list[dict[str, Any]]:
    """All slices of one filled-in service; none without a selector or of type ExternalName."""
    spec = service["spec"]
    if not spec.get("selector") or spec["type"] == "ExternalName":
        return []
    pods = selected(service, cluster.pods)
    slices: list[dict[str, Any]] = []
    for family_name in spec["ipFamilies"]:
        family = FAMILIES[family_name]
        groups: dict[PortSet, list[Pod]] = {}
        for pod in pods:
            if pod.address(family):
                groups.setdefault(ports_of(spec.get("ports", ()), pod), []).append(pod)
        for ports, members in (groups or {(): []}).items():
            for start in range(0, max(1, len(members)), MAX_ENDPOINTS):
                part = members[start : start + MAX_ENDPOINTS]
                number = start // MAX_ENDPOINTS
                slices.append(_slice(service, family, ports, part, number, cluster))
    return slices


def ports_of(service_ports: Iterable[Mapping[str, Any]], pod: Pod) -> PortSet:
    """What a service's ports are on one pod; a named target port that it lacks is left out."""
    found = []
    for port in service_ports:
        target = port["targetPort"]
        if isinstance(target, str):
            target = next(
                (p.port for p in pod.ports if (p.name, p.protocol) == (target, port["protocol"])),
                0,
            )
        if target:
            name, app = port.get("name", ""), port.get("appProtocol", "")
            found.append((name, port["protocol"], target, app))
    return tuple(found)


def _slice(
    service: Mapping[str, Any],
    family: Family,
    ports: PortSet,
    pods: list[Pod],
    number: int,
    cluster: Cluster,
) -> dict[str, Any]:
    meta, spec = service["metadata"], service["spec"]
    labels = {
        **(meta.get("labels") or {}),
        "kubernetes.io/service-name": meta["name"],
        "endpointslice.kubernetes.io/managed-by": MANAGED_BY,
    }
    if spec.get("clusterIP") == "None":
        labels["service.kubernetes.io/headless"] = ""
    own = {
        "name": f"{meta['name']}-{_suffix(meta, family, ports, number)}",
        "namespace": meta["namespace"],
        "labels": labels,
    }
    if "creationTimestamp" in meta:
        own["creationTimestamp"] = meta["creationTimestamp"]
    distribution = spec.get("trafficDistribution", "")
    not_ready_too = bool(spec.get("publishNotReadyAddresses"))
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": own,
        "addressType": FAMILY_NAMES[family],
        "ports": [_port(*port) for port in ports],
        "endpoints": [_endpoint(pod, family, cluster, distribution, not_ready_too) for pod in pods],
    }


def _suffix(meta: Mapping[str, Any], family: Family, ports: PortSet, number: int) -> str:
    """Five characters that stay the same while the slice means the same."""
    text = f"{meta['namespace']}/{meta['name']}|{family}|{ports}|{number}"
    digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    # Kubernetes' alphabet of generated names: no vowels, so that no word comes out.
    alphabet = "bcdfghjklmnpqrstvwxz2456789"
    letters = []
    for _ in range(5):
        digest, place = divmod(digest, len(alphabet))
        letters.append(alphabet[place])
    return "".join(letters)


def _port(name: str, protocol: str, number: int, app: str) -> dict[str, Any]:
    port: dict[str, Any] = {"name": name, "protocol": protocol, "port": number}
    return {**port, "appProtocol": app} if app else port


def _endpoint(
    pod: Pod, family: Family, cluster: Cluster, distribution: str, not_ready_too: bool
) -> dict[str, Any]:
    endpoint: dict[str, Any] = {
        "addresses": [pod.address(family)],
        "conditions": {
            "ready": not_ready_too or (pod.ready and not pod.terminating),
            "serving": not_ready_too or pod.ready,
            "terminating": pod.terminating,
        },
        "nodeName": pod.node,
        "targetRef": {"kind": "Pod", "name": pod.name, "namespace": pod.namespace},
    }
    zone = cluster.zone_of(pod.node)
    if zone:
        endpoint["zone"] = zone
    hints = _hints(pod.node, zone, distribution)
    if hints and endpoint["conditions"]["ready"]:
        endpoint["hints"] = hints
    return endpoint


def _hints(node: str, zone: str, distribution: str) -> dict[str, Any]:
    """Same-zone for PreferClose and PreferSameZone; PreferSameNode names the node as well, and
    its zone for proxies that know no node hints."""
    hints: dict[str, Any] = {}
    if distribution and zone:
        hints["forZones"] = [{"name": zone}]
    if distribution == "PreferSameNode":
        hints["forNodes"] = [{"name": node}]
    return hints
