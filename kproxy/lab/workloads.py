"""Workloads of a lab as Kubernetes objects: a minimal ``apps/v1 Deployment`` becomes one.

Pure. Read are: name, namespace, replicas, the template's labels, ports of its containers and
``nodeSelector: {kubernetes.io/hostname: NODE}``. Images and commands are not: every pod runs the
echo responder. A template that names no port answers on 8080 (``http``). The probes are those of
the first container that has any.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from kproxy.core.objects import Protocol
from kproxy.errors import LabError
from kproxy.lab.controllers.checks import check_meta, check_text_map
from kproxy.lab.controllers.cluster import HOSTNAME_LABEL
from kproxy.lab.controllers.faults import Faults
from kproxy.lab.probes import Probe, ProbeFault, Probes, Written, made
from kproxy.lab.state import LabState, Pod
from kproxy.lab.topology import NAME, Port, Workload

KIND = "Deployment"


def find(state: LabState, name: str) -> Workload:
    """A workload by ``name`` or ``namespace/name``; LabError lists those there are."""
    namespace, _, bare = name.rpartition("/")
    found = [
        load for load in state.workloads if load.name == bare and namespace in ("", load.namespace)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"{load.namespace}/{load.name}" for load in found)
        raise LabError(f"workload {name} is ambiguous", hint=f"say which: {names}")
    names = ", ".join(load.name for load in state.workloads) or "none"
    raise LabError(f"lab {state.name} has no workload {name}", hint=f"it has: {names}")


def key_of(load: Workload) -> tuple[str, str]:
    return load.namespace, load.name


def replaced(state: LabState, load: Workload) -> LabState:
    """``state`` with a workload changed, or added at the end. Pods are left as they are."""
    known = any(key_of(other) == key_of(load) for other in state.workloads)
    if not known:
        return msgspec.structs.replace(state, workloads=(*state.workloads, load))
    return msgspec.structs.replace(
        state,
        workloads=tuple(
            load if key_of(other) == key_of(load) else other for other in state.workloads
        ),
    )


def without(state: LabState, key: tuple[str, str]) -> LabState:
    """``state`` without a workload. Pods are left as they are."""
    return msgspec.structs.replace(
        state, workloads=tuple(load for load in state.workloads if key_of(load) != key)
    )


def outdated(load: Workload, pod: Pod) -> bool:
    """Whether a pod of this workload was made from another template than it has now."""
    placed = not load.nodes or pod.node in load.nodes
    same = (pod.labels, pod.ports, pod.probes) == (load.labels, load.ports, load.probes)
    return not (placed and same)


def from_deployment(obj: Mapping[str, Any], nodes: Iterable[str]) -> tuple[Workload | None, Faults]:
    """The workload that a Deployment asks for; None when it has faults."""
    faults = Faults(obj)
    check_meta(obj, faults)
    spec = obj.get("spec")
    template = spec.get("template") if isinstance(spec, dict) else None
    if not isinstance(spec, dict) or not isinstance(template, dict):
        faults.required("spec.template")
    if faults:
        return None, faults
    assert isinstance(spec, dict)
    assert isinstance(template, dict)
    name = obj["metadata"]["name"]
    if not NAME.fullmatch(name):
        faults.invalid(
            "metadata.name", name, "must be lower case letters, digits, inner dashes, at most 40"
        )
    replicas = spec.get("replicas", 1)
    if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
        faults.invalid("spec.replicas", replicas, "must be a number of pods, 0 or more")
    labels = _labels(spec, template, faults)
    pod_spec = template.get("spec")
    pod_spec = pod_spec if isinstance(pod_spec, dict) else {}
    containers = pod_spec.get("containers") or ()
    ports = _ports(containers, faults)
    probes = _probes(containers, ports or Workload(name).ports, faults)
    chosen = _nodes(pod_spec.get("nodeSelector") or {}, list(nodes), faults)
    if faults:
        return None, faults
    load = Workload(
        name=name,
        replicas=replicas,
        labels=tuple(labels.items()),
        ports=ports or Workload(name).ports,
        nodes=chosen,
        namespace=obj["metadata"].get("namespace") or "default",
        probes=probes,
    )
    return load, faults


def _labels(spec: Mapping[str, Any], template: Mapping[str, Any], faults: Faults) -> dict[str, str]:
    meta = template.get("metadata")
    labels = (meta.get("labels") or {}) if isinstance(meta, dict) else {}
    where = "spec.template.metadata.labels"
    check_text_map(labels, where, faults)
    selector = spec.get("selector")
    wanted = (selector.get("matchLabels") or {}) if isinstance(selector, dict) else {}
    if isinstance(labels, dict) and isinstance(wanted, dict):
        if not wanted.items() <= labels.items():
            faults.invalid(where, labels, "must hold all of spec.selector.matchLabels")
        return labels
    return {}


def _ports(containers: Any, faults: Faults) -> tuple[Port, ...]:
    ports: list[Port] = []
    for number, container in enumerate(containers if isinstance(containers, list) else ()):
        entries = container.get("ports") if isinstance(container, dict) else None
        for index, entry in enumerate(entries or ()):
            where = f"spec.template.spec.containers[{number}].ports[{index}]"
            port = _port(entry, where, faults)
            if port is None:
                continue
            if any((p.port, p.protocol) == (port.port, port.protocol) for p in ports):
                faults.duplicate(where, {"containerPort": port.port, "protocol": port.protocol})
            ports.append(port)
    return tuple(ports)


def _port(entry: Any, where: str, faults: Faults) -> Port | None:
    number = entry.get("containerPort") if isinstance(entry, dict) else None
    if not isinstance(number, int) or not 1 <= number <= 65535:
        faults.invalid(f"{where}.containerPort", number, "must be between 1 and 65535")
        return None
    protocol = entry.get("protocol", "TCP")
    if protocol not in ("TCP", "UDP"):
        faults.unsupported(f"{where}.protocol", protocol, ("TCP", "UDP"))
        return None
    return Port(number, str(entry.get("name", "")), Protocol(protocol))


def _probes(containers: Any, ports: tuple[Port, ...], faults: Faults) -> Probes:
    found: dict[str, Probe | None] = {"readinessProbe": None, "livenessProbe": None}
    for number, container in enumerate(containers if isinstance(containers, list) else ()):
        for kind, earlier in found.items():
            raw = container.get(kind) if isinstance(container, dict) else None
            if raw is None or earlier is not None:
                continue
            where = f"spec.template.spec.containers[{number}].{kind}"
            found[kind] = _probe(raw, ports, where, faults)
    return Probes(found["readinessProbe"], found["livenessProbe"])


def _probe(raw: Any, ports: tuple[Port, ...], where: str, faults: Faults) -> Probe | None:
    named = [(port.name, port.port, port.protocol) for port in ports]
    try:
        written = msgspec.convert(raw, Written)
        return made(written, named, liveness=where.endswith("livenessProbe"))
    except msgspec.ValidationError as wrong:
        what, _, key = str(wrong).partition(" - at `$")
        faults.add(f"{where}{key.rstrip('`')}", f"Invalid value: {what}")
    except ProbeFault as wrong:
        faults.add(f"{where}.{wrong.field}".rstrip("."), f"Invalid value: {wrong.what}")
    return None


def _nodes(selector: Any, known: list[str], faults: Faults) -> tuple[str, ...]:
    where = "spec.template.spec.nodeSelector"
    if not isinstance(selector, dict) or set(selector) - {HOSTNAME_LABEL}:
        faults.invalid(where, selector, f"a lab places by {HOSTNAME_LABEL} only")
        return ()
    node = selector.get(HOSTNAME_LABEL)
    if node is None:
        return ()
    if node not in known:
        faults.invalid(f"{where}.{HOSTNAME_LABEL}", node, f"nodes are: {', '.join(known)}")
    return (str(node),)
