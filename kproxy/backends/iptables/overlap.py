"""Addresses of this node that a service has for itself, kept from the node ports of others. Pure.

An external IP or load-balancer address may be the node's own, and its port the number of another
service's node port. What its owner does not translate (it has no endpoints, none for this client,
or the source is out of range) falls out of its rules, and the rules by port alone would take it
then: with kube-proxy another service answers. Here the address stays its owner's
(:mod:`kproxy.core.conflicts`). Rules stand only where the numbers meet: ordinary nodes have none of
them, and the text remains kube-proxy's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain as joined

from kproxy.backends.iptables import chains
from kproxy.backends.iptables.service import Context, PortChains, refusals
from kproxy.backends.xtables.rules import Return, Rule, Table
from kproxy.backends.xtables.text import host
from kproxy.core.objects import PortName, Protocol, Value
from kproxy.core.snapshot import PortPlan


class Overlap(Value, frozen=True):
    """``head`` stands before the services' lines of its chains, ``tail`` after them."""

    head: tuple[Rule, ...] = ()
    tail: tuple[Rule, ...] = ()


def overlap(plans: Iterable[PortPlan], context: Context) -> Overlap:
    """The rules for all plans of a Snapshot; the order of ``plans`` is that of the rules."""
    plans = list(plans)
    node_ports = {(plan.protocol, plan.node_port): plan.name for plan in plans if plan.node_port}
    health_checks = {plan.health_check_node_port for plan in plans}
    head: list[Rule] = []
    tail: list[Rule] = []
    for plan in plans:
        if not (plan.external_ips or plan.load_balancer_ips):
            continue
        taken = node_ports.get((plan.protocol, plan.port))
        checked = plan.protocol is Protocol.TCP and plan.port in health_checks
        if taken is None and not checked:
            continue
        names = PortChains(plan)
        if taken is not None and not names.external_policy:
            # In front of another service's refusal by port alone.
            head += refusals(plan, names, context)
        if checked:
            head += _left_alone(plan, names, context, Table.FILTER, chains.NODE_PORTS)
        if _may_fall_out(plan, names, taken):
            tail += _left_alone(plan, names, context, Table.NAT, chains.SERVICES)
    return Overlap(tuple(head), tuple(tail))


def _may_fall_out(plan: PortPlan, names: PortChains, taken: PortName | None) -> bool:
    """Whether something may reach a node port that must not. A service's own node port treats
    its packets no differently, but for the source ranges."""
    if taken is None:
        return False
    return bool(names.firewall) or (taken != plan.name and not names.external_policy)


def _left_alone(
    plan: PortPlan, names: PortChains, context: Context, table: Table, chain: str
) -> Iterator[Rule]:
    for address in joined(plan.external_ips, plan.load_balancer_ips):
        yield Rule(
            table,
            chain,
            Return(),
            comment=f"{names.label} before node ports",
            protocol=names.protocol,
            destination=host(address, context.family),
            dport=plan.port,
        )
