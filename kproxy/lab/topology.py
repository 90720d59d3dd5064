"""What a lab is made of, as frozen values, and how a topology file is read into them.

Pure: YAML text goes in, a :class:`Topology` comes out. The topologies that come with kproxy are
files of the same form; :mod:`kproxy.lab.catalogue` finds them. Addresses are not written in a
topology: :mod:`kproxy.lab.wiring` gives them out by one plan, so that all labs read alike.

::

    name: standard
    about: one line
    families: [IPv4, IPv6]            # absent: both
    nodes:
    - {name: node1, labels: {topology.kubernetes.io/zone: a}, link: {rate: 100mbit, delay: 5ms}}
    clients:
    - {name: client, link: {mtu: 1400}}
    workloads:
    - {name: web, replicas: 2, labels: {app: web}, nodes: [node1], namespace: default,
       ports: [{name: http, port: 8080, protocol: TCP}], link: {loss: 1%},
       readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1},
       livenessProbe: {tcpSocket: {port: 8080}}}
    manifests: [../manifests/demo.yaml]    # files with services, beside the topology's file
    objects: [ …Kubernetes manifests written here… ]

A link takes ``mtu`` (bytes), ``rate`` (``100mbit``, or bit/s as a number), ``delay`` (``5ms``, or
seconds) and ``loss`` (``1%``, or a share of 1). Any other key is an error that names file and key.
"""

from __future__ import annotations

import re
from typing import Any

from kproxy.core.objects import Family, Protocol, Value
from kproxy.lab.network import Shape
from kproxy.lab.probes import Probes

#: RFC 1123 label, as Kubernetes takes for names; 40 characters leave room for a pod's ordinal and
#: for the namespace's own prefix.
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")

#: The underlay's own namespace is named so; nobody else may be.
UNDERLAY = "underlay"

#: Host numbers that the address plan of :mod:`kproxy.lab.wiring` has room for.
MAX_NODES, MAX_CLIENTS, MAX_PODS_PER_NODE = 180, 50, 250


class LinkSpec(Value, frozen=True):
    """A link's nature: ``mtu`` in bytes, and what it does to packets."""

    mtu: int = 1500
    shape: Shape = Shape()


class Port(Value, frozen=True):
    """A port on which every pod of a workload answers. ``name`` may be "" when there is one."""

    port: int
    name: str = ""
    protocol: Protocol = Protocol.TCP


class Workload(Value, frozen=True):
    """``replicas`` equal pods, spread over ``nodes`` (empty: all nodes) in turn.

    ``labels`` are the pods' labels; absent in YAML they are ``app: <name>``.
    """

    name: str
    replicas: int = 1
    labels: tuple[tuple[str, str], ...] = ()
    ports: tuple[Port, ...] = (Port(8080, "http"),)
    nodes: tuple[str, ...] = ()
    link: LinkSpec = LinkSpec()
    namespace: str = "default"
    probes: Probes = Probes()


class NodeSpec(Value, frozen=True):
    """A node: forwards, runs its own kproxy. ``link`` joins it to the underlay."""

    name: str
    labels: tuple[tuple[str, str], ...] = ()
    link: LinkSpec = LinkSpec()


class ClientSpec(Value, frozen=True):
    """A machine outside the cluster, on the same underlay as the nodes."""

    name: str
    link: LinkSpec = LinkSpec()


class Topology(Value, frozen=True):
    """All of it. ``objects`` are raw Kubernetes manifests, ``manifests`` paths of files of them."""

    name: str
    about: str = ""
    families: tuple[Family, ...] = (Family.IPV4, Family.IPV6)
    nodes: tuple[NodeSpec, ...] = ()
    clients: tuple[ClientSpec, ...] = ()
    workloads: tuple[Workload, ...] = ()
    objects: tuple[dict[str, Any], ...] = ()
    manifests: tuple[str, ...] = ()

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of nodes, then clients."""
        return tuple(node.name for node in self.nodes) + tuple(c.name for c in self.clients)
