"""The shapes of Kubernetes objects on the wire, cut down to the fields that decide about packets.

Unknown fields are skipped. Every field may be absent or null, which mean the same to the API, so
whether something required is there is decided by the readers and not here. List members may be
null as well: :mod:`.repair` puts null where a broken member stood, which keeps all indices.
"""

from __future__ import annotations

import msgspec


class Wire(msgspec.Struct, rename="camel", gc=False):
    """Base: snake_case here is camelCase on the wire. ``gc=False``: trees, never cycles."""


class Meta(Wire):
    name: str | None = None
    namespace: str | None = None
    labels: dict[str, str | None] | None = None
    annotations: dict[str, str | None] | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class Head(Wire):
    """What is needed to know how to read a document; ``items`` stay text."""

    api_version: str | None = None
    kind: str | None = None
    items: list[msgspec.Raw] | None = None


class ServicePort(Wire):
    port: int | None = None
    name: str | None = None
    protocol: str | None = None
    node_port: int | None = None


class ClientIP(Wire):
    timeout_seconds: int | None = None


class AffinityConfig(Wire):
    client_ip: ClientIP | None = msgspec.field(default=None, name="clientIP")


class ServiceSpec(Wire):
    type: str | None = None
    ports: list[ServicePort] | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = msgspec.field(default=None, name="clusterIPs")
    external_ips: list[str | None] | None = msgspec.field(default=None, name="externalIPs")
    load_balancer_source_ranges: list[str | None] | None = None
    session_affinity: str | None = None
    session_affinity_config: AffinityConfig | None = None
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None
    health_check_node_port: int | None = None


class Ingress(Wire):
    ip: str | None = None
    ip_mode: str | None = None


class LoadBalancerStatus(Wire):
    ingress: list[Ingress | None] | None = None


class ServiceStatus(Wire):
    load_balancer: LoadBalancerStatus | None = None


class Service(Wire):
    metadata: Meta | None = None
    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


class EndpointPort(Wire):
    port: int | None = None
    name: str | None = None
    protocol: str | None = None


class Conditions(Wire):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(Wire):
    name: str | None = None


class Hints(Wire):
    for_zones: list[Hint] | None = None
    for_nodes: list[Hint] | None = None


class Endpoint(Wire):
    addresses: list[str] | None = None
    conditions: Conditions | None = None
    hints: Hints | None = None
    node_name: str | None = None
    zone: str | None = None


class EndpointSlice(Wire):
    metadata: Meta | None = None
    address_type: str | None = None
    ports: list[EndpointPort] | None = None
    endpoints: list[Endpoint | None] | None = None


class SubsetAddress(Wire):
    ip: str | None = None
    node_name: str | None = None


class Subset(Wire):
    addresses: list[SubsetAddress | None] | None = None
    not_ready_addresses: list[SubsetAddress | None] | None = None
    ports: list[EndpointPort] | None = None


class Endpoints(Wire):
    metadata: Meta | None = None
    subsets: list[Subset | None] | None = None


class Taint(Wire):
    key: str | None = None


class NodeSpec(Wire):
    pod_cidr: str | None = msgspec.field(default=None, name="podCIDR")
    pod_cidrs: list[str | None] | None = msgspec.field(default=None, name="podCIDRs")
    taints: list[Taint | None] | None = None


class NodeAddress(Wire):
    type: str | None = None
    address: str | None = None


class NodeStatus(Wire):
    addresses: list[NodeAddress | None] | None = None


class Node(Wire):
    metadata: Meta | None = None
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


WireObject = Service | EndpointSlice | Endpoints | Node
