"""What userspace mode makes of one service port: what the relay serves, which ports it needs. Pure.

The relay knows a service by its endpoints and two lists of them. Behind each list may stand a
front: sockets on a port of their own, to which the rules bring those clients that the policy lets
use that list. Which fronts there are is read off the tables of :mod:`kproxy.core.policy`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from kproxy.core.objects import PortName, Protocol, Value
from kproxy.core.policy import EXTERNAL, INTERNAL, Client, Use
from kproxy.core.snapshot import Endpoint, NodeSettings, PortPlan

#: ``kproxy/proxy-protocol: v2`` on a Service: endpoints are told the client's address first.
PROXY_PROTOCOL_ANNOTATION = "kproxy/proxy-protocol"
PROXY_PROTOCOL = "v2"

#: What the relay can carry. A port of SCTP is refused like one without endpoints, and reported.
OFFERED = frozenset({Protocol.TCP, Protocol.UDP})


class Front(NamedTuple):
    """One way in to the relay: the sockets of a service port behind which one list stands."""

    name: PortName
    use: Use


class NodePort(Value, frozen=True, gc=False):
    """A port of the node that has to be held, so that no other program takes it.

    ``addresses`` are those on which it answers, () for all of the family.
    """

    port: int
    udp: bool
    addresses: tuple[str, ...] = ()


class Service(Value, frozen=True, gc=False):
    """One service port as the relay is to serve it.

    ``endpoints`` are (address, port); ``cluster`` and ``local`` are indexes into them, and those in
    neither keep the UDP sessions that they have. ``weights`` are the endpoints', () where all are
    the same. ``uses`` are the fronts that are wanted, () when
    nobody can be served. ``affinity_seconds`` 0: none. ``node_port`` is held whether or not there
    are endpoints.
    """

    name: PortName
    endpoints: tuple[tuple[str, int], ...] = ()
    cluster: tuple[int, ...] = ()
    local: tuple[int, ...] = ()
    uses: tuple[Use, ...] = ()
    affinity_seconds: int = 0
    proxy_protocol: bool = False
    node_port: NodePort | None = None
    weights: tuple[int, ...] = ()

    @property
    def udp(self) -> bool:
        return self.name.protocol is Protocol.UDP

    @property
    def fronts(self) -> tuple[Front, ...]:
        return tuple([Front(self.name, use) for use in self.uses])


def service_of(plan: PortPlan, settings: NodeSettings) -> Service | None:
    """What the relay is to do for a service port; None when there is nothing that it could do."""
    if plan.protocol not in OFFERED:
        return None
    sets = plan.endpoints
    uses = uses_of(plan)
    node_port = _node_port(plan, settings) if plan.node_port else None
    if not uses and node_port is None:
        return None
    everyone = (*sets.all, *sets.spared) if uses else ()
    places = {(end.ip, end.port): end.weight for end in everyone}
    index = {place: number for number, place in enumerate(places)}
    return Service(
        name=plan.name,
        endpoints=tuple(index),
        cluster=_indexes(index, sets.cluster or ()) if uses else (),
        local=_indexes(index, sets.local or ()) if uses else (),
        uses=uses,
        affinity_seconds=plan.affinity_seconds or 0,
        proxy_protocol=dict(plan.annotations).get(PROXY_PROTOCOL_ANNOTATION) == PROXY_PROTOCOL,
        node_port=node_port,
        weights=tuple(places.values()) if len(set(places.values())) > 1 else (),
    )


def uses_of(plan: PortPlan) -> tuple[Use, ...]:
    """The lists by which somebody is served: asked for by a table, and not empty."""
    sets = plan.endpoints
    if not sets.has_any or plan.protocol not in OFFERED:
        return ()
    asked: set[Use] = set()
    if plan.cluster_ip:
        asked.add(INTERNAL[plan.internal_policy])
    if plan.external:
        asked |= {EXTERNAL[plan.external_policy, client].use for client in Client}
    there = {Use.CLUSTER: sets.cluster, Use.LOCAL: sets.local}
    return tuple([use for use in Use if use in asked and there[use]])


def _indexes(index: dict[tuple[str, int], int], endpoints: Iterable[Endpoint]) -> tuple[int, ...]:
    return tuple([index[end.ip, end.port] for end in endpoints])


def _node_port(plan: PortPlan, settings: NodeSettings) -> NodePort | None:
    """None when it answers on no address: then there is nothing to hold."""
    targets, udp = settings.node_port_targets, plan.protocol is Protocol.UDP
    if targets.all:
        return NodePort(plan.node_port, udp)
    addresses = targets.addresses + (("127.0.0.1",) if targets.localhost else ())
    return NodePort(plan.node_port, udp, addresses) if addresses else None


class Serving(Value, frozen=True):
    """A service port as the relay serves it: as it was told to, and the relay ports of its fronts.

    ``service.uses`` are the fronts that stand and are wanted, ``ports`` those that stand.
    """

    service: Service
    ports: tuple[tuple[Use, int], ...]
