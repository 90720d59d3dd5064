"""Who reaches which endpoints, and whose source address is rewritten: one table for all modes.

Source: the rules of ``pkg/proxy/iptables`` (KUBE-SVC, KUBE-SVL and KUBE-EXT chains). Hairpin
traffic, an endpoint that reaches itself through its own service, is always masqueraded as well,
whatever the table says.
"""

from __future__ import annotations

from enum import StrEnum

from kproxy.core.objects import TrafficPolicy, Value
from kproxy.core.snapshot import EndpointSets, NodeSettings


class Entry(StrEnum):
    """The kind of address that a client used: its cluster IP, or any other way in."""

    INTERNAL = "internal"
    EXTERNAL = "external"


class Client(StrEnum):
    """Where a packet comes from, as this node can tell.

    POD: one of this node's pods, by the detector; without a detector nobody is. NODE: the node
    itself (its source address is local). OTHER: everyone else.
    """

    POD = "pod"
    NODE = "node"
    OTHER = "other"


class Use(StrEnum):
    """Which endpoint set serves the packet."""

    CLUSTER = "cluster"
    LOCAL = "local"


class Verdict(StrEnum):
    """What becomes of a new connection.

    REFUSE tells the client at once (nobody serves this anywhere); DROP is silent, because it may
    well be served on another node, to which a load balancer is about to send the client.
    """

    FORWARD = "forward"
    REFUSE = "refuse"
    DROP = "drop"


class Treatment(Value, frozen=True):
    """The endpoint set that serves a packet, and whether it leaves with the node's address."""

    use: Use
    masquerade: bool


_KEEP, _MASQUERADE = False, True

#: (external policy, client) -> treatment of a packet to an external address or node port.
EXTERNAL: dict[tuple[TrafficPolicy, Client], Treatment] = {
    (TrafficPolicy.CLUSTER, Client.POD): Treatment(Use.CLUSTER, _MASQUERADE),
    (TrafficPolicy.CLUSTER, Client.NODE): Treatment(Use.CLUSTER, _MASQUERADE),
    (TrafficPolicy.CLUSTER, Client.OTHER): Treatment(Use.CLUSTER, _MASQUERADE),
    # Local policy is about clients outside: for pods and the node itself the service is near
    # by any path ("short-circuit"), so they get the whole cluster's endpoints.
    (TrafficPolicy.LOCAL, Client.POD): Treatment(Use.CLUSTER, _KEEP),
    (TrafficPolicy.LOCAL, Client.NODE): Treatment(Use.CLUSTER, _MASQUERADE),
    (TrafficPolicy.LOCAL, Client.OTHER): Treatment(Use.LOCAL, _KEEP),
}

#: internal policy -> endpoint set of a packet to the cluster IP.
INTERNAL: dict[TrafficPolicy, Use] = {
    TrafficPolicy.CLUSTER: Use.CLUSTER,
    TrafficPolicy.LOCAL: Use.LOCAL,
}


def masquerades_internal(settings: NodeSettings, client: Client) -> bool:
    """Whether a packet to a cluster IP leaves with the node's address.

    A client that is not one of this node's pods may not be able to reach a pod's reply directly;
    without a detector nobody can be told apart and only ``masqueradeAll`` masquerades.
    """
    if settings.masquerade_all:
        return True
    return settings.detector is not None and client is not Client.POD


def treatment(
    settings: NodeSettings,
    entry: Entry,
    client: Client,
    *,
    internal: TrafficPolicy,
    external: TrafficPolicy,
) -> Treatment:
    """The one decision: which set, and whether masqueraded."""
    if entry is Entry.EXTERNAL:
        return EXTERNAL[external, client]
    return Treatment(INTERNAL[internal], masquerades_internal(settings, client))


#: (has any usable endpoint anywhere, has one in the set that serves the packet) -> verdict.
VERDICT: dict[tuple[bool, bool], Verdict] = {
    (True, True): Verdict.FORWARD,
    (True, False): Verdict.DROP,
    (False, False): Verdict.REFUSE,
}


def verdict(sets: EndpointSets, use: Use) -> Verdict:
    """What becomes of a new connection that ``use`` serves."""
    chosen = sets.cluster if use is Use.CLUSTER else sets.local
    return VERDICT[sets.has_any, bool(chosen)]
