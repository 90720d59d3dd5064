"""The address plan of a lab, and the network that a topology and its pods ask for. Pure.

::

    underlay    192.168.100.0/24        fd00:192:168:100::/64       router .1, nodes .11 and up,
                                                                    clients .201 and up
    pods        10.244.<node>.0/24      fd00:10:244:<node>::/64     node .1, pods .2 and up
    services    10.96.0.0/16            fd00:10:96::/112
    balancers   198.51.100.0/24         fd00:198:51:100::/112       routed to the first node

Numbers are written in decimal in both families (pod 12 of node 3 is 10.244.3.12 and
fd00:10:244:3::12), so that a reader finds the other one without a calculator. All labs use the same
plan: they live in namespaces of their own and never meet.

::

    pod eth0 ── veth-<pod> node eth0 ── <node> underlay <client> ── eth0 client
                                               (bridge br0, router)

A node routes to each of its pods by a host route and to the other nodes' pods through them. The
underlay knows the pods' networks as well, so that a client reaches a pod as in a routed cluster;
service addresses it does not know.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable

import msgspec

from kproxy.core.objects import Family
from kproxy.errors import LabError
from kproxy.lab.model import LabState, Pod
from kproxy.lab.network import (
    BASE_SYSCTLS,
    FORWARDING_SYSCTLS,
    MAX_INTERFACE_NAME,
    Address,
    End,
    Host,
    Link,
    Network,
    Route,
    RouteKind,
)
from kproxy.lab.topology import MAX_PODS_PER_NODE, UNDERLAY, LinkSpec, Topology, Workload

SERVICE_CIDRS = {Family.IPV4: "10.96.0.0/16", Family.IPV6: "fd00:10:96::/112"}

#: Load-balancer addresses. The router sends them to the first node, as one BGP peer would get them.
LB_CIDRS = {Family.IPV4: "198.51.100.0/24", Family.IPV6: "fd00:198:51:100::/112"}

#: All pods of all nodes: what a cluster calls its cluster CIDR.
CLUSTER_CIDRS = {Family.IPV4: "10.244.0.0/16", Family.IPV6: "fd00:10:244::/48"}

#: Where nodes and clients are joined.
UNDERLAY_CIDRS = {Family.IPV4: "192.168.100.0/24", Family.IPV6: "fd00:192:168:100::/64"}

_UNDERLAY = {Family.IPV4: "192.168.100.{}", Family.IPV6: "fd00:192:168:100::{}"}
_POD = {Family.IPV4: "10.244.{}.{}", Family.IPV6: "fd00:10:244:{}::{}"}
_POD_CIDR = {Family.IPV4: "10.244.{}.0/24", Family.IPV6: "fd00:10:244:{}::/64"}
_LENGTH = {Family.IPV4: "/24", Family.IPV6: "/64"}
_ONE = {Family.IPV4: "/32", Family.IPV6: "/128"}
_DEFAULT = {Family.IPV4: "0.0.0.0/0", Family.IPV6: "::/0"}

#: A pod's IPv6 next hop. Unlike ARP, neighbour discovery answers only for addresses of the very
#: interface, so every veth of a node carries this one.
_POD_GATEWAY_6 = "fe80::1"

_ROUTER, _FIRST_NODE, _FIRST_CLIENT = 1, 11, 201
_BRIDGE = "br0"


# --- addresses --------------------------------------------------------------------------------


def node_addresses(topology: Topology, node: str) -> tuple[str, ...]:
    """A node's addresses on the underlay, one a family, IPv4 first: its InternalIPs."""
    return _underlay_addresses(topology, _FIRST_NODE + _index(topology, node))


def client_addresses(topology: Topology, client: str) -> tuple[str, ...]:
    """A client's addresses on the underlay, one a family, IPv4 first."""
    at = next(i for i, spec in enumerate(topology.clients) if spec.name == client)
    return _underlay_addresses(topology, _FIRST_CLIENT + at)


def pod_cidrs(topology: Topology, node: str) -> tuple[str, ...]:
    """The ranges of a node's pods, one a family, IPv4 first: its ``spec.podCIDRs``."""
    number = _index(topology, node) + 1
    return tuple(_POD_CIDR[family].format(number) for family in topology.families)


def _index(topology: Topology, node: str) -> int:
    return next(i for i, spec in enumerate(topology.nodes) if spec.name == node)


def _underlay_addresses(topology: Topology, number: int) -> tuple[str, ...]:
    return tuple(_UNDERLAY[family].format(number) for family in topology.families)


def _pod_addresses(topology: Topology, node: str, number: int) -> tuple[str, ...]:
    at = _index(topology, node) + 1
    return tuple(_POD[family].format(at, number) for family in topology.families)


# --- pods -------------------------------------------------------------------------------------


def place(state: LabState) -> LabState:
    """Make ``pods`` agree with ``workloads``: the result has as many of each as it has replicas.

    Missing ones get a new name, the node with the fewest of their kind, and addresses that were not
    given out lately; of surplus ones the newest go. ``network`` is left as it is.
    """
    known = {(load.namespace, load.name) for load in state.workloads}
    state = msgspec.structs.replace(
        state, pods=tuple(p for p in state.pods if (p.namespace, p.workload) in known)
    )
    for load in state.workloads:
        mine = pods_of(state, load)
        surplus = set(mine[load.replicas :])
        if surplus:
            kept = tuple(pod for pod in state.pods if pod not in surplus)
            state = msgspec.structs.replace(state, pods=kept)
        for _ in range(load.replicas - len(mine)):
            state = add_pod(state, load)
    return state


def pods_of(state: LabState, load: Workload) -> tuple[Pod, ...]:
    """Pods of one workload, oldest first."""
    return tuple(p for p in state.pods if (p.namespace, p.workload) == (load.namespace, load.name))


def add_pod(state: LabState, load: Workload, node: str = "") -> LabState:
    """One more pod of a workload at the end of ``pods``, on ``node`` or on the emptiest one."""
    counters = dict(state.counters)
    node = node or _emptiest(state, load)
    name = _next_name(state, load, counters)
    pod = Pod(
        name=name,
        node=node,
        workload=load.name,
        labels=load.labels,
        addresses=_next_addresses(state, node, counters),
        ports=load.ports,
        namespace=load.namespace,
        probes=load.probes,
    )
    return msgspec.structs.replace(state, pods=(*state.pods, pod), counters=counters)


def _emptiest(state: LabState, load: Workload) -> str:
    """The allowed node with the fewest pods of this workload, then of any, then the first."""
    same = Counter(pod.node for pod in pods_of(state, load))
    every = Counter(pod.node for pod in state.pods)
    return min(load.nodes or state.nodes, key=lambda node: (same[node], every[node]))


def _next_name(state: LabState, load: Workload, counters: dict[str, int]) -> str:
    taken = {pod.name for pod in state.pods} | {*state.topology.hosts, UNDERLAY}
    key = f"workload/{load.namespace}/{load.name}"
    while True:
        counters[key] = counters.get(key, -1) + 1
        name = f"{load.name}-{counters[key]}"
        if name not in taken:
            return name


def _next_addresses(state: LabState, node: str, counters: dict[str, int]) -> tuple[str, ...]:
    """The next free ones after the last that this node gave out, so that an old one rests."""
    taken = {address for pod in state.pods for address in pod.addresses}
    key = f"node/{node}"
    for _ in range(MAX_PODS_PER_NODE):
        counters[key] = 2 + (counters.get(key, 1) - 1) % MAX_PODS_PER_NODE
        addresses = _pod_addresses(state.topology, node, counters[key])
        if not taken.intersection(addresses):
            return addresses
    raise LabError(
        f"{node} has no address left for another pod",
        hint=f"a node has room for {MAX_PODS_PER_NODE}; use more nodes",
    )


# --- network ----------------------------------------------------------------------------------


def network(
    lab: str, topology: Topology, workloads: Iterable[Workload], pods: Iterable[Pod]
) -> Network:
    """Hosts and links of a lab: the underlay, nodes, clients and pods, in this order."""
    by_node: dict[str, list[Pod]] = {node.name: [] for node in topology.nodes}
    links_of = {(load.namespace, load.name): load.link for load in workloads}
    for pod in pods:
        by_node[pod.node].append(pod)
    hosts = [_underlay(topology)]
    links: list[Link] = []
    for node in topology.nodes:
        hosts.append(_node(topology, node.name, by_node[node.name]))
        links.append(_uplink(node.name, node.link))
    for client in topology.clients:
        hosts.append(_client(topology, client.name))
        links.append(_uplink(client.name, client.link))
    for node in topology.nodes:
        for pod in by_node[node.name]:
            hosts.append(_pod(topology, pod))
            spec = links_of.get((pod.namespace, pod.workload), LinkSpec())
            ends = End(pod.name, "eth0"), End(node.name, pod_interface(pod.name))
            links.append(Link(*ends, mtu=spec.mtu, shape=spec.shape))
    return Network(lab, tuple(hosts), tuple(links))


def pod_interface(pod: str) -> str:
    """Name of a pod's link on its node: ``veth-<pod>``, a hash in place of a pod's long name."""
    return _short(f"veth-{pod}", "veth-")


def _short(name: str, prefix: str = "") -> str:
    if len(name) <= MAX_INTERFACE_NAME:
        return name
    return prefix + hashlib.sha256(name.encode()).hexdigest()[: MAX_INTERFACE_NAME - len(prefix)]


def _uplink(host: str, spec: LinkSpec) -> Link:
    port = End(UNDERLAY, _short(host), _BRIDGE)
    return Link(End(host, "eth0"), port, mtu=spec.mtu, shape=spec.shape)


def _underlay(topology: Topology) -> Host:
    return Host(
        UNDERLAY,
        addresses=_on_link(topology, _BRIDGE, _ROUTER),
        routes=(*_to_pods(topology), *_to_balancers(topology)),
        sysctls=FORWARDING_SYSCTLS,
        bridges=(_BRIDGE,),
    )


def _to_pods(topology: Topology) -> tuple[Route, ...]:
    return tuple(
        Route(cidr, _BRIDGE, via=address)
        for node in topology.nodes
        for cidr, address in _ranges_behind(topology, node.name)
    )


def _to_balancers(topology: Topology) -> tuple[Route, ...]:
    first = node_addresses(topology, topology.nodes[0].name)
    return tuple(
        Route(LB_CIDRS[family], _BRIDGE, via=address)
        for family, address in zip(topology.families, first, strict=True)
    )


def _on_link(topology: Topology, interface: str, number: int) -> tuple[Address, ...]:
    return tuple(
        Address(interface, _UNDERLAY[family].format(number) + _LENGTH[family])
        for family in topology.families
    )


def _ranges_behind(topology: Topology, node: str) -> Iterable[tuple[str, str]]:
    """(pod range, the node's address that leads there), one a family."""
    return zip(pod_cidrs(topology, node), node_addresses(topology, node), strict=True)


def _to_router(topology: Topology) -> tuple[Route, ...]:
    return tuple(
        Route(_DEFAULT[family], "eth0", via=_UNDERLAY[family].format(_ROUTER))
        for family in topology.families
    )


def _node(topology: Topology, name: str, pods: Iterable[Pod]) -> Host:
    at = _index(topology, name)
    addresses = list(_on_link(topology, "eth0", _FIRST_NODE + at))
    own = zip(topology.families, _pod_addresses(topology, name, 1), strict=True)
    addresses += [Address("lo", address + _ONE[family]) for family, address in own]
    # A pod that is gone is refused at once instead of being sent up to the router and back.
    routes = [Route(cidr, kind=RouteKind.UNREACHABLE) for cidr in pod_cidrs(topology, name)]
    for other in topology.nodes:
        if other.name != name:
            ranges = _ranges_behind(topology, other.name)
            routes += [Route(cidr, "eth0", via=address) for cidr, address in ranges]
    sources = node_addresses(topology, name)
    for pod in pods:
        interface = pod_interface(pod.name)
        if Family.IPV6 in topology.families:
            addresses.append(Address(interface, _POD_GATEWAY_6 + "/64"))
        for family, address, source in zip(topology.families, pod.addresses, sources, strict=True):
            routes.append(Route(address + _ONE[family], interface, source=source))
    return Host(
        name,
        addresses=tuple(addresses),
        routes=(*_to_router(topology), *routes),
        sysctls=FORWARDING_SYSCTLS,
    )


def _client(topology: Topology, name: str) -> Host:
    at = next(i for i, spec in enumerate(topology.clients) if spec.name == name)
    return Host(
        name,
        addresses=_on_link(topology, "eth0", _FIRST_CLIENT + at),
        routes=_to_router(topology),
        sysctls=BASE_SYSCTLS,
    )


def _pod(topology: Topology, pod: Pod) -> Host:
    gateways = {Family.IPV4: _pod_addresses(topology, pod.node, 1)[0], Family.IPV6: _POD_GATEWAY_6}
    return Host(
        pod.name,
        addresses=tuple(
            Address("eth0", address + _ONE[family])
            for family, address in zip(topology.families, pod.addresses, strict=True)
        ),
        routes=tuple(
            Route(_DEFAULT[family], "eth0", via=gateways[family]) for family in topology.families
        ),
        sysctls=BASE_SYSCTLS,
    )
