"""Reads a Service: every rule of the API about what a node may make of it."""

from __future__ import annotations

from kproxy.core.address import canonical_cidr, canonical_ip, special_use
from kproxy.core.decode import wire
from kproxy.core.decode.health_check import ANNOTATION as HEALTH_CHECK
from kproxy.core.decode.health_check import read_health_check
from kproxy.core.decode.report import Report, is_label, port_fault, quoted, seconds_of
from kproxy.core.health.values import Policy
from kproxy.core.objects import (
    Family,
    ObjectKey,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    TrafficPolicy,
    family_of,
)
from kproxy.core.servers import SCHEDULER_ANNOTATION, SCHEDULERS

LABEL_OTHER_PROXY = "service.kubernetes.io/service-proxy-name"
LABEL_HEADLESS = "service.kubernetes.io/headless"
#: The deprecated annotation wins when both are there, as in the API's own reader.
_TOPOLOGY_ANNOTATIONS = (
    "service.kubernetes.io/topology-aware-hints",
    "service.kubernetes.io/topology-mode",
)
OWN_ANNOTATIONS = "kproxy/"

DEFAULT_AFFINITY_SECONDS = 10800
MAX_AFFINITY_SECONDS = 86400

_TYPES = {None: ServiceType.CLUSTER_IP, "": ServiceType.CLUSTER_IP} | {
    str(item): item for item in ServiceType
}
_POLICIES = {None: TrafficPolicy.CLUSTER, "": TrafficPolicy.CLUSTER} | {
    str(item): item for item in TrafficPolicy
}
_AFFINITIES = {None: False, "": False, "None": False, "ClientIP": True}
_RANGES = "spec.loadBalancerSourceRanges"
_NO_SPEC = wire.ServiceSpec()
_NO_META = wire.Meta()


def read_service(obj: wire.Service, key: ObjectKey, report: Report) -> Service | None:
    """The Service as a frozen value, or None when ``report`` condemned it."""
    spec = obj.spec or _NO_SPEC
    meta = obj.metadata or _NO_META
    kind = _TYPES.get(spec.type)
    if kind is None:
        report.condemn(
            "spec.type",
            f"unknown type {quoted(spec.type)}; use ClusterIP, NodePort, LoadBalancer or "
            "ExternalName",
        )
        return None
    # A Service and its namespace are DNS labels; a dot in one would make ns/name ambiguous.
    if not is_label(key.name):
        report.condemn(
            "metadata.name",
            f"{quoted(key.name)} is no Service name; use lower-case letters, digits and -",
        )
    ignored = _ignored(meta, spec, kind)
    balanced = kind is ServiceType.LOAD_BALANCER
    externals = _addresses(spec.external_ips, "spec.externalIPs", report)
    # The API looks at externalTrafficPolicy only where something external can arrive.
    enterable = kind in (ServiceType.NODE_PORT, ServiceType.LOAD_BALANCER) or bool(externals)
    external_policy = _policy(spec.external_traffic_policy, "spec.externalTrafficPolicy", report)
    if not enterable:
        external_policy = TrafficPolicy.CLUSTER
    ranges = _ranges(spec.load_balancer_source_ranges or (), report) if balanced else ()
    # Also when the whole field was of a wrong type and the repair took it out: what restricts
    # sources must never turn into no restriction.
    ranges_broken = balanced and report.has_fault(_RANGES)
    cluster_ips = () if ignored else _cluster_ips(spec, report)
    ports = _ports(spec, kind, report)
    service = Service(
        namespace=key.namespace,
        name=key.name,
        type=kind,
        cluster_ips=cluster_ips,
        ports=ports,
        external_ips=externals,
        load_balancer_ips=_ingress(obj.status, report) if balanced else (),
        source_ranges=ranges,
        source_ranges_set=bool(ranges) or ranges_broken,
        affinity_seconds=_affinity(spec, report),
        internal_policy=_policy(spec.internal_traffic_policy, "spec.internalTrafficPolicy", report),
        external_policy=external_policy,
        health_check_node_port=_health_port(spec, balanced, external_policy, report),
        topology_mode=_topology_mode(meta),
        created=_created(meta, report),
        ignored=ignored,
        annotations=_own_annotations(meta, report),
        source_ranges_broken=ranges_broken,
        health=_health(meta, () if ignored else ports, report),
    )
    return None if report.whole else service


def _ignored(meta: wire.Meta, spec: wire.ServiceSpec, kind: ServiceType) -> str:
    labels = meta.labels or {}
    if LABEL_OTHER_PROXY in labels:
        return f"label {LABEL_OTHER_PROXY} gives it to another proxy"
    if LABEL_HEADLESS in labels:
        return f"label {LABEL_HEADLESS}"
    if kind is ServiceType.EXTERNAL_NAME:
        return "type ExternalName is a DNS name only"
    # Either field may say None: clusterIPs[0] and clusterIP are one value to the API.
    if "None" in (spec.cluster_ip, *(spec.cluster_ips or ())):
        return "headless: clusterIP is None"
    if not (spec.cluster_ip or spec.cluster_ips):
        return "headless: it has no clusterIP yet"
    return ""


def _cluster_ips(spec: wire.ServiceSpec, report: Report) -> tuple[str, ...]:
    if spec.cluster_ips:
        named = [(f"spec.clusterIPs[{at}]", text) for at, text in enumerate(spec.cluster_ips)]
    else:
        named = [("spec.clusterIP", spec.cluster_ip or "")]
    found: dict[Family, str] = {}
    for field, text in named:
        address = canonical_ip(text)
        if address is None:
            report.condemn(
                field, f"{quoted(text)} is no IP address; write one such as 10.96.0.10, or None"
            )
        elif why := special_use(address):
            report.condemn(field, f"{address} is {why}; use one of the service range")
        elif family_of(address) in found:
            report.condemn(
                field, f"{address} is a second address of its family; keep one of each family"
            )
        else:
            found[family_of(address)] = address
    return tuple(found.values())


def _ports(spec: wire.ServiceSpec, kind: ServiceType, report: Report) -> tuple[ServicePort, ...]:
    ports: list[ServicePort] = []
    names: set[tuple[str, Protocol]] = set()
    numbers: set[tuple[int, Protocol]] = set()
    for at, port in enumerate(spec.ports or ()):
        place = f"spec.ports[{at}]"
        faults = len(report.refusals)
        protocol = report.protocol(port.protocol, f"{place}.protocol")
        name = report.port_name(port.name, f"{place}.name")
        if port.port is None:
            report.condemn(f"{place}.port", "is missing; give the port number")
            continue
        if fault := port_fault(port.port):
            report.condemn(f"{place}.port", fault)
        if len(report.refusals) > faults:
            continue
        if (name, protocol) in names:
            report.condemn(
                f"{place}.name",
                f"{quoted(name)} is there twice for {protocol}; give every port its own name",
            )
        if (port.port, protocol) in numbers:
            report.condemn(
                f"{place}.port", f"{port.port}/{protocol} is there twice; remove one of them"
            )
        names.add((name, protocol))
        numbers.add((port.port, protocol))
        node_port = _node_port(port.node_port or 0, kind, f"{place}.nodePort", report)
        ports.append(ServicePort(name, protocol, port.port, node_port))
    return tuple(ports)


def _node_port(number: int, kind: ServiceType, field: str, report: Report) -> int:
    if not number:
        return 0
    if fault := port_fault(number):
        report.condemn(field, fault)
    if kind is ServiceType.CLUSTER_IP:
        # The API refuses it; a node port left over from another type must open nothing.
        report.member(field, "type ClusterIP has no node ports; remove it or use type NodePort")
        return 0
    return number


def _addresses(texts: list[str | None] | None, field: str, report: Report) -> tuple[str, ...]:
    if not texts:
        return ()
    found = [report.address(text, f"{field}[{at}]") for at, text in enumerate(texts)]
    return tuple(dict.fromkeys(address for address in found if address))


def _ingress(status: wire.ServiceStatus | None, report: Report) -> tuple[str, ...]:
    balancer = status.load_balancer if status else None
    found: dict[str, None] = {}
    for at, entry in enumerate((balancer.ingress if balancer else None) or ()):
        place = f"status.loadBalancer.ingress[{at}]"
        if entry is None:
            report.member(place, "is null; remove it")
        # A hostname is DNS only, and ipMode Proxy means that packets arrive without the VIP.
        elif entry.ip and entry.ip_mode in (None, "", "VIP"):
            address = report.address(entry.ip, f"{place}.ip")
            if address:
                found[address] = None
        elif entry.ip_mode not in (None, "", "VIP", "Proxy"):
            report.member(
                f"{place}.ipMode", f"unknown ipMode {quoted(entry.ip_mode)}; use VIP or Proxy"
            )
    return tuple(found)


def _ranges(texts: list[str | None] | tuple[()], report: Report) -> tuple[str, ...]:
    """Canonical ranges. Only the spec counts: the older annotation speaks to cloud controllers,
    kube-proxy never read it."""
    found: dict[str, None] = {}
    for at, text in enumerate(texts):
        network = canonical_cidr(text.strip()) if text else None
        if network is None:
            report.member(
                f"{_RANGES}[{at}]",
                f"{quoted(text)} is no address range; write one such as 192.0.2.0/24",
            )
        else:
            found[network] = None
    return tuple(found)


def _affinity(spec: wire.ServiceSpec, report: Report) -> int | None:
    sticky = _AFFINITIES.get(spec.session_affinity)
    if sticky is None:
        report.member(
            "spec.sessionAffinity",
            f"unknown affinity {quoted(spec.session_affinity)}, none is used; "
            "write None or ClientIP",
        )
    if not sticky:
        return None
    config = spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    if seconds is None:
        return DEFAULT_AFFINITY_SECONDS
    if not 1 <= seconds <= MAX_AFFINITY_SECONDS:
        report.member(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            f"{quoted(seconds)} is out of range, {DEFAULT_AFFINITY_SECONDS} is used; "
            f"write 1 to {MAX_AFFINITY_SECONDS}",
        )
        return DEFAULT_AFFINITY_SECONDS
    return seconds


def _policy(text: str | None, field: str, report: Report) -> TrafficPolicy:
    policy = _POLICIES.get(text)
    if policy is None:
        report.member(
            field, f"unknown policy {quoted(text)}, Cluster is used; write Cluster or Local"
        )
        return TrafficPolicy.CLUSTER
    return policy


def _health_port(
    spec: wire.ServiceSpec, balanced: bool, policy: TrafficPolicy, report: Report
) -> int:
    number = spec.health_check_node_port or 0
    if not (balanced and policy is TrafficPolicy.LOCAL and number):
        return 0
    if fault := port_fault(number):
        report.member("spec.healthCheckNodePort", fault)
        return 0
    return number


def _topology_mode(meta: wire.Meta) -> str:
    if not meta.annotations:
        return ""
    found = (meta.annotations.get(name) for name in _TOPOLOGY_ANNOTATIONS)
    return next((value for value in found if value is not None), "")


#: Annotation -> the values that it may have, for those of ours that have few.
_VALUES = {SCHEDULER_ANNOTATION: SCHEDULERS}


def _health(meta: wire.Meta, ports: tuple[ServicePort, ...], report: Report) -> Policy | None:
    if not meta.annotations or HEALTH_CHECK not in meta.annotations:
        return None
    protocols = frozenset(port.protocol for port in ports)
    return read_health_check(meta.annotations[HEALTH_CHECK], protocols, report)


def _own_annotations(meta: wire.Meta, report: Report) -> tuple[tuple[str, str], ...]:
    """Those of ours with a value that they may have; the others are reported and left out.

    The one of health is read into a policy and need not go to every plan as text.
    """
    found = []
    for name, value in sorted((meta.annotations or {}).items()):
        if not name.startswith(OWN_ANNOTATIONS) or name == HEALTH_CHECK:
            continue
        values = _VALUES.get(name)
        if values is None or not value or value in values:
            found.append((name, value or ""))
        else:
            report.member(
                f"metadata.annotations.{name}",
                f"{quoted(value)} is unknown; use one of {', '.join(values)}",
            )
    return tuple(found)


def _created(meta: wire.Meta, report: Report) -> float:
    text = meta.creation_timestamp
    if not text:
        return 0.0
    seconds = seconds_of(text)
    if seconds is None:
        report.member(
            "metadata.creationTimestamp",
            f"{quoted(text)} is no time; write it as 2026-01-31T12:00:00Z",
        )
    return seconds or 0.0
