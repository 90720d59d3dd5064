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
    """All but the last two are about flows that are sent, those about checks of held ones."""

    OTHER_PORT = "other-port-of-a-service-address"
    INSIDE_LOCAL = "inside-client-of-local-policy"
    LOOPBACK_NODE_PORT = "node-port-on-loopback"
    NODE_TO_ITSELF = "node-to-its-own-address"
    FROM_A_SERVICE_ADDRESS = "from-a-service-address-outside"
    SERVICE_PORT_GONE = "service-port-is-gone"
    UDP_ENDPOINT_DRAINS = "udp-endpoint-drains"


class Known(Value, frozen=True):
    """``facts`` of one flow; ``local``: where the service it is sent to has endpoints on this node,
    ``ip:port``, sorted."""

    facts: frozenset[Fact] = frozenset()
    local: tuple[str, ...] = ()


class World(Value, frozen=True):
    """The plans of this node in both families, and all of its own addresses but VIPs."""

    plans: Sequence[PortPlan]
    node: Collection[str]

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


def known(world: World, flow: Flow, held: Flow | None = None) -> Known:
    """What ``world`` says about a flow; ``held`` is the one that it checks."""
    plan = world.way(held or flow)
    local = plan.endpoints.local or () if plan is not None else ()
    tests = _OF_CHECKS if held is not None else _OF_FLOWS
    return Known(
        facts=frozenset(fact for fact, holds in tests.items() if holds(world, held or flow, plan)),
        local=tuple(sorted(str(end) for end in local)),
    )


_Test = Callable[[World, Flow, PortPlan | None], bool]


def _other_port(world: World, flow: Flow, plan: PortPlan | None) -> bool:
    return plan is None and flow.to in world.vips()


def _inside_local(world: World, flow: Flow, plan: PortPlan | None) -> bool:
    return (
        plan is not None
        and flow.to != plan.cluster_ip
        and plan.external_policy is TrafficPolicy.LOCAL
        and flow.from_kind in (SenderKind.POD, SenderKind.NODE)
        and bool(plan.endpoints.local)
    )


def _loopback_node_port(world: World, flow: Flow, plan: PortPlan | None) -> bool:
    return ip_address(flow.to).is_loopback and any(
        (flow.port, flow.proto) == (each.node_port, each.protocol) for each in world.plans
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
    Fact.INSIDE_LOCAL: _inside_local,
    Fact.LOOPBACK_NODE_PORT: _loopback_node_port,
    Fact.NODE_TO_ITSELF: _node_to_itself,
    Fact.FROM_A_SERVICE_ADDRESS: _from_a_service_address,
}
_OF_CHECKS: dict[Fact, _Test] = {
    Fact.SERVICE_PORT_GONE: _gone,
    Fact.UDP_ENDPOINT_DRAINS: _udp_drains,
}
