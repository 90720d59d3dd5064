"""What the objects of a step say about a flow: for exceptions that its fields do not tell. Pure.

A mode that differs on purpose does so for flows of a certain kind: to another port of a service
address, say. Scenarios know nothing of it; the plan of the node does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from enum import StrEnum
from ipaddress import ip_address

from kproxy.core.objects import Protocol, TrafficPolicy, Value
from kproxy.core.snapshot import PortPlan
from kproxy.lab.scenario.schema import Flow, SenderKind


class Fact(StrEnum):
    """Of flows that are sent, and from SERVICE_PORT_GONE on of checks of held ones."""

    OTHER_PORT = "other-port-of-a-service-address"
    OTHER_PORT_INSIDE = "other-port-of-a-cluster-ip"
    ON_LOOPBACK = "node-port-on-loopback"
    INSIDE_LOCAL = "inside-client-of-local-policy"
    NODE_TO_ITSELF = "node-to-its-own-address"
    FROM_A_SERVICE_ADDRESS = "from-a-service-address-outside"
    LONE_PACKET = "lone-packet-of-a-connection"
    STRAY_PACKET = "stray-packet-of-an-endpoint"
    HELD_ON_LOOPBACK = "node-port-held-on-loopback"
    PROXY_AWAY = "proxy-is-away"
    KNOWN_ELSEWHERE = "client-is-known-by-another-way-in"
    SERVICE_PORT_GONE = "service-port-is-gone"
    UDP_ENDPOINT_DRAINS = "udp-endpoint-drains"
    PROXY_ENDED = "proxy-has-ended-since"


class Known(Value, frozen=True):
    """``facts`` of one flow; ``local``: where the service it is sent to has endpoints on this node,
    ``ip:port``, sorted."""

    facts: frozenset[Fact] = frozenset()
    local: tuple[str, ...] = ()


class World(Value, frozen=True):
    """The plans of this node in both families, and all of its own addresses but VIPs.
    ``everywhere``: node ports answer on all of these. ``life`` is the proxy's that runs now, 0:
    there is none; ``ended`` those that were stopped or killed, with nobody to take over."""

    plans: Sequence[PortPlan]
    node: Collection[str]
    everywhere: bool = True
    life: int = 1
    ended: Collection[int] = ()

    def vips(self) -> frozenset[str]:
        """Addresses of services that are not the node's anyway."""
        found = {ip for plan in self.plans for ip in _vips(plan)}
        return frozenset(found.difference(self.node))

    def way(self, flow: Flow) -> PortPlan | None:
        """The service port that a flow is sent to."""
        return next((plan for plan in self.plans if self._leads(plan, flow)), None)

    def _leads(self, plan: PortPlan, flow: Flow) -> bool:
        if plan.protocol is not flow.proto:
            return False
        by_vip = flow.port == plan.port and flow.to in _vips(plan)
        return by_vip or (flow.port == plan.node_port and flow.to in self.node)


def _vips(plan: PortPlan) -> Iterable[str]:
    return filter(None, (plan.cluster_ip, *plan.external_ips, *plan.load_balancer_ips))


def like_of(flow: Flow, flows: Iterable[Flow]) -> Flow | None:
    """The one whose endpoint a flow is to get, among those of its scenario."""
    name = flow.expect.same_as if flow.expect is not None else ""
    return next((each for each in flows if name and each.name == name), None)


def known(
    world: World, flow: Flow, held: Flow | None = None, *, life: int = 0, like: Flow | None = None
) -> Known:
    """What ``world`` says about a flow; ``held`` is the one that it checks, ``life`` that of the
    proxy when it was sent, and ``like`` the one whose endpoint it is to get."""
    plan = world.way(held or flow)
    local = plan.endpoints.local or () if plan is not None else ()
    tests = _OF_CHECKS if held is not None else _OF_FLOWS
    facts = {fact for fact, holds in tests.items() if holds(world, held or flow, plan)}
    if held is not None and _ended(world, held, life):
        facts.add(Fact.PROXY_ENDED)
    if like is not None and _known_elsewhere(flow, like, plan):
        facts.add(Fact.KNOWN_ELSEWHERE)
    return Known(
        facts=frozenset(facts),
        local=tuple(sorted(str(end) for end in local)),
    )


_Test = Callable[[World, Flow, PortPlan | None], bool]


def _other_port(world: World, flow: Flow, plan: PortPlan | None) -> bool:
    return plan is None and flow.to in world.vips()


def _other_port_inside(world: World, flow: Flow, plan: PortPlan | None) -> bool:
    return plan is None and any(flow.to == each.cluster_ip for each in world.plans)


def _on_loopback(world: World, flow: Flow, plan: PortPlan | None) -> bool:
    ports = ((each.node_port, each.protocol) for each in world.plans)
    return ip_address(flow.to).is_loopback and (flow.port, flow.proto) in ports


def _inside_local(world: World, flow: Flow, plan: PortPlan | None) -> bool:
    return (
        plan is not None
        and flow.to != plan.cluster_ip
        and plan.external_policy is TrafficPolicy.LOCAL
        and flow.from_kind in (SenderKind.POD, SenderKind.NODE)
        and bool(plan.endpoints.local)
    )


def _node_to_itself(world: World, flow: Flow, plan: PortPlan | None) -> bool:
    listed = (flow.expect and flow.expect.endpoints) or ()
    own = {address for address in world.node if not ip_address(address).is_loopback}
    return flow.from_kind is SenderKind.NODE and any(_ip(end) in own for end in listed)


def _ip(endpoint: str) -> str:
    return endpoint.rpartition(":")[0].strip("[]")


def _from_a_service_address(world: World, flow: Flow, plan: PortPlan | None) -> bool:
    """In IPv4: IPv6 does not look for its own addresses among the sources of what arrives."""
    outside = flow.from_kind is not SenderKind.NODE and ":" not in flow.source
    return outside and flow.source in world.vips()


def _lone_packet(world: World, flow: Flow, plan: PortPlan | None) -> bool:
    """Crafted, because nobody has that source: its sender can complete no handshake."""
    if flow.proto is not Protocol.TCP or flow.from_kind is SenderKind.NODE:
        return False
    return flow.source in world.vips() or flow.source == flow.to


def _stray_packet(world: World, flow: Flow, plan: PortPlan | None) -> bool:
    ends = (end for each in world.plans for end in each.endpoints.all)
    return bool(flow.flags) and any(flow.source == end.ip for end in ends)


def _held_on_loopback(world: World, flow: Flow, plan: PortPlan | None) -> bool:
    return world.everywhere and _on_loopback(world, flow, plan)


def _away(world: World, flow: Flow, plan: PortPlan | None) -> bool:
    return not world.life


def _ended(world: World, held: Flow, life: int) -> bool:
    """A connection ends with the process that carries it, and no datagram gets on without one."""
    return not world.life or (held.proto is Protocol.TCP and life in world.ended)


def _known_elsewhere(flow: Flow, like: Flow, plan: PortPlan | None) -> bool:
    affine = plan is not None and plan.affinity_seconds is not None
    return affine and (flow.to, flow.port) != (like.to, like.port)


def _gone(world: World, held: Flow, plan: PortPlan | None) -> bool:
    return plan is None


def _udp_drains(world: World, held: Flow, plan: PortPlan | None) -> bool:
    """Its endpoint serves those who are there, and is chosen for nobody new."""
    if plan is None or held.proto is not Protocol.UDP or held.expect is None:
        return False
    chosen = {str(end) for end in plan.endpoints.all}
    spared = {str(end) for end in plan.endpoints.spared}
    had = held.expect.endpoints or ()
    return chosen.isdisjoint(had) and not spared.isdisjoint(had)


_OF_FLOWS: dict[Fact, _Test] = {
    Fact.OTHER_PORT: _other_port,
    Fact.OTHER_PORT_INSIDE: _other_port_inside,
    Fact.ON_LOOPBACK: _on_loopback,
    Fact.INSIDE_LOCAL: _inside_local,
    Fact.NODE_TO_ITSELF: _node_to_itself,
    Fact.FROM_A_SERVICE_ADDRESS: _from_a_service_address,
    Fact.LONE_PACKET: _lone_packet,
    Fact.STRAY_PACKET: _stray_packet,
    Fact.HELD_ON_LOOPBACK: _held_on_loopback,
    Fact.PROXY_AWAY: _away,
}
_OF_CHECKS: dict[Fact, _Test] = {
    Fact.SERVICE_PORT_GONE: _gone,
    Fact.UDP_ENDPOINT_DRAINS: _udp_drains,
}
