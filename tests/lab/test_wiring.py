"""The address plan, the placement of pods, and the network that comes of them."""

from __future__ import annotations

import ipaddress

import msgspec
import pytest

from kproxy.core.objects import Family
from kproxy.errors import LabError
from kproxy.lab import catalogue, wiring
from kproxy.lab.model import LabState, Pod
from kproxy.lab.network import MAX_INTERFACE_NAME, Network, RouteKind, Shape
from kproxy.lab.topology import MAX_PODS_PER_NODE, LinkSpec, Topology, Workload
from kproxy.lab.topology_file import parse


def lab_of(topology: Topology) -> LabState:
    """A lab of that topology, pods placed, network not yet worked out."""
    return wiring.place(
        LabState("t", topology, "iptables", "nft", Network("t"), workloads=topology.workloads)
    )


def network_of(lab: LabState) -> Network:
    return wiring.network(lab.name, lab.topology, lab.workloads, lab.pods)


def resized(lab: LabState, replicas: int) -> LabState:
    """The first workload with another number of replicas, pods placed."""
    first, *others = lab.workloads
    first = msgspec.structs.replace(first, replicas=replicas)
    return wiring.place(msgspec.structs.replace(lab, workloads=(first, *others)))


@pytest.fixture
def standard() -> LabState:
    return lab_of(catalogue.load("standard"))


def test_pods_are_spread_and_numbered(standard: LabState) -> None:
    """Each workload takes the nodes in turn; both families carry the same numbers."""
    assert [(pod.name, pod.node, pod.addresses) for pod in standard.pods] == [
        ("web-0", "node1", ("10.244.1.2", "fd00:10:244:1::2")),
        ("web-1", "node2", ("10.244.2.2", "fd00:10:244:2::2")),
        ("echo-0", "node1", ("10.244.1.3", "fd00:10:244:1::3")),
        ("echo-1", "node2", ("10.244.2.3", "fd00:10:244:2::3")),
    ]


def test_placing_again_changes_nothing(standard: LabState) -> None:
    """A lab that is as its workloads say is left alone."""
    assert wiring.place(standard) == standard


def test_scaling_down_takes_the_newest_and_up_gives_new_addresses(standard: LabState) -> None:
    """A new pod gets neither the name nor the addresses of one that has gone."""
    smaller = resized(standard, 1)
    assert [pod.name for pod in smaller.pods] == ["web-0", "echo-0", "echo-1"]
    larger = resized(smaller, 3)
    names = [pod.name for pod in larger.pods if pod.workload == "web"]
    assert names == ["web-0", "web-2", "web-3"]
    old = {a for pod in standard.pods for a in pod.addresses}
    new = {a for pod in larger.pods if pod.name in ("web-2", "web-3") for a in pod.addresses}
    assert not old & new


def test_a_workload_keeps_to_its_nodes() -> None:
    """``nodes`` of a workload limits where its pods may be."""
    text = "name: t\nnodes: [{name: a}, {name: b}]\nworkloads: [{name: w, replicas: 3, nodes: [b]}]"
    assert {pod.node for pod in lab_of(parse(text, "t")).pods} == {"b"}


def test_a_pod_takes_no_name_of_a_node() -> None:
    """Hosts of a lab have one name space."""
    text = "name: t\nnodes: [{name: w-0}]\nworkloads: [{name: w}]"
    assert [pod.name for pod in lab_of(parse(text, "t")).pods] == ["w-1"]


def test_a_full_node_is_an_error() -> None:
    """A node has so many pod addresses; the message says so."""
    topology = catalogue.scaled(catalogue.load("single"), pods=MAX_PODS_PER_NODE)
    lab = lab_of(topology)
    assert len({a for pod in lab.pods for a in pod.addresses}) == 2 * MAX_PODS_PER_NODE
    with pytest.raises(LabError, match="no address left"):
        resized(lab, MAX_PODS_PER_NODE + 1)


@pytest.mark.parametrize("name", ["standard", "single", "wide"])
def test_addresses_are_canonical_unique_and_in_their_ranges(name: str) -> None:
    """No two hosts share an address, and every pod is inside its node's range."""
    lab = lab_of(catalogue.scaled(catalogue.load(name), nodes=12, pods=20))
    cidrs = [
        address.cidr
        for host in network_of(lab).hosts
        for address in host.addresses
        if not address.cidr.startswith("fe80::1/")
    ]
    assert len(cidrs) == len(set(cidrs))
    assert cidrs == [str(ipaddress.ip_interface(cidr)) for cidr in cidrs]
    for pod in lab.pods:
        ranges = wiring.pod_cidrs(lab.topology, pod.node)
        for address, cidr, whole in zip(
            pod.addresses, ranges, wiring.CLUSTER_CIDRS.values(), strict=True
        ):
            assert ipaddress.ip_address(address) in ipaddress.ip_network(cidr)
            assert ipaddress.ip_address(address) in ipaddress.ip_network(whole)


def test_ranges_do_not_overlap() -> None:
    """Pods, services, balancers and the underlay are apart."""
    lab = lab_of(catalogue.load("standard"))
    for family in Family:
        ranges = [
            ipaddress.ip_network(plan[family])
            for plan in (wiring.CLUSTER_CIDRS, wiring.SERVICE_CIDRS, wiring.LB_CIDRS)
        ]
        underlay = [
            ipaddress.ip_network(address.cidr, strict=False)
            for address in network_of(lab).host("node1").addresses
            if address.interface == "eth0"
        ]
        ranges += [net for net in underlay if net.version == family]
        assert not any(a.overlaps(b) for a in ranges for b in ranges if a is not b)


def test_every_reference_of_a_network_exists(standard: LabState) -> None:
    """Links join hosts that are there; addresses and routes sit on interfaces that are there."""
    network = network_of(standard)
    names = {host.name for host in network.hosts}
    ends = [end for link in network.links for end in (link.a, link.b)]
    assert {end.host for end in ends} <= names
    assert len({(end.host, end.interface) for end in ends}) == len(ends)
    for host in network.hosts:
        interfaces = {"lo", "", *host.bridges} | {e.interface for e in ends if e.host == host.name}
        assert {address.interface for address in host.addresses} <= interfaces
        assert {route.interface for route in host.routes} <= interfaces


def test_a_node_refuses_pods_that_are_not_there(standard: LabState) -> None:
    """Its own range is unreachable but for the host routes to its pods."""
    routes = {route.destination: route for route in network_of(standard).host("node1").routes}
    assert routes["10.244.1.0/24"].kind is RouteKind.UNREACHABLE
    assert routes["10.244.1.2/32"].interface == "veth-web-0"
    assert routes["10.244.2.0/24"].via == "192.168.100.12"


@pytest.mark.parametrize("family", list(Family))
def test_one_family_leaves_nothing_of_the_other(family: Family) -> None:
    """A single-stack lab has addresses and routes of its family only."""
    topology = msgspec.structs.replace(catalogue.load("standard"), families=(family,))
    network = network_of(lab_of(topology))
    texts = [a.cidr for h in network.hosts for a in h.addresses]
    texts += [r.destination for h in network.hosts for r in h.routes]
    assert texts
    assert {(":" in text) for text in texts} == {family is Family.IPV6}


def test_links_have_the_nature_that_was_asked_for() -> None:
    """Node, client and workload links take mtu and shape from the topology."""
    slow = LinkSpec(1400, Shape(rate=1000))
    topology = catalogue.load("standard")
    topology = msgspec.structs.replace(
        topology,
        workloads=tuple(msgspec.structs.replace(w, link=slow) for w in topology.workloads),
        nodes=tuple(msgspec.structs.replace(n, link=slow) for n in topology.nodes),
    )
    network = network_of(lab_of(topology))
    natures = {link.a.host: (link.mtu, link.shape.rate) for link in network.links}
    assert natures.pop("client") == (1500, 0)
    assert set(natures.values()) == {(1400, 1000)}


@pytest.mark.parametrize("name", ["web-0", "a", "a-workload-with-a-long-name-0", "x" * 40])
def test_interface_names_fit(name: str) -> None:
    """The kernel takes 15 bytes; different pods get different names."""
    made = wiring.pod_interface(name)
    assert made.startswith("veth-")
    assert len(made) <= MAX_INTERFACE_NAME
    assert made != wiring.pod_interface(name + "1")


def test_a_pod_tells_its_address_of_a_family() -> None:
    """A pod without an address of a family has none to tell."""
    pod = Pod("p", "n", "w", (), ("10.0.0.1",), ())
    assert (pod.address(Family.IPV4), pod.address(Family.IPV6)) == ("10.0.0.1", "")


def test_pods_of_a_workload_that_is_gone_go() -> None:
    """Placement removes pods that belong to nothing."""
    lab = lab_of(catalogue.load("standard"))
    lab = wiring.place(msgspec.structs.replace(lab, workloads=(Workload("web", 2),)))
    assert {pod.workload for pod in lab.pods} == {"web"}
