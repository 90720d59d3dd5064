"""What differs between two Snapshots of one family: for logs, for people, for stale flows.

Identity is what a packet sees: an endpoint is its address and port, a way in is its address,
protocol and port. That an endpoint is draining now is a changed port, but no endpoint added.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from kproxy.core.objects import PortName, Protocol, Value
from kproxy.core.snapshot import Endpoint, PortPlan, Snapshot


class Entrance(StrEnum):
    """The kinds of way in to a service port."""

    CLUSTER_IP = "cluster IP"
    LOAD_BALANCER = "load-balancer IP"
    EXTERNAL_IP = "external IP"
    NODE_PORT = "node port"


class Address(NamedTuple):
    """One way in to a service port; ``ip`` "" is every node-port address of this node."""

    kind: Entrance
    ip: str
    protocol: Protocol
    port: int

    def __str__(self) -> str:
        """``192.0.2.1:80/TCP``, ``[2001:db8::1]:80/TCP``, ``:30080/TCP``."""
        host = f"[{self.ip}]" if ":" in self.ip else self.ip
        return f"{host}:{self.port}/{self.protocol}"


class PortDiff(Value, frozen=True):
    """What differs in one service port that both Snapshots have. All tuples are sorted.

    Endpoints are those of ``endpoints.all``, of which some rule may choose. ``fields`` names the
    fields of :class:`PortPlan` that differ, whether or not the other members explain it.
    """

    name: PortName
    added_endpoints: tuple[Endpoint, ...] = ()
    removed_endpoints: tuple[Endpoint, ...] = ()
    added_addresses: tuple[Address, ...] = ()
    removed_addresses: tuple[Address, ...] = ()
    fields: tuple[str, ...] = ()


class SnapshotDiff(Value, frozen=True):
    """From one Snapshot to another, sorted by port name.

    ``settings`` is true when the node's settings differ, and with them possibly every rule.
    """

    added: tuple[PortPlan, ...] = ()
    removed: tuple[PortPlan, ...] = ()
    changed: tuple[PortDiff, ...] = ()
    settings: bool = False

    def __bool__(self) -> bool:
        """False when nothing differs."""
        return bool(self.added or self.removed or self.changed or self.settings)

    def __str__(self) -> str:
        """One line of numbers for a log: ``2 ports added, 3 endpoints removed``."""
        endpoints_in = sum(len(port.added_endpoints) for port in self.changed)
        endpoints_out = sum(len(port.removed_endpoints) for port in self.changed)
        numbers = (
            (len(self.added), "added", "port"),
            (len(self.removed), "removed", "port"),
            (len(self.changed), "changed", "port"),
            (endpoints_in + _endpoints(self.added), "added", "endpoint"),
            (endpoints_out + _endpoints(self.removed), "removed", "endpoint"),
        )
        words = [
            f"{number} {noun}{'s' if number != 1 else ''} {verb}"
            for number, verb, noun in numbers
            if number
        ]
        if self.settings:
            words.append("node settings changed")
        return ", ".join(words) or "nothing changed"


def addresses_of(plan: PortPlan) -> tuple[Address, ...]:
    """Every way in to a service port, cluster IP first."""
    return tuple(_addresses(plan))


def diff(old: Snapshot | None, new: Snapshot) -> SnapshotDiff:
    """What has to be done to get from ``old`` (None: nothing at all) to ``new``.

    Both are of one planner. Consecutive ones cost as much as what differs between them.
    """
    if old is new:
        return SnapshotDiff()
    before = old.ports if old is not None else {}
    if old is not None and new.base == old.generation:
        candidates = sorted(new.changed | new.removed)
    else:
        candidates = sorted(before.keys() | new.ports.keys())
    added: list[PortPlan] = []
    removed: list[PortPlan] = []
    changed: list[PortDiff] = []
    for name in candidates:
        was, now = before.get(name), new.ports.get(name)
        if was is now:
            continue
        if was is None and now is not None:
            added.append(now)
        elif now is None and was is not None:
            removed.append(was)
        elif was is not None and now is not None and was != now:
            changed.append(_compare(was, now))
    return SnapshotDiff(
        added=tuple(added),
        removed=tuple(removed),
        changed=tuple(changed),
        settings=old is not None and old.settings != new.settings,
    )


def _compare(was: PortPlan, now: PortPlan) -> PortDiff:
    old = {(endpoint.ip, endpoint.port): endpoint for endpoint in was.endpoints.all}
    new = {(endpoint.ip, endpoint.port): endpoint for endpoint in now.endpoints.all}
    old_addresses, new_addresses = set(_addresses(was)), set(_addresses(now))
    return PortDiff(
        name=now.name,
        added_endpoints=tuple(new[place] for place in sorted(new.keys() - old.keys())),
        removed_endpoints=tuple(old[place] for place in sorted(old.keys() - new.keys())),
        added_addresses=tuple(sorted(new_addresses - old_addresses)),
        removed_addresses=tuple(sorted(old_addresses - new_addresses)),
        fields=tuple(
            field
            for field in PortPlan.__struct_fields__
            if getattr(was, field) != getattr(now, field)
        ),
    )


def _addresses(plan: PortPlan) -> Iterator[Address]:
    protocol = plan.protocol
    if plan.cluster_ip:
        yield Address(Entrance.CLUSTER_IP, plan.cluster_ip, protocol, plan.port)
    for ip in plan.load_balancer_ips:
        yield Address(Entrance.LOAD_BALANCER, ip, protocol, plan.port)
    for ip in plan.external_ips:
        yield Address(Entrance.EXTERNAL_IP, ip, protocol, plan.port)
    if plan.node_port:
        yield Address(Entrance.NODE_PORT, "", protocol, plan.node_port)


def _endpoints(plans: tuple[PortPlan, ...]) -> int:
    return sum(len(plan.endpoints.all) for plan in plans)
