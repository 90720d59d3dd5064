"""What a Service offers in one IP family, before other services dispute any of it.

Type, family and source ranges are decided here by table; :mod:`kproxy.core.conflicts` then says
which addresses it may keep, :mod:`kproxy.core.planner` makes port plans of the rest.
"""

from __future__ import annotations

from kproxy.core.health.values import Policy
from kproxy.core.objects import (
    Family,
    ObjectKey,
    Service,
    ServicePort,
    ServiceType,
    TrafficPolicy,
    Value,
    family_of,
)

#: Annotations that reach a plan; everything else on a Service is not for this proxy.
ANNOTATION_PREFIX = "kproxy/"

#: type -> (node ports, load-balancer addresses). External IPs count for every type, and a Service
#: of a type that is not listed offers nothing. A nodePort or an ingress address may be left over
#: in an object whose type was changed by hand: it is no way in any more.
CAPTURES: dict[ServiceType, tuple[bool, bool]] = {
    ServiceType.CLUSTER_IP: (False, False),
    ServiceType.NODE_PORT: (True, False),
    ServiceType.LOAD_BALANCER: (True, True),
}

#: (a range of this family, one of the other, a broken one) -> is the access restricted?
#: For Services that restrict sources at all. Broken ranges never open what their author meant to
#: close: a broken range may have been this family's. Only when all ranges are sound and of the
#: other family is this one free.
RESTRICTED: dict[tuple[bool, bool, bool], bool] = {
    (True, True, True): True,
    (True, True, False): True,
    (True, False, True): True,
    (True, False, False): True,
    (False, True, True): True,
    (False, True, False): False,
    (False, False, True): True,
    (False, False, False): True,
}


class Offer(Value, frozen=True, gc=False):
    """A Service as one family sees it; fields as in :class:`kproxy.core.snapshot.PortPlan`.

    ``ports`` have node port 0 where the type has none. An address may stand in several fields.
    """

    key: ObjectKey
    created: float
    cluster_ip: str
    ports: tuple[ServicePort, ...]
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    restricted: bool = False
    affinity_seconds: int | None = None
    internal_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    external_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    health_check_node_port: int = 0
    annotations: tuple[tuple[str, str], ...] = ()
    health: Policy | None = None


def offer_of(service: Service | None, family: Family) -> Offer | None:
    """What the Service offers in that family; None when it is not for this proxy or family."""
    if service is None or service.ignored or service.type not in CAPTURES:
        return None
    own = _own(service.cluster_ips, family)
    if not own:
        return None
    node_ports, balancer = CAPTURES[service.type]
    balancer_ips = _own(service.load_balancer_ips, family) if balancer else ()
    ranges, restricted = _sources(service, family) if balancer_ips else ((), False)
    return Offer(
        key=service.key,
        created=service.created,
        cluster_ip=own[0],
        ports=service.ports if node_ports else _without_node_ports(service.ports),
        external_ips=_own(service.external_ips, family),
        load_balancer_ips=balancer_ips,
        source_ranges=ranges,
        restricted=restricted,
        affinity_seconds=service.affinity_seconds,
        internal_policy=service.internal_policy,
        external_policy=service.external_policy,
        health_check_node_port=_health_check(service) if balancer else 0,
        annotations=tuple(
            pair for pair in service.annotations if pair[0].startswith(ANNOTATION_PREFIX)
        ),
        health=service.health,
    )


def _own(addresses: tuple[str, ...], family: Family) -> tuple[str, ...]:
    """The addresses or ranges of the family; the tuple itself when all of them are."""
    own = tuple([address for address in addresses if family_of(address) is family])
    return addresses if len(own) == len(addresses) else own


def _sources(service: Service, family: Family) -> tuple[tuple[str, ...], bool]:
    if not service.source_ranges_set:
        return (), False
    own = _own(service.source_ranges, family)
    other = len(own) < len(service.source_ranges)
    return own, RESTRICTED[bool(own), other, service.source_ranges_broken]


def _health_check(service: Service) -> int:
    """A health check tells a load balancer which nodes have local endpoints: Local policy only."""
    local = service.external_policy is TrafficPolicy.LOCAL
    return service.health_check_node_port if local else 0


def _without_node_ports(ports: tuple[ServicePort, ...]) -> tuple[ServicePort, ...]:
    if not any(port.node_port for port in ports):
        return ports
    return tuple(ServicePort(port.name, port.protocol, port.port) for port in ports)
