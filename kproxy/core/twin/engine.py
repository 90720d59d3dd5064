"""What becomes of each packet: the decisions of the packet engine.

A packet of a flow leaves with the other end's tuple, turned round. The first packet of one is
looked up among the ways in; the tables of :mod:`kproxy.core.policy`, which the service table
carries, say which endpoints may serve it and whether its source is hidden.
"""

from __future__ import annotations

from kproxy.core.hashing import tuple_hash
from kproxy.core.objects import Family
from kproxy.core.twin import refuse
from kproxy.core.twin.choice import Chooser, free_port
from kproxy.core.twin.flows import Endpoint, Flow, FlowTable
from kproxy.core.twin.memory import Affinities, Fragments
from kproxy.core.twin.parse import Kind, Parsed, parse
from kproxy.core.twin.retry import Retries
from kproxy.core.twin.rewrite import (
    Tuple,
    addresses,
    partial,
    partial_fits,
    translate,
    translate_error,
    tuple_of,
)
from kproxy.core.twin.states import ENDED, FIRST, Direction, Event, State, next_state
from kproxy.core.twin.values import (
    TCP,
    TICK,
    TICKS_PER_SECOND,
    UDP,
    ClientKind,
    Code,
    EngineSettings,
    Fate,
    Member,
    NodeTable,
    Outcome,
    Reason,
    ServiceTable,
    WayKind,
)

_LOOPBACK4 = 127
_LOOPBACK6 = bytes(15) + b"\x01"
_EPHEMERAL = (1024, 65535)


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


class _Plan:
    """How a new flow would be treated."""

    def __init__(self, service: Service, kind: WayKind, use: int, masquerade: bool) -> None:
        self.service, self.kind = service, kind
        self.use, self.masquerade = use, masquerade


class Twin:
    """Both families of one node. Services are known by numbers that the caller gives."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.nodes = {family: NodeTable(family) for family in Family}
        self.flows = {family: FlowTable(settings.max_flows) for family in Family}
        self.affinities = {family: Affinities(settings.max_affinities) for family in Family}
        self.fragments = {family: Fragments(settings.max_fragments) for family in Family}
        self.services: dict[int, Service] = {}
        self.endpoints: dict[int, dict[bytes, Endpoint]] = {}
        self.ways: dict[tuple[Family, bytes, int, int], tuple[int, WayKind]] = {}
        self.retries = Retries(settings)
        self.version = 0
        self.serials = 0
        self.choices = 0
        self.drops = dict.fromkeys(Reason, 0)

    # --- tables ---------------------------------------------------------------------------------

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

    # --- packets --------------------------------------------------------------------------------

    def process(
        self, packet: bytes, now: int, *, header: bytes = b"", capacity: int = 65536
    ) -> Outcome:
        """One packet. ``capacity``: the bytes that its buffer has from the first of it on."""
        for flows in self.flows.values():
            flows.sweep(flows.due(now), now)
        parsed = parse(packet)
        outcome = self._decide(packet, parsed, now, header, capacity)
        if outcome.code is Code.DROP:
            self.drops[outcome.reason] += 1
        return outcome

    def due(self, now: int, count: int = 64) -> list[tuple[bytes, bytes]]:
        """First SYNs that go to another endpoint now, with their headers."""
        return self.retries.due(self, now, count)

    def _decide(
        self, packet: bytes, parsed: Parsed, now: int, header: bytes, capacity: int
    ) -> Outcome:
        match parsed.kind:
            case Kind.BAD:
                return _drop(packet, Reason.MALFORMED, header)
            case Kind.OTHER:
                return self._not_ours(packet, parsed, now, header)
            case Kind.LATER:
                return self._later(packet, parsed, now, header)
            case Kind.ERROR:
                return self._error(packet, parsed, now, header, capacity)
        return self._ports(packet, parsed, now, header, capacity)

    def _not_ours(self, packet: bytes, parsed: Parsed, now: int, header: bytes) -> Outcome:
        if parsed.fragment is not None:
            known = self.fragments[parsed.family]
            known.keep(parsed, None, Direction.THERE, now // TICK)
        return Outcome(Code.PASS, Reason.NONE, packet, header)

    def _later(self, packet: bytes, parsed: Parsed, now: int, header: bytes) -> Outcome:
        tick = now // TICK
        found = self.fragments[parsed.family].find(parsed, tick)
        if found is None:
            return _drop(packet, Reason.FRAGMENT, header)
        if found.flow is None:
            return Outcome(Code.PASS, Reason.NONE, packet, header)
        flow = found.flow
        if not self._lives(flow):
            return _drop(packet, Reason.FRAGMENT, header)
        new = flow.leaves_as(found.way)
        made = bytearray(packet)
        addresses(made, 0, parsed, new.source, new.destination)
        flow.endpoint.packets[found.way] += 1
        flow.endpoint.bytes[found.way] += parsed.end
        return Outcome(Code.FORWARD, Reason.NONE, bytes(made), header)

    def _lives(self, flow: Flow) -> bool:
        slots = self.flows[Family.IPV4 if len(flow.ends[0].source) == 4 else Family.IPV6].slots
        return slots[flow.slot] is flow

    def _error(
        self, packet: bytes, parsed: Parsed, now: int, header: bytes, capacity: int
    ) -> Outcome:
        assert parsed.inner is not None
        flows = self.flows[parsed.family]
        found = flows.find(tuple_of(parsed.inner).reversed)
        if found is None or now // TICK >= found[0].deadline:
            return Outcome(Code.PASS, Reason.NONE, packet, header)
        flow, way = found
        if parsed.destination != flow.ends[way].destination:
            return Outcome(Code.PASS, Reason.NONE, packet, header)
        if not partial_fits(header, parsed):
            return _drop(packet, Reason.MALFORMED, header)
        if self.retries.unreachable(flow, way, packet, parsed):
            instead = self.retries.again(self, flow, now, header, capacity)
            if instead is not None:
                return instead
        sent = flow.ends[1 - way]
        # A router on the way keeps its own address: traceroute wants to see it.
        own = parsed.source == flow.ends[way].source
        made = translate_error(
            packet,
            parsed,
            sent.destination if own else parsed.source,
            sent.source,
            sent,
            partial=partial(header) is not None,
        )
        return Outcome(Code.FORWARD, Reason.NONE, made, header)

    def _ports(
        self, packet: bytes, parsed: Parsed, now: int, header: bytes, capacity: int
    ) -> Outcome:
        flows, tick = self.flows[parsed.family], now // TICK
        found = flows.find(tuple_of(parsed))
        if found is not None and tick >= found[0].deadline:
            flows.remove(found[0])
            found = None
        if found is not None:
            flow, way = found
            if flow.state in ENDED and way is Direction.THERE and parsed.event is Event.BEGIN:
                flows.remove(flow)
                return self._first(packet, parsed, now, header, capacity)
            if flow.version != self.version and not self._check(flow):
                flows.remove(flow)
                if way is Direction.BACK:
                    return _drop(packet, Reason.STALE, header)
                return self._first(packet, parsed, now, header, capacity)
            return self._hit(packet, parsed, flow, way, now, header, capacity)
        return self._first(packet, parsed, now, header, capacity)

    # --- packets of a flow ----------------------------------------------------------------------

    def _hit(
        self,
        packet: bytes,
        parsed: Parsed,
        flow: Flow,
        way: Direction,
        now: int,
        header: bytes,
        capacity: int,
    ) -> Outcome:
        flows, tick = self.flows[parsed.family], now // TICK
        if not partial_fits(header, parsed):
            return _drop(packet, Reason.MALFORMED, header)
        if flow.draining and flow.endpoint.until is not None and tick >= flow.endpoint.until:
            flows.remove(flow)
            if parsed.protocol != TCP or parsed.event is Event.ABORT:
                return _drop(packet, Reason.STALE, header)
            return _answer(packet, parsed, refuse.reset, Reason.DRAINED, header, capacity)
        if self.retries.refused(flow, way, packet, parsed):
            instead = self.retries.again(self, flow, now, header, capacity)
            if instead is not None:
                return instead
        if flow.state is State.SYN_SENT and next_state(flow.state, way, parsed.event) != flow.state:
            self.retries.release(flow)
            if parsed.event is Event.AGREE:
                self.retries.succeeded(flow.endpoint)
        flows.enter(flow, next_state(flow.state, way, parsed.event))
        flow.deadline = tick + self.settings.timeouts[flow.state] * TICKS_PER_SECOND
        return self._send(packet, parsed, flow, way, now, header)

    def _send(
        self,
        packet: bytes,
        parsed: Parsed,
        flow: Flow,
        way: Direction,
        now: int,
        header: bytes,
    ) -> Outcome:
        flow.endpoint.packets[way] += 1
        flow.endpoint.bytes[way] += parsed.end
        if parsed.fragment is not None:
            self.fragments[parsed.family].keep(parsed, flow, way, now // TICK)
        made = translate(packet, parsed, flow.leaves_as(way), partial=partial(header) is not None)
        return Outcome(Code.FORWARD, Reason.NONE, made, header)

    def _check(self, flow: Flow) -> bool:
        """A flow that was judged by older tables: may it go on? A UDP flow only where its client
        could still be sent (other proxies take stale entries out of conntrack for the same
        reason); a connection always, if need be until its endpoint's time to drain is up."""
        if flow.ends[0].protocol == UDP and not self._right(flow):
            return False
        flow.draining = flow.endpoint.until is not None
        flow.version = self.version
        return True

    def _right(self, flow: Flow) -> bool:
        if flow.endpoint.until is not None:
            return False
        there = flow.ends[0]
        family = Family.IPV4 if len(there.source) == 4 else Family.IPV6
        plan = self._plan(family, there)
        if plan is None or plan.service.number != flow.endpoint.service:
            return False
        if self._fate(plan, there.source) is not None:
            return False
        return plan.use == 0 or plan.service.endpoints[flow.endpoint].near

    # --- first packets --------------------------------------------------------------------------

    def _plan(self, family: Family, there: Tuple) -> _Plan | None:
        found = self._way(family, there.destination, there.ports[1], there.protocol)
        if found is None:
            return None
        service, kind = self.services[found[0]], found[1]
        rows = service.table.rows[0 if kind is WayKind.CLUSTER_IP else 1]
        use, masquerade = rows[self._client(family, there.source)]
        return _Plan(service, kind, use, masquerade)

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
        return ClientKind.NODE if self._ours(node, source) else ClientKind.OTHER

    def _arrives(self, node: NodeTable, source: bytes, address: bytes) -> bool:
        return address in node.local and not self._ours(node, source)

    @staticmethod
    def _ours(node: NodeTable, source: bytes) -> bool:
        """Whether this node sends from an address."""
        loopback = source[0] == _LOOPBACK4 if len(source) == 4 else source == _LOOPBACK6
        return loopback or source in node.local

    @staticmethod
    def _fate(plan: _Plan, source: bytes) -> Reason | None:
        """Why a flow cannot begin; None when it can. Who is not permitted is refused like anybody
        where nobody is served."""
        fate, ranges = plan.service.table.fates[plan.use], plan.service.table.ranges
        if fate is Fate.REFUSE:
            return Reason.REFUSED
        limited = ranges is not None and plan.kind is WayKind.LOAD_BALANCER
        if limited and not any(range_.holds(source) for range_ in ranges or ()):
            return Reason.SOURCE
        return Reason.NO_LOCAL if fate is Fate.DROP else None

    def _first(
        self, packet: bytes, parsed: Parsed, now: int, header: bytes, capacity: int
    ) -> Outcome:
        plan = self._plan(parsed.family, tuple_of(parsed))
        if plan is None:
            return self._not_ours(packet, parsed, now, header)
        if not partial_fits(header, parsed):
            return _drop(packet, Reason.MALFORMED, header)
        state = FIRST.get((parsed.protocol, parsed.event))
        why_not = self._fate(plan, parsed.source)
        if why_not is Reason.REFUSED and parsed.event is not Event.ABORT:
            return _answer(packet, parsed, refuse.refusal, why_not, header, capacity)
        if why_not is not None:
            return _drop(packet, why_not, header)
        if state is None:
            return _drop(packet, Reason.NO_FLOW, header)
        made = self._begin(parsed, plan, state, now)
        if isinstance(made, Reason):
            return _drop(packet, made, header)
        self.retries.keep(self, made, plan.use, plan.masquerade, packet, parsed, header, now)
        return self._send(packet, parsed, made, Direction.THERE, now, header)

    def _begin(self, parsed: Parsed, plan: _Plan, state: State, now: int) -> Flow | Reason:
        there, tick = tuple_of(parsed), now // TICK
        word = self._word(there)
        member, endpoint = self._choose(plan, there, word, tick)
        flows = self.flows[parsed.family]
        back = self.back(there, member, plan.masquerade, word, tick)
        if back is None:
            return Reason.NO_PORT
        if not flows.make_room():
            return Reason.FULL
        deadline = tick + self.settings.timeouts[state] * TICKS_PER_SECOND
        flow = Flow((there, back), endpoint, state, deadline, self.version)
        flows.add(flow)
        endpoint.flows += 1
        seconds = plan.service.table.affinity_seconds
        if seconds is not None:
            known = self.affinities[parsed.family]
            known.keep(plan.service.number, parsed.source, endpoint, tick)
        return flow

    def _word(self, there: Tuple) -> int:
        return tuple_hash(
            self.settings.seed, there.source, there.destination, there.ports, there.protocol
        )

    def _choose(self, plan: _Plan, there: Tuple, word: int, tick: int) -> tuple[Member, Endpoint]:
        """The endpoint that the client had last, if this way in may send it there; else another."""
        service, wanted = plan.service, ("cluster", "local")[plan.use]
        seconds = service.table.affinity_seconds
        if seconds is not None:
            known = self.affinities[service.table.family]
            endpoint = known.find(service.number, there.source, seconds, tick)
            member = service.endpoints.get(endpoint) if endpoint is not None else None
            if endpoint is not None and member is not None and getattr(member, wanted):
                return member, endpoint
        self.choices += 1
        return service.choosers[plan.use].choose(word, self.choices)

    def back(
        self, there: Tuple, member: Member, masquerade: bool, word: int, tick: int
    ) -> Tuple | None:
        """The tuple of the answers; None when no port is left.

        An endpoint that reaches itself would answer itself directly, past us: it is always hidden.
        Who comes from elsewhere to an endpoint that is this node itself is not: what arrives here
        does not pass the hook where the other modes masquerade.
        A client that is seen keeps its port as well, unless the same one already comes in by
        another way to the same endpoint: then the port is moved, as the kernel does.
        """
        family = Family.IPV4 if len(there.source) == 4 else Family.IPV6
        node, flows = self.nodes[family], self.flows[family]
        ends = (member.port, there.ports[0])
        masquerade = masquerade and not self._arrives(node, there.source, member.address)
        if not (masquerade or member.address == there.source):
            back = Tuple(member.address, there.source, ends, there.protocol)
            found = flows.find(back)
            if found is not None and (found[0].state in ENDED or tick >= found[0].deadline):
                flows.remove(found[0])
                found = None
            if found is None:
                return back
            hidden, ports = there.source, _EPHEMERAL
        else:
            hidden, ports = node.masquerade, node.ports
        if not hidden:
            return None
        wish = Tuple(member.address, hidden, ends, there.protocol)
        port = free_port(flows, wish, there, ports, word, tick)
        return None if port is None else Tuple(wish.source, hidden, (ends[0], port), wish.protocol)


def _drop(packet: bytes, reason: Reason, header: bytes) -> Outcome:
    return Outcome(Code.DROP, reason, packet, header)


def _answer(
    packet: bytes, parsed: Parsed, build: object, reason: Reason, header: bytes, capacity: int
) -> Outcome:
    """A packet that goes back to where this one came from; its header says nothing special."""
    assert callable(build)
    if not refuse.answerable(parsed):
        return _drop(packet, Reason.MALFORMED, header)
    made = build(packet, parsed)
    if len(made) > capacity:
        return _drop(packet, Reason.NO_ROOM, header)
    return Outcome(Code.REPLY, reason, made, bytes(len(header)))
