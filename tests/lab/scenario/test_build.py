"""The network that a scenario becomes: who lives where, behind which link, with what to answer."""

from __future__ import annotations

import ipaddress

import pytest
from msgspec import structs

from kproxy.core.objects import Family, Protocol
from kproxy.lab.network import MAX_INTERFACE_NAME, RouteKind
from kproxy.lab.plan import plan
from kproxy.lab.scenario.build import NODE, NODE2, OTHERS, OUTSIDE, WORLD, build, node_spots
from kproxy.lab.scenario.schema import Expect, Scenario, SenderKind, parse

TEXT = """
name: everything
config: {config}
node: {{name: n1, ips: [192.168.0.2, '2001:db8::1']}}
objects:
- apiVersion: v1
  kind: Service
  metadata: {{namespace: a, name: s}}
  spec: {{clusterIP: 172.30.0.1, clusterIPs: [172.30.0.1, 'fd00::1'],
          externalIPs: [203.0.113.200, 7]}}
  status: {{loadBalancer: {{ingress: [{{ip: 1.2.3.4}}, {{hostname: x}}]}}}}
- {{kind: Service, spec: null, status: 3}}
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {{namespace: a, name: s-1}}
  ports: [{{port: 8080, protocol: TCP}}, {{port: 53, protocol: UDP}}, {{port: 9, protocol: SCTP}},
          {{port: x}}]
  endpoints:
  - {{addresses: [10.1.0.1], nodeName: n1}}
  - {{addresses: [10.1.1.1], nodeName: n2}}
  - {{addresses: ['2001:db8:a::1']}}
  - {{addresses: [127.0.0.1, nonsense, 192.168.0.2]}}
  - null
flows:
- {{from: 10.1.0.9, from_kind: pod, to: 172.30.0.1, port: 80, expect: {{verdict: DROP}}}}
- {{from: 10.1.0.1, from_kind: pod, to: 192.168.0.2, port: 30080, expect: {{verdict: DROP}}}}
- {{from: 127.0.0.1, from_kind: node, to: 127.0.0.1, port: 30080, expect: {{verdict: DROP}}}}
- {{from: 192.168.0.2, from_kind: node, to: 192.168.0.2, port: 81, proto: UDP,
   expect: {{verdict: DROP}}}}
- {{from: 203.0.113.9, from_kind: external, to: 1.2.3.4, port: 80, expect: {{verdict: DROP}}}}
- {{from: 1.2.3.4, from_kind: external, to: 1.2.3.4, port: 80, expect: {{verdict: DROP}}}}
- {{from: 10.9.0.9, from_kind: other-node-pod, to: 172.30.0.1, port: 80, expect: {{verdict: DROP}}}}
updates:
- apply:
  - kind: EndpointSlice
    ports: [{{port: 8081, protocol: TCP}}]
    endpoints: [{{addresses: [10.1.1.1], nodeName: n2}}, {{addresses: [10.1.0.5], nodeName: n1}}]
  - kind: List
    items: [{{kind: Endpoints, subsets: [{{addresses: [{{ip: 10.1.2.1}}], ports: [{{port: 1}}]}}]}}]
"""


def scenario(config: str = "{}") -> Scenario:
    (case,) = parse(TEXT.format(config=config), where="x")
    assert isinstance(case, Scenario), case
    return case


def test_every_address_has_a_home() -> None:
    """Local endpoints and pods sit on the node, other endpoints behind the second one."""
    layout = build(scenario(), "t")
    assert layout.homes["192.168.0.2"] == layout.homes["2001:db8::1"] == NODE
    assert layout.homes["203.0.113.9"] == OUTSIDE
    assert layout.homes["10.9.0.9"] == OTHERS
    assert layout.homes.keys().isdisjoint({"127.0.0.1", "1.2.3.4"})
    beside = {
        address: {
            end.host
            for link in layout.network.links
            for end in (link.a, link.b)
            if host in (link.a.host, link.b.host)
        }
        - {host}
        for address, host in layout.homes.items()
        if host not in (NODE, NODE2)
    }
    for address in ("10.1.0.1", "10.1.0.5", "10.1.0.9"):
        assert beside[address] == {NODE}
    for address in ("10.1.1.1", "2001:db8:a::1", "10.1.2.1"):
        assert beside[address] == {NODE2}


def test_endpoints_answer_all_their_ports_of_all_steps() -> None:
    """Ports of every slice of every step, of all protocols; the node's own address too."""
    layout = build(scenario(), "t")
    found = {
        (listener.address, listener.port, listener.protocol)
        for _, host, listener in layout.listeners
        if host != WORLD
    }
    for address in ("10.1.0.1", "10.1.1.1", "2001:db8:a::1", "192.168.0.2"):
        assert {(address, 8080, Protocol.TCP), (address, 53, Protocol.UDP)} <= found
    assert ("10.1.1.1", 8081, Protocol.TCP) in found
    assert ("10.1.2.1", 1, Protocol.TCP) in found
    assert any(protocol is Protocol.SCTP for _, _, protocol in found)


def test_the_world_answers_every_port_in_use() -> None:
    """A wildcard listener for each port of a flow, and LOCAL default routes of both families."""
    layout = build(scenario(), "t")
    world = {(one.port, one.protocol) for _, host, one in layout.listeners if host == WORLD}
    assert {(80, Protocol.TCP), (30080, Protocol.TCP), (81, Protocol.UDP)} <= world
    routes = layout.network.host(WORLD).routes
    local = {route.destination for route in routes if route.kind is RouteKind.LOCAL}
    assert local == {"0.0.0.0/0", "::/0"}


def test_crafted_packets_come_from_outside() -> None:
    """A source that is a service address is crafted, and enters from the underlay; the node and
    endpoints own theirs."""
    case = scenario()
    layout = build(case, "t")
    assert [layout.crafted(flow) for flow in case.flows] == [False] * 5 + [True, False]
    assert layout.sender(case.flows[5]) == OUTSIDE
    assert layout.sender(case.flows[2]) == layout.sender(case.flows[3]) == NODE
    assert layout.vips == {"172.30.0.1", "fd00::1", "203.0.113.200", "1.2.3.4"}


def test_links_of_the_node_carry_transfer_addresses() -> None:
    """Each link has one on the node's side, of the range that no scenario uses, none twice."""
    network = build(scenario(), "t").network
    node = network.host(NODE)
    ranges = [ipaddress.ip_network(text) for text in ("198.18.0.0/15", "fd98::/32")]
    links = {link.a.interface for link in network.links if link.a.host == NODE}
    carrying = {address.interface for address in node.addresses if address.interface != "lo"}
    assert carrying == links
    transfers = [
        address.cidr
        for host in network.hosts
        for address in host.addresses
        if any(ipaddress.ip_interface(address.cidr).ip in one for one in ranges)
    ]
    assert len(transfers) == len(set(transfers)) > len(links)


def test_a_bridge_detector_gets_its_bridge() -> None:
    """Pods hang on the bridge, nobody else does, and the bridge holds the gateway addresses."""
    layout = build(scenario("{detectLocal: {mode: BridgeInterface, name: cni0}}"), "t")
    node = layout.network.host(NODE)
    assert node.bridges == ("cni0",)
    pods = {layout.homes[address] for address in ("10.1.0.1", "10.1.0.5", "10.1.0.9")}
    on_bridge = {link.b.host for link in layout.network.links if link.a.bridge == "cni0"}
    assert on_bridge == pods
    assert {route.interface for route in node.routes if route.destination == "10.1.0.1/32"} == {
        "cni0"
    }


@pytest.mark.parametrize("prefix", ["cali", "to-", "t", "veth"])
def test_a_prefix_detector_sees_pods_and_only_pods(prefix: str) -> None:
    """Whatever the prefix is, interfaces of pods have it and those of others have not."""
    text = f"{{detectLocal: {{mode: InterfaceNamePrefix, name: '{prefix}'}}}}"
    layout = build(scenario(text), "t")
    pods = {layout.homes[address] for address in ("10.1.0.1", "10.1.0.5", "10.1.0.9")}
    for link in layout.network.links:
        if link.a.host == NODE:
            assert link.a.interface.startswith(prefix) is (link.b.host in pods)
            assert len(link.a.interface) <= MAX_INTERFACE_NAME


def test_nothing_is_named_twice() -> None:
    """Interfaces are unique on their host, hosts in the network; the plan can be made."""
    network = build(scenario(), "t").network
    names = [host.name for host in network.hosts]
    assert len(names) == len(set(names))
    ends = [(end.host, end.interface) for link in network.links for end in (link.a, link.b)]
    assert len(ends) == len(set(ends))
    assert {host for host, _ in ends} == set(names)
    assert plan(None, network)


def test_listeners_of_the_node_stand_where_flows_go() -> None:
    """On the node's own and loopback addresses, on every address for those to a service address,
    and only on ports that flows use."""
    case = scenario()
    assert node_spots(case, case.flows) == (
        ("", 80, Protocol.TCP),
        ("127.0.0.1", 30080, Protocol.TCP),
        ("192.168.0.2", 81, Protocol.UDP),
        ("192.168.0.2", 30080, Protocol.TCP),
    )


def test_no_trap_where_endpoints_are_expected() -> None:
    """A daemon that listens everywhere stands only where it must not be reached."""
    case = scenario()
    refused = next(flow for flow in case.flows if flow.to == "172.30.0.1")
    served = structs.replace(refused, expect=Expect(endpoints=("10.1.0.1:8080",)))
    assert node_spots(case, [served]) == ()
    assert node_spots(case, [served, refused]) == (("", 80, Protocol.TCP),)


def test_the_node_may_leave_its_source_to_the_kernel() -> None:
    """Such a flow is the node's, and nobody gets the address that is none."""
    case = scenario()
    flows = tuple(
        structs.replace(case.flows[0], source=source, from_kind=SenderKind.NODE)
        for source in ("0.0.0.0", "::")
    )
    layout = build(structs.replace(case, flows=flows), "t")
    assert [layout.sender(flow) for flow in flows] == [NODE, NODE]
    assert not {"0.0.0.0", "::"} & layout.homes.keys()


def test_both_families_reach_the_world() -> None:
    """The node's default routes go there."""
    layout = build(scenario(), "t")
    defaults = {
        route.destination: route.via
        for route in layout.network.host(NODE).routes
        if route.destination in ("0.0.0.0/0", "::/0")
    }
    assert defaults == {
        "0.0.0.0/0": layout.control[Family.IPV4],
        "::/0": layout.control[Family.IPV6],
    }


def test_packets_astray_are_crafted_and_their_sender_is_at_home() -> None:
    """A loopback address as destination: no socket sends that, but answers must find the way."""
    flow = "{from: 203.0.113.2, from_kind: external, to: 127.0.0.1, port: 22, hold: h}"
    (case,) = parse(f"{{name: a, flows: [{flow}]}}", where="here")
    assert isinstance(case, Scenario)
    layout = build(case, "a")
    assert layout.crafted(case.flows[0])
    assert layout.homes["203.0.113.2"] == OUTSIDE
