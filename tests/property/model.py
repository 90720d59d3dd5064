"""What must become of a packet, said as plainly as possible: the slow twin of the whole data path.

Written from what Services promise (and, where a mode shows through, what kube-proxy's iptables mode
does), not from kproxy: of kproxy it knows the objects and the packet only. Each packet is judged
from scratch, by looking through everything.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from math import inf

from kproxy.backends.iptables.walk import Packet
from kproxy.core.objects import (
    EndpointSlice,
    Family,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    TrafficPolicy,
    family_of,
)

CLUSTER_IP, BALANCER, EXTERNAL_IP, NODE_PORT, HEALTH = (
    "cluster IP",
    "load balancer",
    "external IP",
    "node port",
    "health check",
)
POD, NODE, OTHER = "pod", "node", "other"
TRANSLATED, UNTOUCHED, REJECTED, DROPPED = "translated", "untouched", "rejected", "dropped"

#: Kinds of address, the strongest claim first; node ports and health checks share a range of ports.
STRENGTH = {CLUSTER_IP: 0, BALANCER: 1, EXTERNAL_IP: 2, NODE_PORT: 3, HEALTH: 3}


@dataclass(frozen=True)
class World:
    """A cluster as one node sees it.

    ``addresses`` are the Node object's (primary first in each family), ``local`` all that the host
    has. ``detector`` is ("cidr" | "bridge" | "prefix", value of each family) or None.
    """

    services: tuple[Service, ...]
    slices: tuple[EndpointSlice, ...]
    node: str
    zone: str
    addresses: tuple[str, ...]
    local: tuple[str, ...]
    detector: tuple[str, dict[Family, str]] | None = None
    masquerade_all: bool = False
    node_port_addresses: tuple[str, ...] = ()
    localhost_node_ports: bool = True
    drop_invalid: bool = True
    asks_sets: bool = True


@dataclass(frozen=True)
class Arrival:
    """How a packet comes to one endpoint."""

    masquerade: bool
    accepted: bool


@dataclass(frozen=True)
class Expected:
    """``endpoints`` are all that may be chosen, with equal chances. ``row`` is (kind of address,
    policy, client) of a packet to a Service; ``seen`` names what the case was an example of."""

    fate: str
    endpoints: dict[tuple[str, int], Arrival] = field(default_factory=dict)
    accepted: bool = False
    affinity: int | None = None
    port: tuple[str, str, str, str] | None = None
    row: tuple[str, str, str] | None = None
    seen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Claim:
    """A Service's wish for an address ("": every address of the node), protocol and number."""

    kind: str
    service: Service
    place: int
    spot: tuple[str, Protocol, int]

    def precedence(self):
        """The least wins. Nobody is older than an object that tells its age."""
        age = self.service.created or inf
        owner = (self.service.namespace, self.service.name)
        return STRENGTH[self.kind], age, owner, list(STRENGTH).index(self.kind), self.place

    @property
    def port(self) -> ServicePort:
        return self.service.ports[self.place]


# --- the packet -------------------------------------------------------------------------------


def expected(world: World, packet: Packet) -> Expected:
    """What must become of the packet."""
    sent = not packet.in_interface
    to_node = is_local(world, packet.destination)
    loopback = ipaddress.ip_address(packet.destination).is_loopback
    found = _to_service(world, packet) if packet.ctstate == "NEW" else None
    if found is not None and found.fate == TRANSLATED:
        return found
    from_loopback = ipaddress.ip_address(packet.source).is_loopback
    foreign = loopback and not from_loopback and packet.ctstate != "ESTABLISHED"
    if foreign and guards_localhost(world, family_of(packet.destination)):
        # CVE-2020-8558: with route_localnet neighbours could reach services on 127.0.0.1.
        return Expected(DROPPED, seen=frozenset({"localhost guarded"}))
    if found is not None:
        return found
    claim = holder(world, packet)
    if to_node and claim is not None and claim.kind == HEALTH:
        return Expected(UNTOUCHED, accepted=True, seen=frozenset({"health check accepted"}))
    forwarded = not sent and not to_node
    if packet.ctstate == "INVALID" and forwarded and world.drop_invalid:
        if not world.asks_sets:
            return Expected(DROPPED, seen=frozenset({"invalid dropped"}))
        if is_endpoint(world, packet):
            return Expected(DROPPED, seen=frozenset({"invalid of an endpoint dropped"}))
        return Expected(UNTOUCHED, seen=frozenset({"invalid of others untouched"}))
    if packet.ctstate == "ESTABLISHED" and forwarded:
        return Expected(UNTOUCHED, accepted=True, seen=frozenset({"established accepted"}))
    return Expected(UNTOUCHED, seen=frozenset({f"{packet.ctstate} untouched"}))


def _to_service(world: World, packet: Packet) -> Expected | None:
    """For the first packet of a connection to a Service; None when it is to none."""
    claim = holder(world, packet)
    if claim is None or claim.kind == HEALTH:
        return None
    service, sent = claim.service, not packet.in_interface
    to_node = is_local(world, packet.destination)
    client = client_of(world, packet)
    ready, draining = usable(world, claim, family_of(packet.destination))
    seen = {f"detector {world.detector[0] if world.detector else None}"}
    if len(claims_on(world, claim.spot, family_of(packet.destination))) > 1:
        seen.add("conflict")

    if claim.kind == CLUSTER_IP:
        policy = service.internal_policy
        local_only = policy is TrafficPolicy.LOCAL
        masquerade = world.masquerade_all or (world.detector is not None and client != POD)
        can_refuse = True
        if world.masquerade_all:
            seen.add("masqueradeAll")
    else:
        policy = service.external_policy
        # Local pods and the node itself use the whole cluster's endpoints.
        local_only = policy is TrafficPolicy.LOCAL and client == OTHER
        masquerade = policy is TrafficPolicy.CLUSTER or client == NODE
        # The filter rules for these hang in INPUT and FORWARD: what the node sends elsewhere
        # passes neither.
        can_refuse = not sent or to_node
    result = {
        "port": (service.namespace, service.name, claim.port.name, str(claim.port.protocol)),
        "row": (claim.kind, str(policy), client),
    }

    def end(fate: str, why: str) -> Expected:
        return Expected(fate, **result, seen=frozenset({*seen, why}))

    def nobody() -> Expected:
        if not can_refuse:
            return end(UNTOUCHED, "the node's own packets are not refused")
        return end(DROPPED, "nobody here") if ready or draining else end(REJECTED, "nobody")

    if claim.kind == NODE_PORT and not serves_node_port(world, packet.destination):
        # What cannot be served is refused on all addresses of the node, wherever it is served.
        empty = policy is TrafficPolicy.LOCAL and not on_node(world, ready, draining)
        if empty or not (ready or draining):
            return nobody()
        return end(UNTOUCHED, "node port not on this address")
    if not (ready or draining):
        return nobody()
    if claim.kind == BALANCER and not permitted(world, claim, packet, seen):
        return end(DROPPED, "source not permitted")
    chosen = on_node(world, ready, draining) if local_only else narrowed(world, ready, seen)
    if not (local_only or ready):
        chosen = draining
        seen.add("draining")
    if not chosen:
        return nobody()
    endpoints = {}
    for address, port in chosen:
        marked = masquerade or address == packet.source
        # Only what leaves this node passes POSTROUTING, and only what crosses it FORWARD.
        arrives = not sent and is_local(world, address)
        endpoints[address, port] = Arrival(
            masquerade=marked and not arrives, accepted=marked and not arrives and not sent
        )
        if address == packet.source and not masquerade:
            seen.add("hairpin")
        if arrives:
            seen.add("endpoint with the node's address")
    if claim.kind == NODE_PORT and ipaddress.ip_address(packet.destination).is_loopback:
        seen.add("node port on localhost")
    return Expected(
        TRANSLATED,
        endpoints,
        affinity=service.affinity_seconds,
        **result,
        seen=frozenset(seen | ({"affinity"} if service.affinity_seconds is not None else set())),
    )


def client_of(world: World, packet: Packet) -> str:
    """Pod first: a node's address inside the pods' range cannot be told from a pod's."""
    if world.detector is not None:
        kind, values = world.detector
        value = values[family_of(packet.source)]
        if {
            "cidr": lambda: within(packet.source, value),
            "bridge": lambda: packet.in_interface == value,
            "prefix": lambda: packet.in_interface.startswith(value),
        }[kind]():
            return POD
    return NODE if is_local(world, packet.source) else OTHER


# --- who owns an address ----------------------------------------------------------------------


def claims(world: World, family: Family) -> list[Claim]:
    """Everything that every Service asks for."""
    found = []
    for service in world.services:
        own = [ip for ip in service.cluster_ips if family_of(ip) is family]
        if service.ignored or service.type is ServiceType.EXTERNAL_NAME or not own:
            continue
        for place, port in enumerate(service.ports):
            wishes = [(CLUSTER_IP, own[0], port.port)]
            wishes += [(EXTERNAL_IP, ip, port.port) for ip in service.external_ips]
            if service.type is ServiceType.LOAD_BALANCER:
                wishes += [(BALANCER, ip, port.port) for ip in service.load_balancer_ips]
            if service.type is not ServiceType.CLUSTER_IP and port.node_port:
                wishes.append((NODE_PORT, "", port.node_port))
            found += [
                Claim(kind, service, place, (address, port.protocol, number))
                for kind, address, number in wishes
                if not address or family_of(address) is family
            ]
        if (
            service.type is ServiceType.LOAD_BALANCER
            and service.external_policy is TrafficPolicy.LOCAL
            and service.health_check_node_port
        ):
            spot = ("", Protocol.TCP, service.health_check_node_port)
            found.append(Claim(HEALTH, service, -1, spot))
    return found


def claims_on(world: World, spot: tuple[str, Protocol, int], family: Family) -> list[Claim]:
    return [claim for claim in claims(world, family) if claim.spot == spot]


def holder(world: World, packet: Packet) -> Claim | None:
    """Who gets packets to this destination: an address of its own before a port of the node."""
    family = family_of(packet.destination)
    spots = [(packet.destination, packet.protocol, packet.dport)]
    if is_local(world, packet.destination):
        spots.append(("", packet.protocol, packet.dport))
    for spot in spots:
        rivals = claims_on(world, spot, family)
        if rivals:
            return min(rivals, key=Claim.precedence)
    return None


# --- endpoints --------------------------------------------------------------------------------


def usable(world: World, claim: Claim, family: Family):
    """(ready, draining) as {(address, port): entry}; in either, equal places are one endpoint."""
    ready, draining = {}, {}
    for piece in world.slices:
        mine = (piece.namespace, piece.service) == (claim.service.namespace, claim.service.name)
        if not mine or piece.family is not family:
            continue
        for port in piece.ports:
            if (port.name, port.protocol) != (claim.port.name, claim.port.protocol):
                continue
            for entry in piece.endpoints:
                if entry.ready:
                    ready[entry.address, port.port] = entry
                elif entry.serving and entry.terminating:
                    draining[entry.address, port.port] = entry
    return ready, {place: entry for place, entry in draining.items() if place not in ready}


def is_endpoint(world: World, packet: Packet) -> bool:
    """Whether the packet comes from where some service port may send packets."""
    family = family_of(packet.source)
    offered = list(claims(world, family))
    for claim in offered:
        if claim.kind == HEALTH or claim.port.protocol is not packet.protocol:
            continue
        service, ready, draining = claim.service, *usable(world, claim, family)
        own = [
            one
            for one in offered
            if one.service == service
            and min(claims_on(world, one.spot, family), key=Claim.precedence) == one
        ]
        kept = {one.kind for one in own if one.place == claim.place}
        outside = kept & {BALANCER, EXTERNAL_IP, NODE_PORT}
        if not (kept or any(one.kind == HEALTH for one in own)):
            continue
        policies = {service.internal_policy} | ({service.external_policy} if outside else set())
        chosen = on_node(world, ready, draining) if TrafficPolicy.LOCAL in policies else []
        if outside or TrafficPolicy.CLUSTER in policies:
            chosen += narrowed(world, ready, set()) or list(draining)
        if (packet.source, packet.sport) in chosen:
            return True
    return False


def on_node(world: World, ready, draining):
    """Those on this node: ready ones, else draining ones."""
    here = [place for place, entry in ready.items() if entry.node == world.node]
    return here or [place for place, entry in draining.items() if entry.node == world.node]


def narrowed(world: World, ready, seen: set[str]):
    """Those hinted for this node, else for its zone; everything when hints are not complete."""
    by_node = [place for place, entry in ready.items() if world.node in entry.node_hints]
    if by_node and all(entry.node_hints for entry in ready.values()):
        seen.add("hinted by node")
        return by_node
    by_zone = [place for place, entry in ready.items() if world.zone in entry.zone_hints]
    if world.zone and by_zone and all(entry.zone_hints for entry in ready.values()):
        seen.add("hinted by zone")
        return by_zone
    return list(ready)


# --- the node's settings ----------------------------------------------------------------------


def within(address: str, cidr: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(cidr)


def is_local(world: World, address: str) -> bool:
    return address in world.local or ipaddress.ip_address(address).is_loopback


def permitted(world: World, claim: Claim, packet: Packet, seen: set[str]) -> bool:
    """Whether loadBalancerSourceRanges let this source in."""
    service, family = claim.service, family_of(packet.destination)
    if not service.source_ranges_set:
        return True
    own = [cidr for cidr in service.source_ranges if family_of(cidr) is family]
    if not own and service.source_ranges and not service.source_ranges_broken:
        return True
    if any(within(packet.source, cidr) for cidr in own):
        seen.add("source permitted")
        return True
    primary = next(ip for ip in world.addresses if family_of(ip) is family)
    vip = packet.source in service.load_balancer_ips and _keeps(world, claim, packet.source)
    if vip and any(within(primary, cidr) for cidr in own):
        # An address that stands on this node is the source of what the node sends to it.
        seen.add("source is the load balancer's address")
        return True
    return False


def _keeps(world: World, claim: Claim, address: str) -> bool:
    spot = (address, claim.port.protocol, claim.port.port)
    rivals = claims_on(world, spot, family_of(address))
    winner = min(rivals, key=Claim.precedence)
    return (winner.kind, winner.service, winner.place) == (BALANCER, claim.service, claim.place)


def serves_node_port(world: World, address: str) -> bool:
    """Whether node ports answer on this address of the node."""
    family = family_of(address)
    wanted = world.node_port_addresses
    ranges = [item for item in wanted if "/" in item and family_of(item) is family]
    keywords = {item for item in wanted if "/" not in item}
    everywhere = "all" in keywords or not (ranges or keywords)
    if ipaddress.ip_address(address).is_loopback:
        if family is Family.IPV6 or not world.localhost_node_ports:
            return False
        loopback = ipaddress.ip_network("127.0.0.0/8")
        named = any(ipaddress.ip_network(item).overlaps(loopback) for item in ranges)
        return everywhere or "localhost" in keywords or named
    primary = next(ip for ip in world.addresses if family_of(ip) is family)
    if everywhere or ("primary" in keywords and address == primary):
        return True
    return any(within(address, item) for item in ranges)


def guards_localhost(world: World, family: Family) -> bool:
    return family is Family.IPV4 and serves_node_port(world, "127.0.0.1")
