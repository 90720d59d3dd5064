"""The frozen plan of one node and one IP family: everything a mode needs, and nothing else.

A mode reads a :class:`Snapshot` and never a Service. Which endpoints may be used, by whom, and who
is masqueraded is decided before (:mod:`kproxy.core.topology`, :mod:`kproxy.core.policy`), so that
all modes agree. :mod:`kproxy.core.planner` makes Snapshots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum

from kproxy.core.health.values import FULL_WEIGHT, HealthSettings, Policy, Target, target_of
from kproxy.core.objects import Family, PortName, Protocol, Refusal, TrafficPolicy, Value

# gc=False below: these trees of values cannot hold cycles, and a plan has tens of thousands of
# them; not walking them saves a third of the time to plan 5,000 services of 10 endpoints.


class Endpoint(Value, frozen=True, gc=False):
    """One place to which connections may be sent. ``local``: on this node. ``weight`` (1 to 100):
    its share of new connections beside the others of its set; all have 100 but during slow start.
    """

    ip: str
    port: int
    local: bool = False
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node: str = ""
    zone_hints: tuple[str, ...] = ()
    node_hints: tuple[str, ...] = ()
    weight: int = FULL_WEIGHT

    def __str__(self) -> str:
        """``ip:port``, IPv6 in brackets: the form that kube-proxy hashes into chain names."""
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


class EndpointSets(Value, frozen=True, gc=False):
    """The endpoints of one service port as this node may use them.

    ``cluster``  for Cluster policy, ``local`` for Local policy; **None means that no rule of this
    service port ever uses that set**, the empty tuple that it is used and has nobody: drop.
    ``all`` is every endpoint that some rule may choose, for per-endpoint objects and conntrack.
    ``has_any`` is false when nothing is usable on any node: refuse.
    ``spared`` are further ones that still serve and are chosen by no rule (they drain beside ready
    ones, or hints name others): UDP flows that they have go on. Known for UDP ports only.
    All are sorted by (ip text, port), so that equal content renders equally.
    """

    cluster: tuple[Endpoint, ...] | None
    local: tuple[Endpoint, ...] | None
    all: tuple[Endpoint, ...]
    has_any: bool
    spared: tuple[Endpoint, ...] = ()


class PortPlan(Value, frozen=True, gc=False):
    """One service port in one family. Addresses lost to another service are already left out.

    ``cluster_ip`` "" (lost to another service) and ``node_port`` 0 mean none. ``source_ranges`` are
    the ranges of this family; ``restricted`` is true when load-balancer addresses may be reached
    from them only (from nowhere, when there are none); both are empty without such addresses. An
    address stands in one of the three address fields only, whatever the Service says.
    ``local_ready`` are what ``health_check_node_port`` tells of, () without it: the addresses of
    this node's ready endpoints, sorted.
    ``affinity_seconds`` None means no affinity. ``annotations`` are the service's ``kproxy/`` ones.
    """

    name: PortName
    port: int
    endpoints: EndpointSets
    cluster_ip: str = ""
    node_port: int = 0
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    restricted: bool = False
    affinity_seconds: int | None = None
    internal_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    external_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    health_check_node_port: int = 0
    local_ready: tuple[str, ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()

    @property
    def protocol(self) -> Protocol:
        return self.name.protocol

    @property
    def external(self) -> bool:
        """True when it can be reached other than by its cluster IP."""
        return bool(self.node_port or self.external_ips or self.load_balancer_ips)


class Cause(StrEnum):
    """Who decided."""

    ASSUMED = "assumed"  # not checked yet: as the policy says
    CHECK = "check"
    PASSIVE = "passive"
    NONE = ""  # up, and nobody had anything against it


class Judged(Value, frozen=True, gc=False):
    """An endpoint as the API tells of it, and what is thought of it.

    ``reason`` and ``at`` (seconds since the epoch, 0.0 unknown) are of the opinion that decided.
    ``weight`` is below 100 while it starts slowly.
    """

    endpoint: Endpoint
    up: bool
    cause: Cause = Cause.NONE
    reason: str = ""
    at: float = 0.0
    weight: int = FULL_WEIGHT


class PortHealth(Value, frozen=True, gc=False):
    """The verdict on one service port.

    ``policy`` is what of the service's holds for this port. ``judged`` are the endpoints that the
    API lets serve (ready, or draining), in the order of the plan. ``panic``: too few are up, all
    are used.
    """

    policy: Policy
    judged: tuple[Judged, ...]
    panic: bool = False

    def targets(self) -> Iterator[Target]:
        """What to check for it; may repeat a target."""
        check = self.policy.check
        if check is not None:
            for each in self.judged:
                yield target_of(check, each.endpoint.ip, each.endpoint.port)


class LocalDetector(Value, frozen=True):
    """How this node tells its own pods' traffic: exactly one of the three fields is set.

    ``cidr`` source address in range, ``bridge`` input interface equals, ``prefix`` input interface
    starts with.
    """

    cidr: str = ""
    bridge: str = ""
    prefix: str = ""


class NodePortTargets(Value, frozen=True):
    """Addresses of this node on which node ports answer.

    ``all`` every local address; otherwise ``addresses`` only. ``localhost``: 127.0.0.0/8 as well
    (IPv4 and the modes that can; never ::1).
    """

    all: bool = True
    addresses: tuple[str, ...] = ()
    localhost: bool = True


class IpvsSettings(Value, frozen=True):
    """What only ipvs mode asks of the operator.

    ``exclude_cidrs`` (of this family): virtual servers there are somebody else's. Time-outs are
    seconds, 0 leaves the kernel's. ``drain_seconds``: how long an endpoint that went keeps its TCP
    connections.
    """

    scheduler: str = "rr"
    exclude_cidrs: tuple[str, ...] = ()
    strict_arp: bool = False
    tcp_timeout: int = 0
    tcp_fin_timeout: int = 0
    udp_timeout: int = 0
    drain_seconds: float = 900.0


class UserspaceSettings(Value, frozen=True):
    """What only userspace mode asks of the operator, for one family.

    ``listen`` is the address of all relay ports, "" the unspecified one. ``port_range`` are the
    first and the last port to choose from, None: the kernel chooses. ``workers`` are threads, 0:
    as many as the machine has use for. The rest are seconds; ``drain_seconds``: how long flows may
    go on after a successor has taken over.
    """

    listen: str = ""
    port_range: tuple[int, int] | None = None
    workers: int = 0
    tcp_idle_seconds: float = 86400.0
    udp_idle_seconds: float = 30.0
    drain_seconds: float = 900.0


class FastpathSettings(Value, frozen=True):
    """What only fastpath mode asks of the operator.

    ``workers`` are threads and queues, 0: as many as the machine has use for. ``max_flows`` at a
    time; ``drain_seconds``: how long connections to an endpoint that went are carried on. ``seed``
    decides which endpoint a client gets: 16 bytes, b"" for one that the node keeps for itself.
    ``new_per_second``: connections of each family that are begun, 0: what the threads can carry.
    """

    workers: int = 0
    max_flows: int = 262_144
    new_per_second: int = 0
    drain_seconds: float = 900.0
    seed: bytes = b""


class NftablesSettings(Value, frozen=True):
    """What only nftables mode asks of the operator. ``choice``: how endpoints are picked where a
    Service says nothing of it, ``random`` or ``hash`` (of the client)."""

    choice: str = "random"


class ModeSettings(Value, frozen=True):
    """What the operator asks of single modes, for one family: each looks at its own field."""

    ipvs: IpvsSettings = IpvsSettings()
    userspace: UserspaceSettings = UserspaceSettings()
    fastpath: FastpathSettings = FastpathSettings()
    nftables: NftablesSettings = NftablesSettings()


class NodeSettings(Value, frozen=True):
    """This node and the operator's choices, for one family; a change here changes every rule.

    ``detector`` None: pods' traffic cannot be told apart. ``masquerade_bit`` is the bit number of
    the packet mark (0–31). ``addresses`` are this node's own of the family, primary first.
    ``service_cidrs`` are the ranges that cluster IPs come from, when known.

    ``local_addresses`` are all of this namespace but loopback's and link-local ones, for modes
    that have to name them one by one; in userspace mode those of ``addresses`` that are of this
    namespace; () in the others. ``ipvs`` and ``userspace`` matter in the
    mode of that name only. ``health`` is for services that say nothing of it themselves.
    """

    name: str
    zone: str = ""
    addresses: tuple[str, ...] = ()
    detector: LocalDetector | None = None
    masquerade_all: bool = False
    masquerade_bit: int = 14
    node_port_targets: NodePortTargets = NodePortTargets()
    service_cidrs: tuple[str, ...] = ()
    local_addresses: tuple[str, ...] = ()
    ipvs: IpvsSettings = IpvsSettings()
    userspace: UserspaceSettings = UserspaceSettings()
    health: HealthSettings = HealthSettings()

    @property
    def masquerade_mark(self) -> int:
        return 1 << self.masquerade_bit


class Snapshot(Value, frozen=True, eq=False):
    """The plan of one family. Shares every unchanged :class:`PortPlan` with its predecessor.

    ``generation`` counts up. ``base`` is the generation that ``changed`` and ``removed`` are
    relative to; None means that everything has to be looked at (first plan, changed settings).
    ``changed`` names ports that are new or differ (all of them when ``base`` is None), ``removed``
    ports of the predecessor that are gone. ``endpoint_count`` is the sum of
    ``len(endpoints.all)``. ``conflicts`` are the addresses and ports that services lost to others,
    sorted, and the checks that are not allowed here. Treat ``ports`` as read-only; its order means
    nothing.

    ``health`` has the verdicts on ports whose endpoints are judged by more than the API; they are
    shared with the predecessor likewise, and all of it is when none differs. A Snapshot may differ
    from its predecessor in ``health`` alone.
    """

    family: Family
    settings: NodeSettings
    ports: Mapping[PortName, PortPlan]
    generation: int = 1
    base: int | None = None
    changed: frozenset[PortName] = frozenset()
    removed: frozenset[PortName] = frozenset()
    endpoint_count: int = 0
    conflicts: tuple[Refusal, ...] = ()
    health: Mapping[PortName, PortHealth] = {}
