"""The ways in to UDP service ports, packed as conntrack has them: what a plan says of a flow. Pure.

A :class:`Way` is one address and port, or one node port, with the places (an endpoint's address and
port) to which a flow through it may go. Addresses and ports are bytes in network order, 4 or 16 and
2 of them, so that millions of flows can be looked up without making an object of any.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping

from kproxy.core.objects import Family, Protocol, TrafficPolicy, Value
from kproxy.core.policy import EXTERNAL, INTERNAL, Client, Use
from kproxy.core.snapshot import Endpoint, NodeSettings, PortPlan, Snapshot

#: What a way is found by: address + port, or the port alone for a node port.
Key = bytes
Place = bytes

#: Packed 127.0.0.0/8 begins with it.
_LOOPBACK = b"\x7f"

_NOWHERE: frozenset[Place] = frozenset()


class Range(Value, frozen=True, gc=False):
    """A CIDR for fast tests: ``number & mask == net``."""

    net: int
    mask: int

    def holds(self, address: bytes) -> bool:
        return int.from_bytes(address) & self.mask == self.net


class Way(Value, frozen=True, gc=False):
    """Where flows through one way in may go.

    ``near`` and ``far`` are the places for clients of this node (its pods and itself) and for all
    others; ``sure`` those that are right for any client without a further look. ``policy`` is that
    of the outside, None for a cluster IP. ``sources`` None: everyone may come in.
    """

    sure: frozenset[Place]
    near: frozenset[Place]
    far: frozenset[Place]
    policy: TrafficPolicy | None = None
    sources: tuple[Range, ...] | None = None

    def admits(self, source: bytes) -> bool:
        """Whether a client may come in this way at all (loadBalancerSourceRanges)."""
        return self.sources is None or any(part.holds(source) for part in self.sources)

    def covers(self, other: Way) -> bool:
        """Whether every flow that was right by ``other`` is right by this one, and none that
        ``other`` had left alone or had refused should come here now."""
        return (
            bool(other.near) == bool(self.near)
            and bool(other.far) == bool(self.far)
            and other.near <= self.near
            and other.far <= self.far
            and (other.policy, other.sources) == (self.policy, self.sources)
        )


class Host(Value, frozen=True):
    """What has to be known of the node to judge a flow, packed.

    ``local`` are all addresses of the network namespace, ``answering`` those of them on which node
    ports answer; ``localhost``: all of 127.0.0.0/8 as well. ``pods``: sources that are this node's
    pods. ``pods_known`` is false when only an interface would tell, which no flow remembers.
    """

    local: frozenset[bytes]
    answering: frozenset[bytes]
    localhost: bool
    pods: Range | None
    pods_known: bool

    def answers(self, destination: bytes) -> bool:
        """Whether node ports answer on an address."""
        if destination[:1] == _LOOPBACK and len(destination) == 4:
            return self.localhost
        return destination in self.answering

    def client(self, source: bytes) -> Client | None:
        """The kind of client, None for a pod of this node or somebody else: it cannot be told."""
        if source in self.local or (source[:1] == _LOOPBACK and len(source) == 4):
            return Client.NODE
        if self.pods is not None and self.pods.holds(source):
            return Client.POD
        return Client.OTHER if self.pods_known else None


def packed(address: str) -> bytes:
    """Network order. Sixteen times faster than an object for IPv4, and most are."""
    if ":" in address:
        return ipaddress.IPv6Address(address).packed
    return bytes(map(int, address.split(".")))


def packed_port(port: int) -> bytes:
    return port.to_bytes(2)


def packed_range(cidr: str) -> Range:
    network = ipaddress.ip_network(cidr)
    return Range(int(network.network_address), int(network.netmask))


def host_of(settings: NodeSettings, family: Family, addresses: Collection[str]) -> Host:
    """``addresses`` are all of the network namespace, both families mixed."""
    local = frozenset(
        packed(address) for address in addresses if (":" in address) == (family is Family.IPV6)
    )
    targets, detector = settings.node_port_targets, settings.detector
    answering = local if targets.all else frozenset(map(packed, targets.addresses))
    return Host(
        local=local,
        # ::1 is never served: IPv6 has no route_localnet.
        answering=answering - {packed("::1")},
        localhost=targets.localhost and family is Family.IPV4,
        pods=packed_range(detector.cidr) if detector is not None and detector.cidr else None,
        pods_known=detector is None or bool(detector.cidr),
    )


def ways_of(plan: PortPlan, settings: NodeSettings) -> dict[Key, Way]:
    """The ways in to one service port; none when it is not of UDP."""
    if plan.protocol is not Protocol.UDP:
        return {}
    sets = plan.endpoints
    serving = (*sets.all, *sets.spared)
    by_use = {
        Use.CLUSTER: _places(serving),
        Use.LOCAL: _places(endpoint for endpoint in serving if endpoint.local),
    }
    port, ways = packed_port(plan.port), {}
    if plan.cluster_ip:
        inside = by_use[INTERNAL[plan.internal_policy]]
        ways[packed(plan.cluster_ip) + port] = Way(inside, inside, inside)
    if not plan.external:
        return ways
    near = by_use[EXTERNAL[plan.external_policy, Client.NODE].use]
    far = by_use[EXTERNAL[plan.external_policy, Client.OTHER].use]
    outside = Way(near & far, near, far, plan.external_policy)
    for address in plan.external_ips:
        ways[packed(address) + port] = outside
    if plan.restricted:
        sources = tuple(map(packed_range, permitted(plan, settings)))
        outside = Way(_NOWHERE, near, far, plan.external_policy, sources)
    for address in plan.load_balancer_ips:
        ways[packed(address) + port] = outside
    if plan.node_port:
        ways[packed_port(plan.node_port)] = Way(near & far, near, far, plan.external_policy)
    return ways


def permitted(plan: PortPlan, settings: NodeSettings) -> Iterator[str]:
    """CIDRs that may use the load-balancer addresses.

    With this node's own address among them the addresses themselves too: one that stands on this
    node is the source of the node's own packets to it.
    """
    yield from plan.source_ranges
    if not settings.addresses:
        return
    node = packed(settings.addresses[0])
    if any(packed_range(text).holds(node) for text in plan.source_ranges):
        for address in plan.load_balancer_ips:
            yield f"{address}/{len(packed(address)) * 8}"


def _places(endpoints: Iterable[Endpoint]) -> frozenset[Place]:
    return frozenset(packed(endpoint.ip) + packed_port(endpoint.port) for endpoint in endpoints)


class WayChange(Value, frozen=True):
    """One key whose way differs between two plans; None: not served."""

    key: Key
    old: Way | None
    new: Way | None


class Plan:
    """The ways of one Snapshot. Not edited after it is made."""

    __slots__ = ("snapshot", "ways")

    def __init__(self, snapshot: Snapshot, ways: Mapping[Key, Way]) -> None:
        self.snapshot = snapshot
        self.ways = ways


def plan_ways(snapshot: Snapshot, previous: Plan | None) -> tuple[Plan, tuple[WayChange, ...]]:
    """The ways of a Snapshot, and what differs from ``previous`` (of the same planner, or None).

    Only ports that differ are looked at when the two Snapshots follow upon each other.
    """
    before = previous.snapshot if previous is not None else None
    if previous is not None and snapshot is before:
        return previous, ()
    if previous is None or before is None or snapshot.base != before.generation:
        old: Mapping[Key, Way] = previous.ways if previous is not None else {}
        ways: dict[Key, Way] = {}
        for plan in snapshot.ports.values():
            ways |= ways_of(plan, snapshot.settings)
        return Plan(snapshot, ways), _changes(old, ways, old.keys() | ways.keys())
    gone: set[Key] = set()
    fresh: dict[Key, Way] = {}
    for name in snapshot.changed | snapshot.removed:
        was = before.ports.get(name)
        if was is not None:
            gone |= ways_of(was, before.settings).keys()
        if name not in snapshot.removed:
            fresh |= ways_of(snapshot.ports[name], snapshot.settings)
    touched = gone | fresh.keys()
    changes = _changes(previous.ways, fresh, touched)
    if not changes:
        return Plan(snapshot, previous.ways), ()
    ways = {key: way for key, way in previous.ways.items() if key not in touched}
    return Plan(snapshot, ways | fresh), changes


def _changes(
    old: Mapping[Key, Way], new: Mapping[Key, Way], keys: Iterable[Key]
) -> tuple[WayChange, ...]:
    pairs = ((key, old.get(key), new.get(key)) for key in keys)
    return tuple(WayChange(*pair) for pair in pairs if pair[1] != pair[2])
