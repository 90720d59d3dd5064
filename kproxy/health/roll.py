"""Which health check node ports a family's Snapshots ask for, and what there is to tell. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import NamedTuple

from kproxy.core.objects import Family, ObjectKey, PortName
from kproxy.core.snapshot import NodePortTargets, PortPlan, Snapshot

_EVERYWHERE = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}


class Asked(NamedTuple):
    """About which Service a port tells, and how many addresses its ready endpoints on this node
    have, over all its service ports."""

    service: ObjectKey
    endpoints: int


class Roll:
    """One family's, in step with its Snapshots; the work follows what changes.

    ``asked``: by the number of the port; ``addresses``: where to listen. Treat both as read-only.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self.asked: dict[int, Asked] = {}
        self.addresses: tuple[str, ...] = ()
        self._generation = 0
        #: The service ports of each Service that has such a port.
        self._plans: dict[ObjectKey, dict[PortName, PortPlan]] = {}
        self._numbers: dict[ObjectKey, int] = {}

    def take(self, snapshot: Snapshot) -> set[int]:
        """Follow; the numbers of which something may be other now."""
        if snapshot.generation == self._generation:
            return set()
        names: Iterable[PortName] = snapshot.changed | snapshot.removed
        touched: set[int] = set()
        if snapshot.base != self._generation:
            touched |= self.asked.keys()
            self.asked, self._plans, self._numbers = {}, {}, {}
            names = snapshot.ports
        self._generation = snapshot.generation
        self.addresses = _addresses(self.family, snapshot.settings.node_port_targets)
        services = {name.service for name in names if self._note(name, snapshot.ports.get(name))}
        # Those that give a number up go first: another one may have it now.
        for service in services:
            if number := self._numbers.pop(service, 0):
                touched.add(number)
                del self.asked[number]
        for service in services:
            if plans := self._plans.get(service):
                number = next(iter(plans.values())).health_check_node_port
                ready = {ip for plan in plans.values() for ip in plan.local_ready}
                self._numbers[service] = number
                self.asked[number] = Asked(service, len(ready))
                touched.add(number)
        return touched

    def _note(self, name: PortName, plan: PortPlan | None) -> bool:
        """Keep a service port in mind, or forget it; whether it has such a port, or had one."""
        if plan is not None and plan.health_check_node_port:
            self._plans.setdefault(name.service, {})[name] = plan
            return True
        plans = self._plans.get(name.service)
        if plans is None or plans.pop(name, None) is None:
            return False
        if not plans:
            del self._plans[name.service]
        return True


def _addresses(family: Family, targets: NodePortTargets) -> tuple[str, ...]:
    """Where node ports answer, but for link-local addresses of IPv6: who listens there has to say
    on which link, and no balancer is so near."""
    if targets.all:
        return (_EVERYWHERE[family],)
    return tuple(each for each in targets.addresses if not _of_link(each))


def _of_link(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return found.version == 6 and found.is_link_local
