"""``lab get``: a lab's objects as Kubernetes objects, and as the columns that kubectl prints. Pure.

What was never an object in the lab (pods, workloads, the Endpoints of a selector) is made one here,
so that ``-o yaml`` shows what a cluster would show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from kproxy import __version__
from kproxy.core.objects import Value
from kproxy.lab.controllers import Completed
from kproxy.lab.controllers.naming import SERVICE_LABEL
from kproxy.lab.state import LabState, Pod
from kproxy.lab.topology import UNDERLAY, Workload

Object = Mapping[str, Any]

#: What a cell says when there is nothing to say.
NONE = "<none>"

#: kubectl lists this many endpoints before "+ N more...".
_LISTED = 3


class Table(Value, frozen=True):
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def aligned(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table in columns that are as wide as they must be, as kubectl prints them."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return [
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


# --- objects ----------------------------------------------------------------------------------


def objects_of(
    kind: str, lab: LabState, done: Completed, born: Mapping[str, float]
) -> list[dict[str, Any]]:
    """All objects of a kind. ``born``: seconds since the epoch at which a host was made.

    What came with the topology is as old as the lab, that is, as its underlay.
    """
    return [_born(obj, born.get(UNDERLAY)) for obj in _objects(kind, lab, done, born)]


def _objects(
    kind: str, lab: LabState, done: Completed, born: Mapping[str, float]
) -> list[dict[str, Any]]:
    if kind == "Pod":
        return [pod_object(pod, born.get(pod.name)) for pod in lab.pods]
    if kind == "Deployment":
        return [_deployment(load, lab) for load in lab.workloads]
    if kind == "Endpoints":
        return [_endpoints(service, done) for service in done.of("Service")]
    if kind == "Node":
        return [_born(obj, born.get(obj["metadata"]["name"])) for obj in done.of(kind)]
    return [dict(obj) for obj in done.of(kind)]


def _born(obj: Object, since: float | None) -> dict[str, Any]:
    """``obj`` with the time of its creation, unless it has one."""
    if since is None or "creationTimestamp" in obj["metadata"]:
        return dict(obj)
    return {**obj, "metadata": {**obj["metadata"], "creationTimestamp": _stamp(since)}}


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod_object(pod: Pod, born: float | None) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "name": pod.name,
        "namespace": pod.namespace,
        "labels": dict(pod.labels),
    }
    if born is not None:
        meta["creationTimestamp"] = _stamp(born)
    ports = [
        {"name": port.name, "containerPort": port.port, "protocol": port.protocol.value}
        for port in pod.ports
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": {"nodeName": pod.node, "containers": [{"name": "echo", "ports": ports}]},
        "status": {
            "phase": "Running",
            "conditions": [_ready_condition(pod)],
            "containerStatuses": [
                {"name": "echo", "ready": pod.ready, "restartCount": pod.restarts}
            ],
            "podIP": pod.addresses[0],
            "podIPs": [{"ip": address} for address in pod.addresses],
        },
    }


def _ready_condition(pod: Pod) -> dict[str, Any]:
    said: dict[str, Any] = {"type": "Ready", "status": "True" if pod.ready else "False"}
    return said if pod.ready or not pod.why else {**said, "message": pod.why}


def _deployment(load: Workload, lab: LabState) -> dict[str, Any]:
    mine = [p for p in lab.pods if (p.namespace, p.workload) == (load.namespace, load.name)]
    ports = [
        {"name": port.name, "containerPort": port.port, "protocol": port.protocol.value}
        for port in load.ports
    ]
    ready = sum(pod.ready for pod in mine)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": load.name, "namespace": load.namespace},
        "spec": {
            "replicas": load.replicas,
            "selector": {"matchLabels": dict(load.labels)},
            "template": {
                "metadata": {"labels": dict(load.labels)},
                "spec": {"containers": [{"name": "echo", "ports": ports}]},
            },
        },
        "status": {
            "replicas": len(mine),
            "updatedReplicas": len(mine),
            "readyReplicas": ready,
            "availableReplicas": ready,
        },
    }


def _endpoints(service: Object, done: Completed) -> dict[str, Any]:
    """The Endpoints of one service, as its slices (or Endpoints written by hand) say."""
    meta = service["metadata"]
    for obj in done.of("Endpoints"):
        own = obj["metadata"]
        if (own["name"], own["namespace"]) == (meta["name"], meta["namespace"]):
            return dict(obj)
    subsets = []
    for part in slices_of(service, done):
        ready = [e for e in part["endpoints"] if e.get("conditions", {}).get("ready", True)]
        if ready:
            addresses = [_address(endpoint) for endpoint in ready]
            subsets.append({"addresses": addresses, "ports": part.get("ports", [])})
    made = {"name": meta["name"], "namespace": meta["namespace"]}
    if "creationTimestamp" in meta:
        made["creationTimestamp"] = meta["creationTimestamp"]
    return {"apiVersion": "v1", "kind": "Endpoints", "metadata": made, "subsets": subsets}


def _address(endpoint: Object) -> dict[str, Any]:
    kept = {key: endpoint[key] for key in ("nodeName", "targetRef") if key in endpoint}
    return {"ip": endpoint["addresses"][0], **kept}


def slices_of(service: Object, done: Completed) -> list[Object]:
    """The EndpointSlices of a service, its controller's and its user's."""
    meta = service["metadata"]
    return [
        obj
        for obj in done.of("EndpointSlice")
        if obj["metadata"]["namespace"] == meta["namespace"]
        and (obj["metadata"].get("labels") or {}).get(SERVICE_LABEL) == meta["name"]
    ]


# --- columns ----------------------------------------------------------------------------------


def table_of(kind: str, objects: Iterable[Object], *, wide: bool, now: float) -> Table:
    """kubectl's columns of one kind. ``now`` in seconds since the epoch, for AGE."""
    narrow, more, cells = _KINDS[kind]
    columns = (*narrow, *more) if wide else narrow
    rows = tuple(cells(obj, now)[: len(columns)] for obj in objects)
    return Table(columns, rows)


def age(obj: Object, now: float) -> str:
    """How old an object is, in kubectl's way."""
    stamp = obj["metadata"].get("creationTimestamp")
    if not stamp:
        return "<unknown>"
    try:
        born = datetime.fromisoformat(str(stamp)).timestamp()
    except ValueError:
        return "<invalid>"
    return duration(max(0, round(now - born)))


def duration(seconds: int) -> str:
    """Two units at most, the smaller one only while it matters."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    return f"{days}d"


def _name(obj: Object) -> str:
    return str(obj["metadata"]["name"])


def _service(obj: Object, now: float) -> tuple[str, ...]:
    spec = obj["spec"]
    addresses = [*spec.get("externalIPs", ())]
    if spec["type"] == "LoadBalancer":
        ingress = obj.get("status", {}).get("loadBalancer", {}).get("ingress", ())
        addresses = [entry.get("ip") or entry.get("hostname", "") for entry in ingress] + addresses
    external = ",".join(addresses) or ("<pending>" if spec["type"] == "LoadBalancer" else NONE)
    if spec["type"] == "ExternalName":
        external = spec["externalName"]
    return (
        _name(obj),
        spec["type"],
        ",".join(spec.get("clusterIPs") or ()) or spec.get("clusterIP") or NONE,
        external,
        ",".join(map(_service_port, spec.get("ports") or ())) or NONE,
        age(obj, now),
        ",".join(f"{k}={v}" for k, v in (spec.get("selector") or {}).items()) or NONE,
    )


def _service_port(port: Object) -> str:
    node_port = f":{port['nodePort']}" if port.get("nodePort") else ""
    return f"{port['port']}{node_port}/{port['protocol']}"


def _listed(items: list[str]) -> str:
    if len(items) <= _LISTED:
        return ",".join(items) or NONE
    return f"{','.join(items[:_LISTED])} + {len(items) - _LISTED} more..."


def _endpoints_row(obj: Object, now: float) -> tuple[str, ...]:
    pairs = [
        f"[{entry['ip']}]:{port['port']}" if ":" in entry["ip"] else f"{entry['ip']}:{port['port']}"
        for subset in obj["subsets"]
        for port in subset.get("ports") or ()
        for entry in subset.get("addresses") or ()
    ]
    return _name(obj), _listed(pairs), age(obj, now)


def _slice(obj: Object, now: float) -> tuple[str, ...]:
    endpoints = obj.get("endpoints") or ()
    addresses = [entry["addresses"][0] for entry in endpoints]
    ports = [str(port.get("port", "*")) for port in obj.get("ports") or ()]
    states = [_condition(entry.get("conditions") or {}) for entry in endpoints]
    return (
        _name(obj),
        obj["addressType"],
        ",".join(ports) or "<unset>",
        _listed(addresses),
        age(obj, now),
        _listed(states),
    )


def _condition(conditions: Object) -> str:
    if conditions.get("terminating"):
        return "terminating" if not conditions.get("serving") else "serving,terminating"
    return "ready" if conditions.get("ready", True) else "not ready"


def _pod(obj: Object, now: float) -> tuple[str, ...]:
    ready = obj["status"]["conditions"][0]["status"] == "True"
    ports = [
        f"{port['containerPort']}/{port['protocol']}"
        for port in obj["spec"]["containers"][0]["ports"]
    ]
    return (
        _name(obj),
        "1/1" if ready else "0/1",
        obj["status"]["phase"],
        str(obj["status"]["containerStatuses"][0]["restartCount"]),
        age(obj, now),
        ",".join(entry["ip"] for entry in obj["status"]["podIPs"]),
        obj["spec"]["nodeName"],
        ",".join(ports) or NONE,
        ",".join(f"{k}={v}" for k, v in obj["metadata"]["labels"].items()) or NONE,
    )


def _node(obj: Object, now: float) -> tuple[str, ...]:
    addresses = [a["address"] for a in obj["status"]["addresses"] if a["type"] == "InternalIP"]
    labels = obj["metadata"]["labels"]
    return (
        _name(obj),
        "Ready",
        NONE,
        age(obj, now),
        f"kproxy {__version__}",
        ",".join(addresses) or NONE,
        labels.get("topology.kubernetes.io/zone", NONE),
        ",".join(obj["spec"].get("podCIDRs", ())) or NONE,
    )


def _workload(obj: Object, now: float) -> tuple[str, ...]:
    status, spec = obj["status"], obj["spec"]
    ports = [
        f"{port['containerPort']}/{port['protocol']}"
        for port in spec["template"]["spec"]["containers"][0]["ports"]
    ]
    return (
        _name(obj),
        f"{status['readyReplicas']}/{spec['replicas']}",
        str(status["updatedReplicas"]),
        str(status["availableReplicas"]),
        age(obj, now),
        ",".join(ports) or NONE,
        ",".join(f"{k}={v}" for k, v in spec["selector"]["matchLabels"].items()) or NONE,
    )


_Cells = Callable[[Object, float], tuple[str, ...]]

#: kind -> (columns, columns of -o wide, the cells of one object).
_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], _Cells]] = {
    "Service": (
        ("NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"),
        ("SELECTOR",),
        _service,
    ),
    "Endpoints": (("NAME", "ENDPOINTS", "AGE"), (), _endpoints_row),
    "EndpointSlice": (
        ("NAME", "ADDRESSTYPE", "PORTS", "ENDPOINTS", "AGE"),
        ("CONDITIONS",),
        _slice,
    ),
    "Pod": (
        ("NAME", "READY", "STATUS", "RESTARTS", "AGE"),
        ("IP", "NODE", "PORTS", "LABELS"),
        _pod,
    ),
    "Node": (
        ("NAME", "STATUS", "ROLES", "AGE", "VERSION"),
        ("INTERNAL-IP", "ZONE", "POD-CIDRS"),
        _node,
    ),
    "Deployment": (
        ("NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"),
        ("PORTS", "LABELS"),
        _workload,
    ),
}
