"""Endpoints written by hand: pods named instead of addressed, their nodes and zones filled in.

Pure. In an EndpointSlice, ``addresses: [web-1]`` or no address and a ``targetRef`` to a pod; in
Endpoints, ``ip: web-1`` or the same reference. What is an address stays what it is. An endpoint
whose pod is not there (any more) is left out alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from kproxy.core.address import canonical_ip
from kproxy.core.objects import Family
from kproxy.lab.controllers.checks import check_meta
from kproxy.lab.controllers.cluster import FAMILIES, Cluster
from kproxy.lab.controllers.faults import Faults
from kproxy.lab.state import Pod

#: The label of an EndpointSlice that names its Service.
SERVICE_LABEL = "kubernetes.io/service-name"


def fill_slice(raw: Mapping[str, Any], cluster: Cluster) -> tuple[dict[str, Any], Faults]:
    """An EndpointSlice with every pod's name replaced by its address of the slice's family."""
    obj = copy.deepcopy(dict(raw))
    faults = Faults(obj)
    check_meta(obj, faults)
    kind = obj.get("addressType")
    if kind not in (*FAMILIES, "FQDN"):
        faults.unsupported("addressType", kind, (*FAMILIES, "FQDN"))
    if faults:
        return obj, faults
    namespace = obj["metadata"].setdefault("namespace", "default")
    endpoints = obj.get("endpoints")
    if isinstance(endpoints, list) and kind in FAMILIES:
        obj["endpoints"] = [
            endpoint
            for index, endpoint in enumerate(endpoints)
            if not isinstance(endpoint, dict)
            or _fill_endpoint(
                endpoint, f"endpoints[{index}]", namespace, FAMILIES[kind], cluster, faults
            )
        ]
    return obj, faults


def _fill_endpoint(
    endpoint: dict[str, Any],
    where: str,
    namespace: str,
    family: Family,
    cluster: Cluster,
    faults: Faults,
) -> bool:
    """Fill in one endpoint; false when it must be left out."""
    addresses = endpoint.get("addresses")
    if addresses is None:
        named = _referred(endpoint, namespace)
        addresses = [named] if named else []
    if not isinstance(addresses, list) or not addresses:
        faults.required(f"{where}.addresses", "an address, or the name of a pod of this lab")
        return False
    before = len(faults.found)
    for index, text in enumerate(addresses):
        field = f"{where}.addresses[{index}]"
        pod = _pod(text, namespace, field, cluster, faults)
        if pod is None:
            continue
        addresses[index] = pod.address(family)
        if not addresses[index]:
            why = "this pod has no address of the slice's family"
            faults.invalid(field, text, why, whole=False)
        endpoint.setdefault("nodeName", pod.node)
        if cluster.zone_of(pod.node):
            endpoint.setdefault("zone", cluster.zone_of(pod.node))
        reference = {"kind": "Pod", "name": pod.name, "namespace": namespace}
        endpoint.setdefault("targetRef", reference)
    endpoint["addresses"] = addresses
    return len(faults.found) == before


def fill_endpoints(raw: Mapping[str, Any], cluster: Cluster) -> tuple[dict[str, Any], Faults]:
    """Endpoints with pods' names replaced; a pod named by reference only gets every family."""
    obj = copy.deepcopy(dict(raw))
    faults = Faults(obj)
    check_meta(obj, faults)
    if faults:
        return obj, faults
    namespace = obj["metadata"].setdefault("namespace", "default")
    for number, subset in enumerate(obj.get("subsets") or ()):
        for field in ("addresses", "notReadyAddresses"):
            if isinstance(subset, dict) and isinstance(subset.get(field), list):
                where = f"subsets[{number}].{field}"
                subset[field] = _fill_addresses(subset[field], where, namespace, cluster, faults)
    return obj, faults


def _fill_addresses(
    entries: list[Any], where: str, namespace: str, cluster: Cluster, faults: Faults
) -> list[Any]:
    filled: list[Any] = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            filled.append(entry)
            continue
        text = entry.get("ip") or _referred(entry, namespace)
        before = len(faults.found)
        pod = _pod(text, namespace, f"{where}[{index}].ip", cluster, faults)
        if pod is None:
            filled += [entry] if len(faults.found) == before else []
            continue
        reference = {"kind": "Pod", "name": pod.name, "namespace": namespace}
        filled += [
            {"nodeName": pod.node, "targetRef": reference, **entry, "ip": address}
            for address in pod.addresses
        ]
    return filled


def _referred(holder: Mapping[str, Any], namespace: str) -> str:
    """Name of the pod that a targetRef points to, "" for none."""
    reference = holder.get("targetRef")
    if not isinstance(reference, dict) or reference.get("kind", "Pod") != "Pod":
        return ""
    if reference.get("namespace", namespace) != namespace:
        return ""
    return str(reference.get("name", ""))


def _pod(text: object, namespace: str, field: str, cluster: Cluster, faults: Faults) -> Pod | None:
    """The pod that a text names; None for an address, and for a name that is a fault."""
    if not isinstance(text, str):
        faults.invalid(field, text, "must be an IP address or the name of a pod of this lab")
        return None
    if canonical_ip(text) is not None:
        return None
    named = {pod.name: pod for pod in cluster.pods if pod.namespace == namespace}
    if text not in named:
        here = ", ".join(sorted(named)) or "none"
        faults.invalid(
            field,
            text,
            f"is neither an IP address nor a pod of this lab; pods in {namespace}: {here}",
            whole=False,
        )
    return named.get(text)
