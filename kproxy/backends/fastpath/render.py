"""From a Snapshot to what the engine is told and what leads packets to it. Pure.

Work follows what changed: tables and places of service ports that did not change are the
predecessor's own.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping

from kproxy.backends.fastpath.plan import Tables, node_table, plan_tables
from kproxy.backends.fastpath.steer import (
    CHECKS,
    HIDING_PORTS,
    HOSTS,
    NEW_A_SECOND,
    PORTS,
    SERVICES,
    Frame,
    Member,
    Sets,
    merged,
)
from kproxy.core.objects import PortName, Protocol
from kproxy.core.snapshot import LocalDetector, NodeSettings, PortPlan, Snapshot
from kproxy.core.twin.values import NodeTable

_WORDS = {Protocol.TCP: "tcp", Protocol.UDP: "udp", Protocol.SCTP: "sctp"}

#: By service port; no member belongs to two of them.
Places = Mapping[PortName, Sets]


class Desired:
    """All that has to stand for one Snapshot. Not edited after it is made.

    ``node`` is without the pods of a detector that looks at interfaces: what is behind them says
    the kernel. ``places`` are members of the sets, ``checks`` health check node ports.
    """

    __slots__ = ("_sets", "checks", "detector", "frame", "hosts", "node", "places", "tables")

    def __init__(
        self,
        tables: Tables,
        node: NodeTable,
        frame: Frame,
        places: Places,
        checks: frozenset[int] = frozenset(),
    ) -> None:
        self.tables = tables
        self.node = node
        self.frame = frame
        self.places = places
        self.checks = checks
        self.hosts: frozenset[Member] = frozenset(map(text_of, node.node_ports))
        self.detector = _by_interface(tables.snapshot.settings)
        self._sets: dict[str, frozenset[Member]] | None = None

    @property
    def snapshot(self) -> Snapshot:
        return self.tables.snapshot

    @property
    def sets(self) -> dict[str, frozenset[Member]]:
        """All members, by set."""
        if self._sets is None:
            whole = {HOSTS: self.hosts, CHECKS: check_members(self.checks)}
            self._sets = merged((*self.places.values(), whole))
        return self._sets


def render(snapshot: Snapshot, previous: Desired | None, *, new: int = NEW_A_SECOND) -> Desired:
    """``previous`` is the last result of the same backend, or None; ``new``: connections a second
    (:class:`~.steer.Frame`)."""
    settings, family = snapshot.settings, snapshot.family
    tables = plan_tables(snapshot, previous.tables if previous is not None else None)
    node = node_table(settings, family, settings.local_addresses, HIDING_PORTS)
    if previous is not None and previous.node == node:
        node = previous.node
    frame = Frame(family, node.localhost, new)
    return Desired(tables, node, frame, _places(snapshot, previous), _checks(snapshot, previous))


def check_members(numbers: Iterable[int]) -> frozenset[Member]:
    """Health check node ports as members."""
    return frozenset([("tcp", number) for number in numbers])


def _checks(snapshot: Snapshot, previous: Desired | None) -> frozenset[int]:
    """Service ports of one Service share theirs, so one that goes tells nothing by itself."""
    if previous is not None and snapshot.base == previous.snapshot.generation:
        before, after = previous.snapshot.ports, snapshot.ports
        names = snapshot.changed | snapshot.removed
        if not any(
            plan.health_check_node_port
            for ports in (before, after)
            for name in names
            if (plan := ports.get(name)) is not None
        ):
            return previous.checks
    numbers = frozenset([plan.health_check_node_port for plan in snapshot.ports.values()])
    return numbers - {0}


def _places(snapshot: Snapshot, previous: Desired | None) -> Places:
    if previous is None or snapshot.base != previous.snapshot.generation:
        return {name: places_of(plan) for name, plan in snapshot.ports.items()}
    gone = snapshot.changed | snapshot.removed
    kept = {name: places for name, places in previous.places.items() if name not in gone}
    return kept | {name: places_of(snapshot.ports[name]) for name in snapshot.changed}


def places_of(plan: PortPlan) -> Sets:
    """The members for one service port."""
    word = _WORDS[plan.protocol]
    addresses = (*plan.external_ips, *plan.load_balancer_ips)
    if plan.cluster_ip:
        addresses = (plan.cluster_ip, *addresses)
    found: dict[str, frozenset[Member]] = {}
    if addresses:
        found[SERVICES] = frozenset([(_canonical(one), word, plan.port) for one in addresses])
    if plan.node_port:
        found[PORTS] = frozenset([(word, plan.node_port)])
    return found


def _canonical(address: str) -> str:
    if ":" not in address:
        return address
    return text_of(socket.inet_pton(socket.AF_INET6, address))


def text_of(address: bytes) -> str:
    """As nft writes it."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def _by_interface(settings: NodeSettings) -> LocalDetector | None:
    detector = settings.detector
    return detector if detector is not None and not detector.cidr else None


def changed_names(old: Mapping[PortName, object], new: Mapping[PortName, object]) -> set[PortName]:
    """Names of which something is new, other or gone; what is the same object has not changed."""
    found = {name for name, value in new.items() if old.get(name) is not value}
    return found | (old.keys() - new.keys())


def sets_of(places: Places, names: Iterable[PortName]) -> dict[str, frozenset[Member]]:
    """The members of some service ports."""
    return merged(places[name] for name in names if name in places)
