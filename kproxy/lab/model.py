"""What is known about a lab, as frozen values; :mod:`kproxy.lab.state` keeps them in files."""

from __future__ import annotations

from typing import Any

import msgspec

from kproxy.core.objects import Family, Value, family_of
from kproxy.lab.faults import Fault
from kproxy.lab.network import Network
from kproxy.lab.probes import Probes
from kproxy.lab.topology import Port, Topology, Workload


class Pod(Value, frozen=True):
    """One pod of a lab: a namespace, and a responder on each of its ports.

    ``name`` is also the host's name in the network. ``addresses`` holds one address a family,
    IPv4 first. ``ready`` false takes it out of its services while it goes on answering;
    ``terminating`` says that it is about to leave. ``why`` it is not ready, or was started again,
    as far as a probe said so.
    """

    name: str
    node: str
    workload: str
    labels: tuple[tuple[str, str], ...]
    addresses: tuple[str, ...]
    ports: tuple[Port, ...]
    namespace: str = "default"
    ready: bool = True
    terminating: bool = False
    probes: Probes = Probes()
    faults: tuple[Fault, ...] = ()
    restarts: int = 0
    why: str = ""

    def address(self, family: Family) -> str:
        """Its address of one family, "" when it has none."""
        return next((a for a in self.addresses if family_of(a) is family), "")


class LabState(Value, frozen=True):
    """A lab that is up.

    ``workloads`` are the topology's with the replicas of now; ``pods`` what came of them;
    ``network`` what is built for them. ``manifests`` are the user's Kubernetes objects as applied,
    raw, nothing filled in. ``counters`` remember the last number given out (``node/<node>``: host
    number of the last pod address, ``workload/<ns>/<name>``: ordinal of its last pod), so that a
    replaced pod gets a new name and new addresses. ``variant`` is "" where the mode has none.
    ``switched`` are nodes with another mode than the rest, each with its mode and variant.
    """

    name: str
    topology: Topology
    mode: str
    variant: str
    network: Network
    workloads: tuple[Workload, ...] = ()
    pods: tuple[Pod, ...] = ()
    manifests: tuple[dict[str, Any], ...] = ()
    counters: dict[str, int] = msgspec.field(default_factory=dict)
    switched: dict[str, tuple[str, str]] = msgspec.field(default_factory=dict)

    def mode_of(self, node: str) -> tuple[str, str]:
        """Mode and variant of one node."""
        return self.switched.get(node, (self.mode, self.variant))

    def pod(self, name: str) -> Pod | None:
        return next((pod for pod in self.pods if pod.name == name), None)

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.topology.nodes)


class Allocations(Value, frozen=True):
    """What an API server allocates, kept over restarts of the lab.

    ``cluster_ips`` by ``ns/name`` (one address a family, in the order of the service's families),
    ``node_ports`` by ``ns/name/port/PROTOCOL`` with the service's port number, and by
    ``ns/name/healthCheck``; ``load_balancer_ips`` like ``cluster_ips``.
    """

    cluster_ips: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    node_ports: dict[str, int] = msgspec.field(default_factory=dict)
    load_balancer_ips: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
