"""What an API server and its controllers would fill in, so that a Service written by hand works.

Pure: raw manifests, pods and earlier allocations go in; every object that the nodes' proxies read
comes out. :mod:`.services` fills Services (defaults, families, cluster IPs, node ports, load
balancers), :mod:`.slices` makes EndpointSlices from selectors, :mod:`.naming` turns pods' names in
endpoints written by hand into addresses, :mod:`.nodes` makes Node objects.
"""

from __future__ import annotations

from typing import Any

from kproxy.core.objects import Refusal, Value
from kproxy.lab import wiring
from kproxy.lab.controllers.cluster import Cluster, NodeFacts
from kproxy.lab.controllers.faults import Faults
from kproxy.lab.controllers.naming import fill_endpoints, fill_slice
from kproxy.lab.controllers.nodes import make_nodes
from kproxy.lab.controllers.services import fill_services, release
from kproxy.lab.controllers.slices import make_slices
from kproxy.lab.state import Allocations, LabState

__all__ = ["Completed", "cluster_of", "complete", "fill", "release"]

#: Kinds that a lab takes as they are filled in here; anything else is skipped with a notice.
KINDS = ("Service", "EndpointSlice", "Endpoints")


class Completed(Value, frozen=True):
    """``objects``: Nodes, Services, slices and Endpoints, ready for the proxies.

    ``refusals`` name what was left out and why: a refused object stops no other one.
    """

    objects: tuple[dict[str, Any], ...]
    allocations: Allocations
    refusals: tuple[Refusal, ...] = ()

    def of(self, kind: str) -> tuple[dict[str, Any], ...]:
        return tuple(obj for obj in self.objects if obj["kind"] == kind)


def cluster_of(state: LabState) -> Cluster:
    """What the controllers need to know of a lab."""
    topology = state.topology
    return Cluster(
        seed=state.name,
        families=topology.families,
        service_cidrs=tuple(wiring.SERVICE_CIDRS[family] for family in topology.families),
        lb_cidrs=tuple(wiring.LB_CIDRS[family] for family in topology.families),
        nodes=tuple(
            NodeFacts(
                node.name,
                node.labels,
                wiring.node_addresses(topology, node.name),
                wiring.pod_cidrs(topology, node.name),
            )
            for node in topology.nodes
        ),
        pods=state.pods,
    )


def fill(state: LabState, allocations: Allocations) -> Completed:
    """Everything that the nodes' proxies read, what is allocated now, and what was refused."""
    return fill_cluster(cluster_of(state), state.manifests, allocations)


def fill_cluster(
    cluster: Cluster, manifests: tuple[dict[str, Any], ...], allocations: Allocations
) -> Completed:
    """The same of a cluster and its user's objects."""
    by_kind: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for obj in manifests:
        if obj.get("kind") in by_kind:
            by_kind[obj["kind"]].append(obj)
    filled = fill_services(by_kind["Service"], cluster, allocations)
    refusals = list(filled.refusals)
    objects = [*make_nodes(cluster), *filled.services]
    for service in filled.services:
        objects += make_slices(service, cluster)
    for raw in by_kind["EndpointSlice"]:
        obj, faults = fill_slice(raw, cluster)
        refusals += faults.found
        objects += [] if faults else [obj]
    selecting = {
        (service["metadata"]["namespace"], service["metadata"]["name"])
        for service in filled.services
        if service["spec"].get("selector")
    }
    for raw in by_kind["Endpoints"]:
        obj, faults = fill_endpoints(raw, cluster)
        _check_unselected(obj, selecting, faults)
        refusals += faults.found
        objects += [] if faults else [obj]
    return Completed(tuple(objects), filled.allocations, tuple(refusals))


def _check_unselected(obj: dict[str, Any], selecting: set[tuple[str, str]], faults: Faults) -> None:
    """The endpoints of a service with a selector are the controllers' own."""
    meta = obj.get("metadata")
    if isinstance(meta, dict) and (meta.get("namespace"), meta.get("name")) in selecting:
        faults.add(
            "metadata.name",
            "Forbidden: this service has a selector, so its endpoints come from its pods; take"
            " the selector away to write them by hand",
        )


def complete(
    state: LabState, allocations: Allocations
) -> tuple[tuple[dict[str, Any], ...], Allocations]:
    """What :func:`kproxy.lab.lifecycle.publish` writes for the nodes, and what is allocated now."""
    done = fill(state, allocations)
    return done.objects, done.allocations
