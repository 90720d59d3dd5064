"""Whole clusters for hypothesis, small and crowded, and the packets worth sending into them.

Everything is drawn from few addresses, so that services dispute them, pods are in several slices
and services, and every kind of address is met by every kind of client. An endpoint's node and
hints are facts of its address: entries that contradict each other have no right answer.
"""

from __future__ import annotations

from itertools import cycle, product

from hypothesis import strategies as st

from kproxy.backends.iptables.walk import Packet
from kproxy.core.objects import (
    EndpointSlice,
    Family,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
    SlicePort,
    family_of,
)
from tests.property.model import World
from tests.property.strategies import NODES, ZONES, policies

V4, V6 = Family.IPV4, Family.IPV6
TCP, UDP, SCTP = Protocol

NODE = "node1"
CLUSTER_IPS = {V4: ("172.30.0.1", "172.30.0.2", "172.30.0.3"), V6: ("fd00:30::1", "fd00:30::2")}
#: The node's own: two that its Node object names, and one on the bridge of its pods.
OWN = {
    V4: ("192.168.0.2", "192.168.0.3", "10.180.0.254"),
    V6: ("2001:db8::2", "2001:db8::3", "fd00:10::fe"),
}
#: The last one is the node's own.
BALANCERS = {
    V4: ("203.0.113.1", "203.0.113.2", OWN[V4][1]),
    V6: ("fd00:40::1", "fd00:40::2", OWN[V6][1]),
}
#: An address of nobody else, the node's, another service's cluster IP or balancer.
EXTERNALS = {
    family: (ip, OWN[family][0], CLUSTER_IPS[family][0], BALANCERS[family][0])
    for family, ip in ((V4, "198.51.100.1"), (V6, "fd00:50::1"))
}
#: The last one is the node's own: a pod in the node's network.
PODS = {
    V4: ("10.180.0.1", "10.180.0.2", "10.180.0.3", "10.180.1.1", OWN[V4][0]),
    V6: ("fd00:10::1", "fd00:10::2", "fd00:10::3", "fd00:10::1:1", OWN[V6][0]),
}
POD_RANGES = {V4: "10.180.0.0/16", V6: "fd00:10::/64"}
LOOPBACK = {V4: "127.0.0.1", V6: "::1"}
NOBODY = {V4: "172.30.255.1", V6: "fd00:30::ffff"}

#: A service's port may have the number of a node port or of a health check.
PORTS, NODE_PORTS, HEALTH_PORTS = (80, 80, 81, 30080, 30081), (30080, 30081), (32000, 30081)

#: (address, device) of those who send from outside this node's own network namespace.
SENDERS = {
    V4: (
        ("10.180.0.1", "cni0"),
        ("10.180.0.2", "veth2"),
        ("10.180.1.1", "eth0"),
        ("192.0.2.7", "eth0"),
        ("203.0.113.77", "eth0"),
    ),
    V6: (
        ("fd00:10::1", "cni0"),
        ("fd00:10::2", "veth2"),
        ("fd00:10::1:1", "eth0"),
        ("2001:db8:1::7", "eth0"),
        ("fd00:99::77", "eth0"),
    ),
}
_OUTSIDE = ("192.0.2.0/24", "2001:db8:1::/48")
_PRIMARY = ("192.168.0.2/32", "2001:db8::2/128")
_SECOND = ("192.168.0.3/32", "2001:db8::3/128")
#: Ranges of clients outside, of the node's primary address and of its other one; of both families
#: or of one; more often none.
SOURCE_RANGES = (
    *((),) * 3,
    _OUTSIDE,
    _PRIMARY,
    (*_OUTSIDE, *_PRIMARY),
    (*_OUTSIDE, *_SECOND),
    _OUTSIDE[:1],
    _OUTSIDE[1:],
    _PRIMARY[:1],
    _PRIMARY[1:],
)

DETECTORS = (
    None,
    ("cidr", POD_RANGES),
    ("cidr", {V4: "0.0.0.0/0", V6: "::/0"}),
    ("bridge", {V4: "cni0", V6: "cni0"}),
    ("prefix", {V4: "veth", V6: "veth"}),
)
NODE_PORT_ADDRESSES = (
    (),
    ("all",),
    ("primary",),
    ("localhost",),
    ("primary", "localhost"),
    ("192.168.0.3/32", "2001:db8::3/128"),
    ("192.168.0.0/24", "2001:db8::/64"),
    ("127.0.0.0/8",),
    ("10.180.0.0/16", "127.0.0.0/8", "2001:db8::/64"),
)

#: (ready, serving, terminating), the ordinary more often.
CONDITIONS = (
    (True, True, False),
    (True, True, False),
    (True, True, False),
    (False, True, True),
    (False, True, True),
    (True, True, True),
    (False, False, True),
    (False, True, False),
    (False, False, False),
)


#: Of all types, those with more ways in more often.
TYPES = (
    *ServiceType,
    *(ServiceType.CLUSTER_IP, ServiceType.NODE_PORT) * 2,
    *(ServiceType.LOAD_BALANCER,) * 5,
)


def _subsets(addresses):
    """None to all of a family's addresses, of both families; lists of hypothesis are too short."""
    return st.tuples(*(st.booleans() for _ in range(2 * len(addresses[V4])))).map(
        lambda taken: tuple(ip for ip, take in zip((*addresses[V4], *addresses[V6]), taken) if take)
    )


service_ports = st.lists(
    st.builds(
        ServicePort,
        name=st.sampled_from(("", "http")),
        protocol=st.sampled_from((TCP, TCP, UDP, SCTP)),
        port=st.sampled_from(PORTS),
        node_port=st.sampled_from((*NODE_PORTS, 0)),
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda port: (port.name, port.protocol),
).map(tuple)

cluster_ips = st.one_of(
    st.tuples(st.sampled_from(CLUSTER_IPS[V4]), st.sampled_from(CLUSTER_IPS[V6])),
    st.tuples(st.sampled_from(CLUSTER_IPS[V6]), st.sampled_from(CLUSTER_IPS[V4])),
    st.tuples(st.sampled_from(CLUSTER_IPS[V4])),
    st.tuples(st.sampled_from(CLUSTER_IPS[V6])),
)


@st.composite
def services(draw, name):
    ranges = draw(st.sampled_from(SOURCE_RANGES))
    return Service(
        namespace=draw(st.sampled_from(("ns", "other"))),
        name=name,
        type=draw(st.sampled_from(TYPES)),
        cluster_ips=draw(cluster_ips),
        ports=draw(service_ports),
        external_ips=draw(_subsets(EXTERNALS)),
        load_balancer_ips=draw(_subsets(BALANCERS)),
        source_ranges=ranges,
        source_ranges_set=bool(ranges),
        affinity_seconds=draw(st.sampled_from((None, None, 30, 10800))),
        internal_policy=draw(policies),
        external_policy=draw(policies),
        health_check_node_port=draw(st.sampled_from((0, *HEALTH_PORTS))),
        created=draw(st.sampled_from((0.0, 1.0, 2.0))),
        ignored=draw(st.sampled_from((*("",) * 11, "another proxy's"))),
        source_ranges_broken=bool(ranges) and draw(st.sampled_from((False, False, True))),
    )


def _hints_of(names):
    """Mostly one or both; hints count only where no pod is without."""
    return (*((name,) for name in names), *((name,) for name in names), names, ())


@st.composite
def facts(draw):
    """address -> (node, zone hints, node hints). Hints come for most pods or for none."""
    zones = draw(st.sampled_from(((), ("a", "b"))))
    nodes = draw(st.sampled_from(((), (), ("node1", "node2"))))
    hints, node_hints = (st.sampled_from(_hints_of(names)) for names in (zones, nodes))
    one = st.tuples(st.sampled_from(NODES), hints, node_hints)
    return {
        address: draw(one) if address not in (OWN[V4][0], OWN[V6][0]) else (NODE, *draw(one)[1:])
        for family in Family
        for address in PODS[family]
    }


@st.composite
def slices_of(draw, service, pods, family):
    found = []
    for number in range(draw(st.sampled_from((0, 1, 1, 2, 2)))):
        ports = [
            SlicePort(port.name, port.protocol, draw(st.sampled_from((8080, 8081))))
            for port in service.ports
        ]
        entry = st.tuples(st.sampled_from(PODS[family]), st.sampled_from(CONDITIONS))
        entries = tuple(
            SliceEndpoint(address, *condition, pods[address][0], "", *pods[address][1:])
            for address, condition in draw(st.lists(entry, min_size=1, max_size=4))
        )
        name = f"{service.name}-{family}-{number}"
        found.append(
            EndpointSlice(service.namespace, name, service.name, family, tuple(ports), entries)
        )
    return found


@st.composite
def worlds(draw):
    """One to four services, their slices in both families, and a node with its settings."""
    pods = draw(facts())
    offered = [draw(services(name)) for name in "abcd"[: draw(st.integers(1, 4))]]
    own = tuple(ip for family in Family for ip in OWN[family])
    standing = draw(st.sampled_from(((), (), (*BALANCERS[V4][:2], *BALANCERS[V6][:2]))))
    pieces = [
        piece
        for service in offered
        for family in Family
        for piece in draw(slices_of(service, pods, family))
    ]
    return World(
        services=tuple(offered),
        slices=tuple(pieces),
        node=NODE,
        zone=draw(st.sampled_from(ZONES)),
        addresses=(*OWN[V4][:2], *OWN[V6][:2]),
        local=(*own, *standing),
        detector=draw(st.sampled_from(DETECTORS)),
        masquerade_all=draw(st.sampled_from((False, False, True))),
        node_port_addresses=draw(st.sampled_from((*NODE_PORT_ADDRESSES, (), ()))),
        localhost_node_ports=draw(st.booleans()),
        drop_invalid=draw(st.booleans()),
        asks_sets=draw(st.sampled_from((True, True, False))),
    )


def targets(world: World, family: Family):
    """(address, protocol, port) of what any service asks for, served or not, and some of nobody.

    Addresses of services stand there several times: node ports are on every address of the node,
    and would take most of the packets.
    """
    found = [(NOBODY[family], TCP, 80), (OWN[family][0], TCP, 80), (LOOPBACK[family], TCP, 80)]
    for service in world.services:
        addresses = (*service.cluster_ips, *service.external_ips, *service.load_balancer_ips)
        for port in service.ports:
            found += [(ip, port.protocol, port.port) for ip in addresses] * 3
            if service.type is ServiceType.LOAD_BALANCER:
                balancers = service.load_balancer_ips
                found += [(ip, port.protocol, port.port) for ip in balancers] * 5
            if port.node_port:
                places = (*world.local, LOOPBACK[family], NOBODY[family], PODS[family][3])
                found += [(ip, port.protocol, port.node_port) for ip in places]
        if service.health_check_node_port:
            found.append((OWN[family][0], TCP, service.health_check_node_port))
    return [target for target in found if family_of(target[0]) is family]


def packets(world: World, family: Family) -> list[Packet]:
    """Every client to every target, and for each target three packets that are no first ones:
    one of them comes from where an endpoint may be."""
    aims = targets(world, family)
    own = [(ip, "") for ip in world.local if family_of(ip) is family]
    outside, device = SENDERS[family][3]
    found = []
    pods = cycle(product(PODS[family], (8080, 8081)))
    for aim in aims:
        clients = [*SENDERS[family], *own]
        if aim[0] == LOOPBACK[family]:
            clients.append((LOOPBACK[family], ""))
        found += [Packet(source, *aim, device) for source, device in clients]
        found += [Packet(outside, *aim, device, state) for state in ("INVALID", "ESTABLISHED")]
        pod, port = next(pods)
        found.append(Packet(pod, *aim, device, "INVALID", port))
    return found
