"""The objects that a service proxy reads, as frozen values in kproxy's own terms.

They hold only what decides about packets. Every address is canonical text (RFC 5952 for IPv6, no
leading zeros in IPv4), every default of the Kubernetes API is filled in, every field that this
proxy ignores is gone; :mod:`kproxy.core.decode` sees to that.
"""

from __future__ import annotations

from enum import StrEnum

from kproxy.core.basics import Family, ObjectKey, PortName, Protocol, Value, family_of
from kproxy.core.health.values import Policy

__all__ = [
    "ClusterObject",
    "EndpointSlice",
    "Family",
    "Node",
    "ObjectKey",
    "PortName",
    "Protocol",
    "Refusal",
    "Service",
    "ServicePort",
    "ServiceType",
    "SliceEndpoint",
    "SlicePort",
    "TrafficPolicy",
    "Value",
    "family_of",
]


class ServiceType(StrEnum):
    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_NAME = "ExternalName"


class TrafficPolicy(StrEnum):
    """internalTrafficPolicy and externalTrafficPolicy."""

    CLUSTER = "Cluster"
    LOCAL = "Local"


class ServicePort(Value, frozen=True):
    """One entry of ``spec.ports``. ``node_port`` 0 means none."""

    name: str
    protocol: Protocol
    port: int
    node_port: int = 0


class Service(Value, frozen=True):
    """A Service that this proxy may have to serve.

    ``cluster_ips`` holds at most one address a family; ``external_ips``, ``load_balancer_ips``
    (only ingress addresses that nodes must capture: ipMode unset or VIP) and ``source_ranges``
    (canonical CIDRs) hold both families mixed, in the order of the object, without repeats.
    ``source_ranges_set`` is true when the object restricts sources at all: all of its ranges may be
    of the other family, or broken; ``source_ranges_broken`` is true when some range was refused.
    ``affinity_seconds`` is None without ClientIP affinity.
    ``health`` is what annotation ``kproxy/health-check`` asks for, None without it.
    ``created`` is creationTimestamp in seconds since the epoch (0.0 when absent); ``ignored`` says
    why this proxy must not serve the object (headless, ExternalName, another proxy's label), "" if
    it must.
    """

    namespace: str
    name: str
    type: ServiceType = ServiceType.CLUSTER_IP
    cluster_ips: tuple[str, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    source_ranges_set: bool = False
    affinity_seconds: int | None = None
    internal_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    external_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    health_check_node_port: int = 0
    topology_mode: str = ""
    created: float = 0.0
    ignored: str = ""
    annotations: tuple[tuple[str, str], ...] = ()
    source_ranges_broken: bool = False
    health: Policy | None = None

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(self.namespace, self.name)


class SliceEndpoint(Value, frozen=True):
    """One entry of a slice's ``endpoints``: its first address only (the API's rule).

    Conditions have their defaults filled in: nil ready and serving are true, nil terminating false.
    """

    address: str
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node: str = ""
    zone: str = ""
    zone_hints: tuple[str, ...] = ()
    node_hints: tuple[str, ...] = ()


class SlicePort(Value, frozen=True):
    """One entry of a slice's ``ports``; ports without a number never get here."""

    name: str
    protocol: Protocol
    port: int


class EndpointSlice(Value, frozen=True):
    """Endpoints of one Service (``service``, in the slice's own namespace) and one family.

    ``trigger``: when the change that the slice tells of happened in the cluster, in seconds since
    the epoch (annotation ``endpoints.kubernetes.io/last-change-trigger-time``); 0.0 unknown. It
    decides about no packet and never gets into a plan.
    """

    namespace: str
    name: str
    service: str
    family: Family
    ports: tuple[SlicePort, ...] = ()
    endpoints: tuple[SliceEndpoint, ...] = ()
    trigger: float = 0.0

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(self.namespace, self.name)

    @property
    def service_key(self) -> ObjectKey:
        return ObjectKey(self.namespace, self.service)


class Node(Value, frozen=True):
    """A Node object: what the proxy of that node needs of it.

    ``addresses`` are InternalIP then ExternalIP, in the object's order; the first of each family is
    the primary one. ``pod_cidrs`` is ``spec.podCIDRs``.
    """

    name: str
    labels: tuple[tuple[str, str], ...] = ()
    addresses: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()
    eligible: bool = True

    @property
    def key(self) -> ObjectKey:
        return ObjectKey("", self.name)

    def label(self, name: str) -> str:
        """Value of a label, "" when the node does not carry it."""
        return next((value for key, value in self.labels if key == name), "")


ClusterObject = Service | EndpointSlice | Node


class Refusal(Value, frozen=True):
    """Something in the input that is left out, and why. A value, not an exception.

    ``file`` and ``line`` (1-based, 0 unknown) say where; ``kind``, ``key`` (``ns/name``) and
    ``field`` (``spec.ports[1].port``) what; ``message`` what is wrong and what to do.
    ``whole`` is true when the object as such is refused, false when only the named member is.
    """

    message: str
    file: str = ""
    line: int = 0
    kind: str = ""
    key: str = ""
    field: str = ""
    whole: bool = True

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        what = " ".join(part for part in (self.kind, self.key, self.field) if part)
        return ": ".join(part for part in (place, what, self.message) if part)
