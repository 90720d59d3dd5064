"""Small constructors of objects for tests: what a test does not name has an ordinary value.

Addresses follow a plan: cluster IPs from 172.30.0.0/16 and fd00:30::/108, pods from 10.180.0.0/16
and fd00:10::/64, external IPs from 198.51.100.0/24, load balancers from 203.0.113.0/24.
"""

from __future__ import annotations

from typing import Any

from kproxy.core.objects import (
    EndpointSlice,
    Family,
    Node,
    ObjectKey,
    Protocol,
    Service,
    ServicePort,
    SliceEndpoint,
    SlicePort,
    family_of,
)
from kproxy.core.snapshot import NodeSettings

NODE = "node1"


def make_port(
    name: str = "http",
    port: int = 80,
    *,
    protocol: Protocol = Protocol.TCP,
    node_port: int = 0,
) -> ServicePort:
    return ServicePort(name, protocol, port, node_port)


def make_service(
    name: str = "svc1",
    *,
    namespace: str = "ns1",
    ip: str | tuple[str, ...] = "172.30.0.41",
    ports: tuple[ServicePort, ...] | None = None,
    **fields: Any,
) -> Service:
    """A Service with one TCP port ``http`` 80; ``ip`` is its cluster IP, or one of each family."""
    return Service(
        namespace=namespace,
        name=name,
        cluster_ips=(ip,) if isinstance(ip, str) else ip,
        ports=ports if ports is not None else (make_port(),),
        **fields,
    )


def make_endpoint(address: str, node: str = "", **fields: Any) -> SliceEndpoint:
    """A ready entry of a slice."""
    return SliceEndpoint(address=address, node=node, **fields)


def make_slice(
    *endpoints: SliceEndpoint | str,
    service: str = "svc1",
    namespace: str = "ns1",
    name: str = "",
    ports: tuple[SlicePort, ...] = (SlicePort("http", Protocol.TCP, 8080),),
    family: Family | None = None,
) -> EndpointSlice:
    """A slice of ``service``; text stands for a ready endpoint on no node.

    The family is that of the first endpoint (IPv4 when there is none), the name ``SERVICE-1``.
    """
    entries = tuple(make_endpoint(it) if isinstance(it, str) else it for it in endpoints)
    if family is None:
        family = family_of(entries[0].address) if entries else Family.IPV4
    return EndpointSlice(namespace, name or f"{service}-1", service, family, ports, entries)


def make_node(name: str = NODE, **labels: str) -> Node:
    """A Node; ``zone="a"`` sets the zone label."""
    zone = labels.pop("zone", None)
    pairs = dict(labels)
    if zone is not None:
        pairs["topology.kubernetes.io/zone"] = zone
    return Node(name=name, labels=tuple(sorted(pairs.items())))


def make_settings(name: str = NODE, **fields: Any) -> NodeSettings:
    """Settings of the node ``node1``, which has no zone."""
    return NodeSettings(name=name, **fields)


def make_cluster(services: int, endpoints: int) -> list[Service | EndpointSlice]:
    """``services`` cluster-IP services of one port, each with ``endpoints`` ready endpoints.

    The endpoints are spread over ten nodes, ``node1`` among them. Sizes up to 60,000 services.
    """
    objects: list[Service | EndpointSlice] = []
    for number in range(services):
        name = f"svc{number}"
        objects.append(make_service(name, ip=f"172.30.{number >> 8}.{number & 255}"))
        entries = (
            make_endpoint(f"10.{pod >> 16}.{pod >> 8 & 255}.{pod & 255}", f"node{pod % 10}")
            for pod in range(number * endpoints, (number + 1) * endpoints)
        )
        objects.append(make_slice(*entries, service=name))
    return objects


def service_key(name: str = "svc1", namespace: str = "ns1") -> ObjectKey:
    return ObjectKey(namespace, name)
