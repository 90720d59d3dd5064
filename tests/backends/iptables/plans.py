"""Service ports of every shape that gives different rules, and Snapshots of them."""

from __future__ import annotations

from itertools import product

from msgspec.structs import replace

from kproxy.backends.iptables.service import Context
from kproxy.core.objects import Family, PortName, Protocol, TrafficPolicy
from kproxy.core.snapshot import (
    Endpoint,
    EndpointSets,
    LocalDetector,
    NodePortTargets,
    NodeSettings,
    PortPlan,
    Snapshot,
)

CLUSTER, LOCAL = TrafficPolicy.CLUSTER, TrafficPolicy.LOCAL
V4, V6 = Family.IPV4, Family.IPV6

#: family -> (cluster IP, external IP, load-balancer IP, node IP, pods, permitted ranges)
ADDRESSES = {
    V4: (
        "172.30.0.41",
        "198.51.100.7",
        "203.0.113.7",
        "192.168.0.2",
        ("10.180.0.1", "10.180.0.2", "10.180.0.3"),
        ("203.0.113.0/25", "192.168.0.0/24"),
    ),
    V6: (
        "fd00:30::41",
        "2001:db8:1::7",
        "2001:db8:2::7",
        "2001:db8::1",
        ("fd00:10::1", "fd00:10::2", "fd00:10::3"),
        ("2001:db8:3::/64", "2001:db8::/64"),
    ),
}
POD_RANGE = {V4: "10.180.0.0/16", V6: "fd00:10::/64"}

DETECTORS = {
    "none": lambda family: None,
    "cidr": lambda family: LocalDetector(cidr=POD_RANGE[family]),
    "all": lambda family: LocalDetector(cidr={V4: "0.0.0.0/0", V6: "::/0"}[family]),
    "bridge": lambda family: LocalDetector(bridge="cbr0"),
    "prefix": lambda family: LocalDetector(prefix="veth"),
}


def settings(family: Family = V4, detector: str = "cidr", **fields: object) -> NodeSettings:
    """Settings of a node with one address; a detector by its name in :data:`DETECTORS`."""
    values = {"addresses": (ADDRESSES[family][3],), "detector": DETECTORS[detector](family)}
    return NodeSettings("node1", **{**values, **fields})  # type: ignore[arg-type]


def context(family: Family = V4, detector: str = "cidr", **fields: object) -> Context:
    flags = {
        name: fields.pop(name)
        for name in ("brief", "random_fully", "drop_invalid", "endpoint_set", "counters")
        if name in fields
    }
    return Context(family, settings(family, detector, **fields), **flags)  # type: ignore[arg-type]


def endpoints(family: Family, count: int) -> tuple[Endpoint, ...]:
    """The first of them is on this node."""
    pods = ADDRESSES[family][4][:count]
    return tuple(Endpoint(ip, 80, local=index == 0) for index, ip in enumerate(pods))


def port(
    name: str = "svc1",
    family: Family = V4,
    *,
    pods: int = 2,
    local_pods: int = 1,
    ways: str = "",
    internal: TrafficPolicy = CLUSTER,
    external: TrafficPolicy = CLUSTER,
    protocol: Protocol = Protocol.TCP,
    affinity: int | None = None,
    restricted: bool = False,
    health: int = 0,
    number: int = 80,
) -> PortPlan:
    """A service port. ``ways`` are letters: c cluster IP (default alone), n node port, e external
    IP, l load balancer. Which sets are used follows from policies and ways, as the planner does."""
    ways = ways or "c"
    cluster_ip, external_ip, balancer, _, _, ranges = ADDRESSES[family]
    every = endpoints(family, pods)
    entry = bool(set(ways) & set("nel"))
    near = every[:local_pods]
    uses_local = internal is LOCAL or (external is LOCAL and entry)
    uses_cluster = internal is CLUSTER or entry
    chosen = every if uses_cluster else near
    return PortPlan(
        name=PortName("ns1", name, "p80", protocol),
        port=number,
        endpoints=EndpointSets(
            cluster=every if uses_cluster else None,
            local=near if uses_local else None,
            all=chosen,
            has_any=bool(every),
        ),
        cluster_ip=cluster_ip if "c" in ways else "",
        node_port=30080 if "n" in ways else 0,
        external_ips=(external_ip,) if "e" in ways else (),
        load_balancer_ips=(balancer,) if "l" in ways else (),
        source_ranges=ranges if restricted else (),
        restricted=restricted,
        affinity_seconds=affinity,
        internal_policy=internal,
        external_policy=external,
        health_check_node_port=health,
    )


def weighed(plan: PortPlan, *weights: int) -> PortPlan:
    """The same with other weights of its endpoints, in the order of the family's pods."""
    sets, six = plan.endpoints, ":" in plan.endpoints.all[0].ip
    by_ip = dict(zip(ADDRESSES[V6 if six else V4][4], weights))

    def by_weight(ends: tuple[Endpoint, ...] | None) -> tuple[Endpoint, ...] | None:
        return ends and tuple([replace(end, weight=by_ip[end.ip]) for end in ends])

    cluster, local = by_weight(sets.cluster), by_weight(sets.local)
    chosen = by_weight(sets.all) or ()
    return replace(plan, endpoints=replace(sets, cluster=cluster, local=local, all=chosen))


#: Every combination that changes which rules there are.
MATRIX: list[tuple[Family, PortPlan]] = [
    (
        family,
        port(
            f"svc{number}",
            family,
            pods=pods,
            local_pods=local_pods,
            ways=ways,
            internal=internal,
            external=external,
            protocol=protocol,
            affinity=affinity,
            restricted=restricted and "l" in ways,
            health=health if "l" in ways else 0,
        ),
    )
    for number, (family, pods, local_pods, ways, internal, external, rest) in enumerate(
        product(
            (V4, V6),
            (0, 1, 3),
            (0, 1),
            ("c", "cn", "ce", "cnl", "nel"),
            (CLUSTER, LOCAL),
            (CLUSTER, LOCAL),
            (
                (Protocol.TCP, None, False, 0),
                (Protocol.UDP, 10800, True, 0),
                (Protocol.SCTP, None, True, 32000),
            ),
        )
    )
    for protocol, affinity, restricted, health in (rest,)
    if local_pods <= pods
]


def snapshot(
    *plans: PortPlan,
    family: Family = V4,
    settings_: NodeSettings | None = None,
    generation: int = 1,
    endpoint_count: int | None = None,
) -> Snapshot:
    """A Snapshot that has to be looked at whole."""
    count = sum(len(plan.endpoints.all) for plan in plans)
    return Snapshot(
        family=family,
        settings=settings(family) if settings_ is None else settings_,
        ports={plan.name: plan for plan in plans},
        generation=generation,
        changed=frozenset(plan.name for plan in plans),
        endpoint_count=count if endpoint_count is None else endpoint_count,
    )


def successor(before: Snapshot, *new: PortPlan, removed: tuple[PortName, ...] = ()) -> Snapshot:
    """The Snapshot after ``before``, with new or changed ports and without removed ones."""
    ports = {**before.ports, **{plan.name: plan for plan in new}}
    for name in removed:
        del ports[name]
    return Snapshot(
        family=before.family,
        settings=before.settings,
        ports=ports,
        generation=before.generation + 1,
        base=before.generation,
        changed=frozenset(plan.name for plan in new),
        removed=frozenset(removed),
        endpoint_count=sum(len(plan.endpoints.all) for plan in ports.values()),
    )


NO_LOCALHOST = NodePortTargets(all=True, localhost=False)
SOME_ADDRESSES = NodePortTargets(all=False, addresses=("192.168.0.2",), localhost=True)
