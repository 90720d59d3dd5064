"""What the packet engine is told, as it looks it up: services, endpoints, ways in, the node.

All of a change is in force at once. An endpoint that goes stays known for as long as a flow names
it. The tables of :mod:`kproxy.core.policy`, which a service table carries, say how a new flow would
be treated.
"""

from __future__ import annotations

from kproxy.core.objects import Family
from kproxy.core.twin.choice import Chooser
from kproxy.core.twin.flows import Endpoint
from kproxy.core.twin.rewrite import Tuple
from kproxy.core.twin.values import (
    TICK,
    TICKS_PER_SECOND,
    ClientKind,
    EngineSettings,
    Fate,
    NodeTable,
    Reason,
    ServiceTable,
    WayKind,
)

_LOOPBACK4 = 127
_LOOPBACK6 = bytes(15) + b"\x01"


class Service:
    """A service table in force, with the endpoints that its members are."""

    def __init__(
        self, number: int, table: ServiceTable, endpoints: list[Endpoint], seed: bytes
    ) -> None:
        self.number = number
        self.table = table
        self.endpoints = dict(zip(endpoints, table.members))
        self.choosers = []
        for wanted in ("cluster", "local"):
            chosen = [(m, e) for e, m in self.endpoints.items() if getattr(m, wanted)]
            members, ends = [m for m, _ in chosen], [e for _, e in chosen]
            self.choosers.append(Chooser(members, ends, table.algorithm, seed))


class Plan:
    """How a new flow would be treated."""

    def __init__(self, service: Service, kind: WayKind, use: int, masquerade: bool) -> None:
        self.service, self.kind = service, kind
        self.use, self.masquerade = use, masquerade


class Tables:
    """Of both families of one node. Services are known by numbers that the caller gives."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.nodes = {family: NodeTable(family) for family in Family}
        self.services: dict[int, Service] = {}
        self.endpoints: dict[int, dict[bytes, Endpoint]] = {}
        self.ways: dict[tuple[Family, bytes, int, int], tuple[int, WayKind]] = {}
        self.version = 0
        self.serials = 0

    def set_node(self, node: NodeTable) -> None:
        self.nodes[node.family] = node
        self.version += 1

    def commit(self, changed: dict[int, ServiceTable], removed: set[int], now: int) -> None:
        """All of it is in force at once. ``removed`` and ``changed`` have no number in common."""
        for number in removed:
            self._withdraw(number)
            for endpoint in self.endpoints.get(number, {}).values():
                self._retire(endpoint, now)
            self.services.pop(number, None)
        for number in changed:
            self._withdraw(number)
        for number, table in changed.items():
            known = self.endpoints.setdefault(number, {})
            places = {member.place for member in table.members}
            for place, endpoint in known.items():
                if place not in places:
                    self._retire(endpoint, now)
            ends = [self._endpoint(number, member.place) for member in table.members]
            self.services[number] = Service(number, table, ends, self.settings.seed)
            for way in table.ways:
                self.ways[table.family, way.address, way.port, table.protocol] = number, way.kind
        self.version += 1

    def _withdraw(self, number: int) -> None:
        service = self.services.get(number)
        if service is None:
            return
        table = service.table
        for way in table.ways:
            key = table.family, way.address, way.port, table.protocol
            # Another service may have it by now.
            if self.ways.get(key, (None,))[0] == number:
                del self.ways[key]

    def _endpoint(self, number: int, place: bytes) -> Endpoint:
        known = self.endpoints[number]
        if place not in known:
            self.serials += 1
            known[place] = Endpoint(number, place, self.serials)
        known[place].until = None
        return known[place]

    def _retire(self, endpoint: Endpoint, now: int) -> None:
        if endpoint.until is None:
            self.serials += 1
            endpoint.serial = self.serials
            endpoint.until = now // TICK + self.settings.drain_seconds * TICKS_PER_SECOND

    def reap(self) -> int:
        """Forget endpoints that are gone and have no flow; how many are left with some."""
        left = 0
        for number, places in list(self.endpoints.items()):
            for place, endpoint in list(places.items()):
                if endpoint.until is None:
                    continue
                if endpoint.references:
                    left += 1
                else:
                    del places[place]
            if not places and number not in self.services:
                del self.endpoints[number]
        return left

    # --- how a new flow would be treated ----------------------------------------------------------

    def plan(self, family: Family, there: Tuple) -> Plan | None:
        found = self._way(family, there.destination, there.ports[1], there.protocol)
        if found is None:
            return None
        service, kind = self.services[found[0]], found[1]
        rows = service.table.rows[0 if kind is WayKind.CLUSTER_IP else 1]
        use, masquerade = rows[self._client(family, there.source)]
        return Plan(service, kind, use, masquerade)

    def _way(
        self, family: Family, address: bytes, port: int, protocol: int
    ) -> tuple[int, WayKind] | None:
        found = self.ways.get((family, address, port, protocol))
        if found is not None:
            return found
        node = self.nodes[family]
        loopback = family is Family.IPV4 and address[0] == _LOOPBACK4
        if not (node.localhost if loopback else address in node.node_ports):
            return None
        return self.ways.get((family, b"", port, protocol))

    def _client(self, family: Family, source: bytes) -> ClientKind:
        """Pod first: a node's address inside the pods' range cannot be told from a pod's."""
        node = self.nodes[family]
        if any(range_.holds(source) for range_ in node.pods):
            return ClientKind.POD
        return ClientKind.NODE if ours(node, source) else ClientKind.OTHER


def arrives(node: NodeTable, source: bytes, address: bytes) -> bool:
    """Whether a packet comes from elsewhere to an address of this node itself."""
    return address in node.local and not ours(node, source)


def ours(node: NodeTable, source: bytes) -> bool:
    """Whether this node sends from an address."""
    loopback = source[0] == _LOOPBACK4 if len(source) == 4 else source == _LOOPBACK6
    return loopback or source in node.local


def fate_of(plan: Plan, source: bytes) -> Reason | None:
    """Why a flow cannot begin; None when it can. Who is not permitted is refused like anybody
    where nobody is served."""
    fate, ranges = plan.service.table.fates[plan.use], plan.service.table.ranges
    if fate is Fate.REFUSE:
        return Reason.REFUSED
    limited = ranges is not None and plan.kind is WayKind.LOAD_BALANCER
    if limited and not any(range_.holds(source) for range_ in ranges or ()):
        return Reason.SOURCE
    return Reason.NO_LOCAL if fate is Fate.DROP else None
