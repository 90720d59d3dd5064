"""Decides on the network of a scenario. Pure.

::

      pods ── node ── node2 ── endpoints elsewhere
               │ ├─── outside (every sender outside, crafted packets)
               │ └─── others (pods of other nodes that send)
             world (default route: answers every address on every port in use)

Everything that the node does not own itself lies behind a link of its own, and everything passes
the node: what an endpoint sees is then the proxy's doing alone. Endpoints on other nodes answer
through this node as well; for a flow that keeps its client's address that is not how a cluster
routes, but there the proxy's work ends with the packet it sent, and the answer carries what the
endpoint saw back to the judge.

The node's side of every link has a transfer address from 198.18.0.0/15 (fd98::/32), so a
masqueraded source always differs from the sender's, also when the node is the sender.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from kproxy.core.objects import Family, Protocol, Value, family_of
from kproxy.lab.network import (
    BASE_SYSCTLS,
    FORWARDING_SYSCTLS,
    Address,
    End,
    Host,
    Link,
    Network,
    Route,
    RouteKind,
)
from kproxy.lab.scenario.inventory import Endpoint, endpoints_of, service_addresses
from kproxy.lab.scenario.schema import Flow, Scenario, SenderKind
from kproxy.lab.scenario.settings import detection
from kproxy.lab.traffic.responder import Listener

NODE, NODE2, WORLD, OUTSIDE, OTHERS = "node", "node2", "world", "outside", "others"

#: Answers on the world's own address whatever the proxy does: proof that the way there is open.
CONTROL_PORT = 65535

_TRANSFER = {
    Family.IPV4: (ipaddress.ip_network("198.18.0.0/15"), 32),
    Family.IPV6: (ipaddress.ip_network("fd98::/32"), 128),
}
_DEFAULT = {Family.IPV4: "0.0.0.0/0", Family.IPV6: "::/0"}
_TABLE_LOCAL = 255


class Layout(Value, frozen=True):
    """The network, and who is where in it.

    ``homes`` gives the host of every address that is not the world's; ``listeners`` are
    (owner, host, listener) of all endpoints and of the world; ``vips`` every service address;
    ``control`` the world's own addresses.
    """

    network: Network
    homes: dict[str, str]
    endpoints: tuple[Endpoint, ...]
    listeners: tuple[tuple[str, str, Listener], ...]
    vips: frozenset[str]
    control: dict[Family, str]

    def crafted(self, flow: Flow) -> bool:
        """Whether the flow's first packet cannot come from a socket of its sender."""
        return astray(flow) or is_crafted(flow, self.vips, self.owned)

    @property
    def owned(self) -> frozenset[str]:
        """Addresses of endpoints and of the node."""
        node = (address for address, host in self.homes.items() if host == NODE)
        return frozenset((*node, *(endpoint.address for endpoint in self.endpoints)))

    def sender(self, flow: Flow) -> str:
        """The host that sends a flow."""
        if self.crafted(flow):
            return OUTSIDE
        return NODE if flow.from_kind is SenderKind.NODE else self.homes[flow.source]


def is_crafted(flow: Flow, vips: frozenset[str], owned: frozenset[str]) -> bool:
    """A source that is a service address, or the destination itself, belongs to nobody who could
    send from it; unless an endpoint or the node has that address (``owned``)."""
    if flow.from_kind is SenderKind.NODE or flow.source in owned:
        return False
    return flow.source in vips or flow.source == flow.to


def astray(flow: Flow) -> bool:
    """Sent to a loopback address by somebody else: no stack lets such a packet leave."""
    loopback = ipaddress.ip_address(flow.to).is_loopback
    return loopback and flow.from_kind is not SenderKind.NODE


def build(scenario: Scenario, lab: str) -> Layout:
    """The network of all steps of a scenario."""
    drawing = _Drawing(scenario, lab)
    drawing.place_node()
    drawing.place_endpoints()
    drawing.place_senders()
    drawing.place_world()
    return drawing.layout()


class _Drawing:
    """Collects hosts and links while the scenario is placed part by part."""

    def __init__(self, scenario: Scenario, lab: str) -> None:
        self.scenario = scenario
        self.lab = lab
        self.endpoints = endpoints_of(scenario)
        self.vips = service_addresses(scenario)
        self.homes: dict[str, str] = {}
        self.addresses: dict[str, list[Address]] = {}
        self.routes: dict[str, list[Route]] = {}
        self.links: list[Link] = []
        self.listeners: list[tuple[str, str, Listener]] = []
        self.control: dict[Family, str] = {}
        found = detection(scenario)
        self.bridge = found.name if found and found.mode == "BridgeInterface" else ""
        self.prefix = found.name if found and found.mode == "InterfaceNamePrefix" else ""
        self._serial = 0
        self._bridge_gateways: dict[Family, str] = {}
        self._world_gateways: dict[Family, str] = {}
        self._far: dict[str, dict[Family, str]] = {}

    def host(self, name: str) -> str:
        self.addresses.setdefault(name, [])
        self.routes.setdefault(name, [])
        return name

    def transfer(self) -> dict[Family, str]:
        """The next free transfer address of each family."""
        self._serial += 1
        return {family: str(network[self._serial]) for family, (network, _) in _TRANSFER.items()}

    def place_node(self) -> None:
        self.host(NODE)
        for address in self.scenario.node.ips:
            self.own(NODE, "lo", address)
        if self.bridge:
            for family, address in self.transfer().items():
                self.add_address(NODE, self.bridge, address)
                self._bridge_gateways[family] = address

    def own(self, host: str, interface: str, address: str) -> None:
        """``address`` lives on ``host``."""
        if address not in self.homes:
            self.homes[address] = host
            self.add_address(host, interface, address)

    def add_address(self, host: str, interface: str, address: str) -> None:
        length = _TRANSFER[family_of(address)][1]
        self.addresses[host].append(Address(interface, f"{address}/{length}"))

    def place_endpoints(self) -> None:
        pods = {flow.source for flow in self.flows(SenderKind.POD)}
        for number, endpoint in enumerate(self.endpoints):
            address = endpoint.address
            if address not in self.homes:  # else the node's own: its namespace answers
                name = f"ep{number}"
                if endpoint.local or address in pods:
                    self.add_pod(name, address)
                else:
                    self.add_remote(name, address)
            for port, protocol in endpoint.ports:
                listener = Listener("endpoint", port, protocol, address)
                self.listeners.append((address, self.homes[address], listener))

    def add_pod(self, name: str, address: str) -> None:
        """A namespace of its own on this node, wired as the detector expects pods to be."""
        self.host(name)
        port = f"{self.prefix or 'veth'}{len(self.links)}"
        self.links.append(Link(End(NODE, port, self.bridge), End(name, "eth0")))
        family = family_of(address)
        if self.bridge:
            device, gateway = self.bridge, self._bridge_gateways[family]
        else:
            device, gateway = port, self.transfer()[family]
            self.add_address(NODE, port, gateway)
        self.own(name, "eth0", address)
        self.routes[NODE].append(Route(_one(address), device))
        self.routes[name].append(Route(_DEFAULT[family], "eth0", via=gateway))

    def add_remote(self, name: str, address: str) -> None:
        """A namespace behind the second node."""
        if NODE2 not in self.addresses:
            self.uplink(NODE2)
        self.host(name)
        port = f"veth{len(self.links)}"
        self.links.append(Link(End(NODE2, port), End(name, "eth0")))
        family = family_of(address)
        gateway = self.transfer()[family]
        self.add_address(NODE2, port, gateway)
        self.own(name, "eth0", address)
        self.routes[NODE2].append(Route(_one(address), port))
        self.routes[NODE].append(
            Route(_one(address), self.uplink_name(NODE2), via=self._far[NODE2][family])
        )
        self.routes[name].append(Route(_DEFAULT[family], "eth0", via=gateway))

    def uplink_name(self, host: str) -> str:
        """The node's interface towards a host that is no pod: never with the pods' prefix."""
        name = f"to-{host}"
        return f"x{name}" if self.prefix and name.startswith(self.prefix) else name

    def uplink(self, host: str, *, table: int = 0) -> None:
        """A host that is no pod, with transfer addresses at both ends and everything via node."""
        self.host(host)
        device = self.uplink_name(host)
        self.links.append(Link(End(NODE, device), End(host, "eth0")))
        near, far = self.transfer(), self.transfer()
        self._far[host] = far
        for family in Family:
            self.add_address(NODE, device, near[family])
            self.add_address(host, "eth0", far[family])
            self.routes[NODE].append(Route(_one(far[family]), device))
            if host == WORLD:
                network = str(_TRANSFER[family][0])
                self.routes[host].append(Route(network, "eth0", via=near[family], table=table))
                self._world_gateways[family] = near[family]
            else:
                self.routes[host].append(Route(_DEFAULT[family], "eth0", via=near[family]))

    def flows(self, *kinds: SenderKind) -> Iterable[Flow]:
        sent = (flow for flow in self.scenario.all_flows if not flow.check)
        return [flow for flow in sent if flow.from_kind in kinds]

    def place_senders(self) -> None:
        for flow in self.flows(SenderKind.NODE):
            source = ipaddress.ip_address(flow.source)
            if not source.is_loopback and not source.is_unspecified:  # else the kernel's choice
                self.own(NODE, "lo", flow.source)
        for number, flow in enumerate(self.flows(SenderKind.POD)):
            if flow.source not in self.homes and not self.is_crafted(flow):
                self.add_pod(f"pod{number}", flow.source)
        for kind, host in ((SenderKind.OTHER_NODE_POD, OTHERS), (SenderKind.EXTERNAL, OUTSIDE)):
            for flow in self.flows(kind):
                if flow.source not in self.homes and not self.is_crafted(flow):
                    self.add_outsider(host, flow.source)
        if OUTSIDE not in self.addresses and any(
            self.is_crafted(flow) for flow in self.scenario.all_flows if not flow.check
        ):
            self.uplink(OUTSIDE)

    def is_crafted(self, flow: Flow) -> bool:
        owned = {endpoint.address for endpoint in self.endpoints} | set(self.scenario.node.ips)
        return is_crafted(flow, self.vips, frozenset(owned))

    def add_outsider(self, host: str, address: str) -> None:
        if host not in self.addresses:
            self.uplink(host)
        self.own(host, "eth0", address)
        self.routes[NODE].append(Route(_one(address), self.uplink_name(host)))

    def place_world(self) -> None:
        """LOCAL routes make every address the world's own; what lives elsewhere goes back.

        They stand in the local table because Linux lets a socket answer from an address only if
        that table calls it local; the longer routes beside them win for everybody else's.
        """
        self.uplink(WORLD, table=_TABLE_LOCAL)
        self.control = self._far[WORLD]
        device = self.uplink_name(WORLD)
        for family in Family:
            self.routes[NODE].append(Route(_DEFAULT[family], device, via=self.control[family]))
            everything = Route(_DEFAULT[family], "lo", kind=RouteKind.LOCAL)
            self.routes[WORLD].append(everything)
        self.routes[WORLD].append(Route("fe80::/10", "eth0", table=_TABLE_LOCAL))
        for address in self.homes:
            gateway = self._world_gateways[family_of(address)]
            self.routes[WORLD].append(Route(_one(address), "eth0", via=gateway, table=_TABLE_LOCAL))
        spots = {(flow.port, flow.proto) for flow in self.scenario.all_flows if not flow.check}
        spots |= {(CONTROL_PORT, Protocol.TCP), (CONTROL_PORT, Protocol.UDP)}
        self.listeners += [
            (WORLD, WORLD, Listener(WORLD, port, protocol))
            for port, protocol in sorted(spots)
            if protocol is not Protocol.SCTP
        ]

    def layout(self) -> Layout:
        hosts = tuple(
            Host(
                name,
                tuple(self.addresses[name]),
                tuple(self.routes[name]),
                FORWARDING_SYSCTLS if name in (NODE, NODE2) else BASE_SYSCTLS,
                (self.bridge,) if name == NODE and self.bridge else (),
            )
            for name in self.addresses
        )
        return Layout(
            Network(self.lab, hosts, tuple(self.links)),
            self.homes,
            self.endpoints,
            tuple(self.listeners),
            self.vips,
            self.control,
        )


def _one(address: str) -> str:
    return f"{address}/{_TRANSFER[family_of(address)][1]}"


def node_spots(scenario: Scenario, flows: Iterable[Flow]) -> tuple[tuple[str, int, Protocol], ...]:
    """(address, port, protocol) of the node's own that flows are sent to.

    The address is "" (every one) where a verdict is expected of a service address: in a mode that
    makes it the node's own, a daemon of the host that listens everywhere must not be reached.
    """
    own = set(scenario.node.ips)
    vips = service_addresses(scenario)
    spots = set()
    for flow in flows:
        if flow.check or flow.proto is Protocol.SCTP:
            continue
        if flow.to in own or ipaddress.ip_address(flow.to).is_loopback:
            spots.add((flow.to, flow.port, flow.proto))
        elif flow.to in vips and flow.expect is not None and flow.expect.verdict is not None:
            spots.add(("", flow.port, flow.proto))
    return tuple(sorted(spots))
