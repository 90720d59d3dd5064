"""What IPVS mode makes of one service port: virtual servers, members of sets, addresses. Pure.

A server has one list of real ones, whoever asks, while policies tell clients apart. Which list it
gets, and which clients the rules then keep away (:data:`sets.NO_ENDPOINT`,
:data:`sets.NO_LOCAL_ENDPOINT`), is decided here, from the tables of :mod:`kproxy.core.policy`.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from ipaddress import ip_address, ip_network
from itertools import repeat
from math import gcd

from kproxy.backends.ipvs import sets
from kproxy.core import servers
from kproxy.core.objects import Family, PortName, Protocol, TrafficPolicy, Value
from kproxy.core.policy import EXTERNAL, INTERNAL, Client, Use
from kproxy.core.servers import Scheduling
from kproxy.core.snapshot import Endpoint, NodeSettings, PortPlan

#: Flags of a scheduler. With the source port in the hash, as kube-proxy has it for mh, clients
#: behind one address are spread as well. Both hashes keep the places of an endpoint whose weight
#: is 0, and without the fallback turn away whom they lead there: while one of three drains, a third
#: of all newcomers.
_FLAGS: Mapping[str, int] = {
    "mh": servers.MH_PORT | servers.MH_FALLBACK,
    "sh": servers.SH_FALLBACK,
}

#: Schedulers that look at no weights -> their likes that do, for services whose endpoints start
#: slowly, from the first moment: while the kernel changes a scheduler it refuses new connections.
WEIGHTED: Mapping[str, str] = {"rr": "wrr", "lc": "wlc"}

#: Schedulers to which a weight is no share: nothing at all, a rank, a limit of connections.
UNWEIGHTED = frozenset({"rr", "lc", "dh", "fo", "ovf"})

#: sh hands its 256 buckets out in turn, as many at a time as the weight says: with more in all the
#: last ones would get none.
_MOST_WEIGHT = {"sh": 256}

#: Slow start goes in twentieths: counted in them, those that are up keep their weight all along.
_TWENTIETH = 5

#: Node ports that answer on loopback only have their servers here, where the node itself can
#: reach them and nobody else: as any address on the dummy device it is closed to others but for
#: VIPs. It is the "IPv4 dummy address", which is no packet's destination anywhere (RFC 7600).
STAND_IN = "192.0.0.8"

_NUMBERS = {Protocol.TCP: b"\x06", Protocol.UDP: b"\x11", Protocol.SCTP: b"\x84"}
_CODES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


class Virtual(Value, frozen=True, gc=False):
    """A virtual server as it should be: how it schedules, and the keys of its real ones.

    ``weights`` are theirs, () where each has 1.
    """

    scheduling: Scheduling
    reals: tuple[bytes, ...]
    weights: tuple[int, ...] = ()

    @property
    def weighed(self) -> Iterable[tuple[bytes, int]]:
        """(real key, weight)."""
        return zip(self.reals, self.weights or repeat(1))


class Ways(Value, frozen=True, gc=False):
    """The ways in to one service port, as server keys. ``node_ports`` are at the node's own
    addresses, the others at addresses that the service has for itself."""

    cluster_ips: tuple[bytes, ...]
    external_ips: tuple[bytes, ...]
    balancers: tuple[bytes, ...]
    node_ports: tuple[bytes, ...]

    @property
    def outer(self) -> tuple[bytes, ...]:
        """All that the external policy is about."""
        return self.external_ips + self.balancers + self.node_ports


def ways_of(plan: PortPlan, settings: NodeSettings, taken: Container[bytes] = ()) -> Ways:
    """``taken`` are keys that other service ports have for themselves (:func:`at_node_ports`)."""
    places = node_port_addresses(settings) if plan.node_port else ()
    node_ports = _keys(places, plan.node_port, plan.protocol)
    return Ways(
        _keys((plan.cluster_ip,) if plan.cluster_ip else (), plan.port, plan.protocol),
        _keys(plan.external_ips, plan.port, plan.protocol),
        _keys(plan.load_balancer_ips, plan.port, plan.protocol),
        tuple([key for key in node_ports if key not in taken]),
    )


def at_node_ports(plan: PortPlan, places: AbstractSet[str]) -> tuple[bytes, ...]:
    """Where one of its own addresses is one of ``places``, at which node ports answer: the address
    stays its owner's, and no other service's node port of the same number answers there."""
    if not places or not (plan.external_ips or plan.load_balancer_ips):
        return ()
    own = [text for text in (*plan.external_ips, *plan.load_balancer_ips) if text in places]
    return _keys(own, plan.port, plan.protocol)


class Block:
    """The share of one service port. Each part is made when somebody first looks at it.

    ``servers`` by server key, ``members`` by set (without the family's prefix), ``addresses`` to be
    bound on the dummy device. ``taken``: see :func:`ways_of`. ``ramps``: its endpoints start
    slowly.
    """

    __slots__ = (
        "_addresses", "_members", "_servers", "_ways", "family", "plan", "ramps", "settings",
        "taken",
    )  # fmt: skip

    def __init__(
        self,
        plan: PortPlan,
        family: Family,
        settings: NodeSettings,
        taken: frozenset[bytes] = frozenset(),
        *,
        ramps: bool = False,
    ) -> None:
        self.plan = plan
        self.ramps = ramps
        self.family = family
        self.settings = settings
        self.taken = taken
        self._ways: Ways | None = None
        self._servers: dict[bytes, Virtual] | None = None
        self._members: dict[str, tuple[bytes, ...]] | None = None
        self._addresses: frozenset[str] | None = None

    @property
    def name(self) -> PortName:
        return self.plan.name

    @property
    def ways(self) -> Ways:
        if self._ways is None:
            self._ways = ways_of(self.plan, self.settings, self.taken)
        return self._ways

    @property
    def servers(self) -> Mapping[bytes, Virtual]:
        """For every way in. One without real servers refuses."""
        if self._servers is None:
            made = dict.fromkeys(self.ways.cluster_ips, self._virtual(inside(self.plan)))
            made |= dict.fromkeys(self.ways.outer, self._virtual(outside(self.plan)))
            self._servers = made
        return self._servers

    @property
    def members(self) -> Mapping[str, Collection[bytes]]:
        if self._members is None:
            self._members = members_of(self.plan, self.ways, self.family, self.settings)
        return self._members

    @property
    def addresses(self) -> Collection[str]:
        if self._addresses is None:
            self._addresses = bound(self.plan, self.settings)
        return self._addresses

    def _virtual(self, endpoints: Sequence[Endpoint]) -> Virtual:
        scheduling = scheduling_of(self.plan, self.settings, ramps=self.ramps)
        weights = weights_of(endpoints, scheduling.scheduler)
        return Virtual(scheduling, real_keys(endpoints, self.family), weights)


def scheduling_of(plan: PortPlan, settings: NodeSettings, *, ramps: bool = False) -> Scheduling:
    """The service's scheduler, else the node's; affinity is persistence. ``ramps``: see
    :data:`WEIGHTED`."""
    own = dict(plan.annotations).get(servers.SCHEDULER_ANNOTATION)
    scheduler = own or settings.ipvs.scheduler
    if ramps:
        scheduler = WEIGHTED.get(scheduler, scheduler)
    flags, timeout = _FLAGS.get(scheduler, 0), 0
    if plan.affinity_seconds is not None:
        flags, timeout = flags | servers.PERSISTENT, plan.affinity_seconds
    return Scheduling(scheduler, flags, timeout)


def weights_of(endpoints: Iterable[Endpoint], scheduler: str) -> tuple[int, ...]:
    """In the order of the endpoints; () where all are to have 1. Never 0: that means draining."""
    weights = [endpoint.weight for endpoint in endpoints]
    if len(set(weights)) < 2 or scheduler in UNWEIGHTED:
        return ()
    unit = gcd(_TWENTIETH, *weights)
    if sum(weights) // unit > _MOST_WEIGHT.get(scheduler, sum(weights)):
        return ()
    return tuple([weight // unit for weight in weights])


def inside(plan: PortPlan) -> tuple[Endpoint, ...]:
    """Endpoints behind the cluster IP; nobody when the policy leaves nobody."""
    return _of_use(plan, INTERNAL[plan.internal_policy])


def outside(plan: PortPlan) -> tuple[Endpoint, ...]:
    """Endpoints behind the other ways in.

    Under Local policy those of this node, for inside clients too: a server cannot tell clients
    apart. When this node has none, those that inside clients may use; the rules keep outside ones
    away then.
    """
    uses = dict.fromkeys(
        EXTERNAL[plan.external_policy, client].use for client in (Client.OTHER, Client.NODE)
    )
    return next((chosen for use in uses if (chosen := _of_use(plan, use))), ())


def _of_use(plan: PortPlan, use: Use) -> tuple[Endpoint, ...]:
    ends = plan.endpoints
    if not ends.has_any:
        return ()
    return (ends.cluster if use is Use.CLUSTER else ends.local) or ()


def real_keys(endpoints: Iterable[Endpoint], family: Family) -> tuple[bytes, ...]:
    """Real keys, in the order of the endpoints."""
    code, packed = _CODES[family], socket.inet_pton
    return tuple([packed(code, end.ip) + end.port.to_bytes(2, "big") for end in endpoints])


def server_key(address: str, port: int, protocol: Protocol) -> bytes:
    """Address, port, protocol number."""
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    return packed + port_key(port, protocol)


def port_key(port: int, protocol: Protocol) -> bytes:
    """The end of a server key, whatever the address."""
    return port.to_bytes(2, "big") + _NUMBERS[protocol]


def _keys(addresses: Iterable[str], port: int, protocol: Protocol) -> tuple[bytes, ...]:
    return tuple([server_key(address, port, protocol) for address in addresses])


def node_port_addresses(settings: NodeSettings) -> tuple[str, ...]:
    """Where virtual servers of node ports stand: never on loopback, from where IPVS lets nothing
    out of the node.

    Where only loopback answers they stand at :data:`STAND_IN`.
    """
    targets = settings.node_port_targets
    found = settings.local_addresses if targets.all else targets.addresses
    kept = tuple([text for text in found if not text.startswith("127.") and text != "::1"])
    return kept or ((STAND_IN,) if targets.localhost and not targets.all else ())


def loopback_target(settings: NodeSettings) -> str:
    """The address whose node ports stand for those of 127.0.0.0/8; "" when these do not answer."""
    if not settings.node_port_targets.localhost:
        return ""
    places = node_port_addresses(settings)
    return next((text for text in settings.addresses if text in places), "".join(places[:1]))


def bound(plan: PortPlan, settings: NodeSettings) -> frozenset[str]:
    """VIPs that the dummy device has to carry: those that the node does not have anyway."""
    vips = {plan.cluster_ip, *plan.external_ips, *plan.load_balancer_ips} - {""}
    if plan.node_port and STAND_IN in node_port_addresses(settings):
        vips.add(STAND_IN)
    return frozenset(vips.difference(settings.local_addresses))


# --- members of sets ---------------------------------------------------------------------------


def members_of(
    plan: PortPlan, ways: Ways, family: Family, settings: NodeSettings
) -> dict[str, tuple[bytes, ...]]:
    """Set -> its members of one service port, packed as :mod:`kproxy.core.members` lays out."""
    made: dict[str, list[bytes]] = {}
    for name, members in _members(plan, ways, family, settings):
        made.setdefault(name, []).extend(members)
    return {name: tuple(dict.fromkeys(found)) for name, found in made.items() if found}


_Members = Iterator[tuple[str, Iterable[bytes]]]


def _members(plan: PortPlan, ways: Ways, family: Family, settings: NodeSettings) -> _Members:
    yield sets.LOOP_BACK, _loop_back(plan, family)
    yield sets.CLUSTER_IP, ways.cluster_ips
    yield sets.IPVS_IPS, [_packed(text, family) for text in bound(plan, settings)]
    yield _EXTERNAL_IPS[plan.external_policy], ways.external_ips
    yield from _load_balancers(plan, ways.balancers, family, settings)
    yield from _node_ports(plan, ways.node_ports)
    yield from _closed(plan, ways)
    if family is Family.IPV4 and plan.protocol is not Protocol.SCTP:
        yield sets.FROM_LOOPBACK, _from_loopback(plan, ways, settings)


_EXTERNAL_IPS = {
    TrafficPolicy.CLUSTER: sets.EXTERNAL_IP,
    TrafficPolicy.LOCAL: sets.EXTERNAL_IP_LOCAL,
}


def _packed(address: str, family: Family) -> bytes:
    return socket.inet_pton(_CODES[family], address)


def _loop_back(plan: PortPlan, family: Family) -> list[bytes]:
    number, packed, code = _NUMBERS[plan.protocol], socket.inet_pton, _CODES[family]
    made = []
    for end in plan.endpoints.all:
        ip = packed(code, end.ip)
        made.append(ip + end.port.to_bytes(2, "big") + number + ip)
    return made


def _load_balancers(
    plan: PortPlan, keys: tuple[bytes, ...], family: Family, settings: NodeSettings
) -> _Members:
    yield sets.LOAD_BALANCER, keys
    if plan.external_policy is TrafficPolicy.LOCAL:
        yield sets.LOAD_BALANCER_LOCAL, keys
    if not (plan.restricted and plan.endpoints.has_any):
        # Without any endpoint everybody is refused, permitted or not.
        return
    yield sets.LOAD_BALANCER_FIREWALL, keys
    ranges = [member for text in plan.source_ranges for member in range_members(text)]
    yield sets.LOAD_BALANCER_SOURCE_RANGE, [key + member for key in keys for member in ranges]
    if holds_node(plan.source_ranges, settings.addresses):
        # The node's own packets to a VIP have it as their source.
        vips = [_packed(ip, family) for ip in plan.load_balancer_ips]
        yield sets.LOAD_BALANCER_SOURCE_IP, [key + vip for key in keys for vip in vips]


def range_members(text: str) -> list[bytes]:
    """A range as the kernel takes it: address and prefix length. It knows no /0: two halves do."""
    network = ip_network(text)
    halves = network.subnets() if network.prefixlen == 0 else (network,)
    return [half.network_address.packed + bytes((half.prefixlen,)) for half in halves]


def holds_node(ranges: Collection[str], addresses: Collection[str]) -> bool:
    """Whether the node's primary address is in one of the ranges."""
    primary = next((ip_address(text) for text in addresses), None)
    return primary is not None and any(primary in ip_network(text) for text in ranges)


def _node_ports(plan: PortPlan, keys: tuple[bytes, ...]) -> _Members:
    if plan.health_check_node_port:
        yield sets.HEALTH_CHECK_NODE_PORT, [plan.health_check_node_port.to_bytes(2, "big")]
    if not plan.node_port:
        return
    members = keys if plan.protocol is Protocol.SCTP else (plan.node_port.to_bytes(2, "big"),)
    yield sets.NODE_PORT[plan.protocol], members
    if plan.external_policy is TrafficPolicy.LOCAL:
        yield sets.NODE_PORT_LOCAL[plan.protocol], members


def _closed(plan: PortPlan, ways: Ways) -> _Members:
    """Ways in that are closed although the service has endpoints somewhere: to nobody is refused
    what another node may well serve."""
    if not plan.endpoints.has_any:
        return
    if not inside(plan):
        yield sets.NO_ENDPOINT, ways.cluster_ips
    if not outside(plan):
        yield sets.NO_ENDPOINT, ways.outer
    elif not _of_use(plan, EXTERNAL[plan.external_policy, Client.OTHER].use):
        yield sets.NO_LOCAL_ENDPOINT, ways.outer


def _from_loopback(plan: PortPlan, ways: Ways, settings: NodeSettings) -> Iterator[bytes]:
    """Ways in that have an endpoint for the node itself, with the prefix length of the address."""
    if inside(plan):
        yield from (key + _WHOLE for key in ways.cluster_ips)
    if not outside(plan):
        return
    yield from (key + _WHOLE for key in ways.outer)
    target = loopback_target(settings) if plan.node_port else ""
    if target:
        stands = server_key(target, plan.node_port, plan.protocol)
        if stands in ways.node_ports:
            yield _LOOPBACK_NET + stands[4:] + _LOOPBACK_LENGTH


_WHOLE = bytes((32,))
_LOOPBACK_NET, _LOOPBACK_LENGTH = bytes((127, 0, 0, 0)), bytes((8,))
