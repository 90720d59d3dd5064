"""Which endpoints of a service port this node may use, decided by three tables.

The rules are those of ``CategorizeEndpoints`` in Kubernetes' ``pkg/proxy/topology.go`` (release
1.34 and later: hints count without the old annotation on the Service), with one difference in form:
a set is None by policy alone, also when the service port has no endpoint at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum

import msgspec

from kproxy.core.objects import TrafficPolicy
from kproxy.core.snapshot import Endpoint, EndpointSets

_CLUSTER, _LOCAL = TrafficPolicy.CLUSTER, TrafficPolicy.LOCAL


class Standing(IntEnum):
    """What an endpoint is good for; the greater the better."""

    UNUSABLE = 0
    DRAINING = 1  # only where no ready one is: it still answers, but is going away
    READY = 2


#: (ready, serving, terminating) -> standing. ``ready`` alone is enough: the slice controller says
#: ready for terminating pods too where the Service publishes addresses that are not ready.
STANDING: dict[tuple[bool, bool, bool], Standing] = {
    (True, True, True): Standing.READY,
    (True, True, False): Standing.READY,
    (True, False, True): Standing.READY,
    (True, False, False): Standing.READY,
    (False, True, True): Standing.DRAINING,
    (False, True, False): Standing.UNUSABLE,
    (False, False, True): Standing.UNUSABLE,
    (False, False, False): Standing.UNUSABLE,
}

#: (internal policy, external policy, has an external entry) -> (uses Cluster set, uses Local set).
#: With an external entry the Cluster set is used even when both policies are Local, because pods
#: and the node itself are served by it (see :data:`kproxy.core.policy.EXTERNAL`).
USES: dict[tuple[TrafficPolicy, TrafficPolicy, bool], tuple[bool, bool]] = {
    (_CLUSTER, _CLUSTER, False): (True, False),
    (_CLUSTER, _CLUSTER, True): (True, False),
    (_CLUSTER, _LOCAL, False): (True, False),
    (_CLUSTER, _LOCAL, True): (True, True),
    (_LOCAL, _CLUSTER, False): (False, True),
    (_LOCAL, _CLUSTER, True): (True, True),
    (_LOCAL, _LOCAL, False): (False, True),
    (_LOCAL, _LOCAL, True): (True, True),
}

Hints = Callable[[Endpoint], Sequence[str]]


def _node_hints(endpoint: Endpoint) -> Sequence[str]:
    return endpoint.node_hints


def _zone_hints(endpoint: Endpoint) -> Sequence[str]:
    return endpoint.zone_hints


def narrow(ready: tuple[Endpoint, ...], node: str, zone: str) -> tuple[Endpoint, ...]:
    """Those of the ready endpoints that are hinted for this node, else for its zone, else all.

    A kind of hint counts only when *every* ready endpoint has one and one of them names us; half
    a set of hints is a set in the making, and would overload the few that have theirs already.
    """
    kinds: tuple[tuple[Hints, str], ...] = ((_node_hints, node), (_zone_hints, zone))
    for hints, name in kinds:
        if not name or not all(hints(endpoint) for endpoint in ready):
            continue
        chosen = tuple(endpoint for endpoint in ready if name in hints(endpoint))
        if chosen:
            return chosen
    return ready


def categorize(
    endpoints: tuple[Endpoint, ...],
    *,
    internal: TrafficPolicy,
    external: TrafficPolicy,
    entry: bool,
    node: str,
    zone: str,
) -> EndpointSets:
    """Choose from ``endpoints`` (sorted, each place once), keeping their order.

    ``entry``: the service port can be reached other than by its cluster IP. ``zone`` "" means that
    this node has no zone label.
    """
    uses_cluster, uses_local = USES[internal, external, entry]
    ready, draining = _split(endpoints)
    cluster = local = None
    if uses_cluster:
        cluster = narrow(ready, node, zone) or draining
    if uses_local:
        # Independent of the Cluster set: a draining endpoint here keeps this node's clients
        # served although ready ones exist elsewhere. Topology never narrows it.
        local = _on_node(ready) or _on_node(draining)
    return EndpointSets(cluster, local, _union(cluster, local), bool(ready or draining))


def spare(sets: EndpointSets, endpoints: tuple[Endpoint, ...]) -> EndpointSets:
    """``sets``, chosen from ``endpoints``, with those named that serve on without being chosen."""
    if len(sets.all) == len(endpoints):
        return sets
    chosen = {(endpoint.ip, endpoint.port) for endpoint in sets.all}
    spared = tuple(
        endpoint
        for endpoint in endpoints
        if (endpoint.ready or endpoint.serving) and (endpoint.ip, endpoint.port) not in chosen
    )
    return msgspec.structs.replace(sets, spared=spared) if spared else sets


def local_ready(endpoints: tuple[Endpoint, ...]) -> tuple[str, ...]:
    """The addresses of the ready ones on this node, each once and sorted: a balancer is to send
    nobody to a node whose endpoints are about to go, even while they serve."""
    return tuple(sorted({each.ip for each in endpoints if each.local and each.ready}))


def _split(endpoints: tuple[Endpoint, ...]) -> tuple[tuple[Endpoint, ...], tuple[Endpoint, ...]]:
    """The ready and the draining ones. The very tuple that came in when all of them are ready."""
    ready = tuple([endpoint for endpoint in endpoints if endpoint.ready])
    if len(ready) == len(endpoints):
        return endpoints, ()
    return ready, tuple(
        endpoint
        for endpoint in endpoints
        if STANDING[endpoint.ready, endpoint.serving, endpoint.terminating] is Standing.DRAINING
    )


def _on_node(endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    return tuple([endpoint for endpoint in endpoints if endpoint.local])


def _union(
    cluster: tuple[Endpoint, ...] | None, local: tuple[Endpoint, ...] | None
) -> tuple[Endpoint, ...]:
    """Both sets, sorted, each endpoint once; one of them itself where it covers the other."""
    if not local:
        return cluster or ()
    if not cluster:
        return local
    by_place = {(endpoint.ip, endpoint.port): endpoint for endpoint in cluster + local}
    if len(by_place) == len(cluster):
        return cluster
    if len(by_place) == len(local):
        return local
    return tuple(by_place[place] for place in sorted(by_place))
