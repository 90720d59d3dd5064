"""What becomes of each packet: the decisions of the packet engine.

A packet of a flow leaves with the other end's tuple, turned round. The first packet of one is
looked up among the ways in (:mod:`kproxy.core.twin.tables`), which say which endpoints may serve it
and whether its source is hidden.
"""

from __future__ import annotations

from kproxy.core.hashing import tuple_hash
from kproxy.core.objects import Family
from kproxy.core.twin import refuse
from kproxy.core.twin.choice import free_port
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
from kproxy.core.twin.tables import Plan, Tables, arrives, fate_of
from kproxy.core.twin.values import (
    TCP,
    TICK,
    TICKS_PER_SECOND,
    UDP,
    Code,
    EngineSettings,
    Member,
    Outcome,
    Reason,
)

_EPHEMERAL = (1024, 65535)


class Twin(Tables):
    """Both families of one node: what it is told, and the flows that it remembers."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self.flows = {family: FlowTable(settings.max_flows) for family in Family}
        self.affinities = {family: Affinities(settings.max_affinities) for family in Family}
        self.fragments = {family: Fragments(settings.max_fragments) for family in Family}
        self.retries = Retries(settings)
        self.choices = 0
        self.drops = dict.fromkeys(Reason, 0)

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
        plan = self.plan(family, there)
        if plan is None or plan.service.number != flow.endpoint.service:
            return False
        if fate_of(plan, there.source) is not None:
            return False
        return plan.use == 0 or plan.service.endpoints[flow.endpoint].near

    # --- first packets --------------------------------------------------------------------------

    def _first(
        self, packet: bytes, parsed: Parsed, now: int, header: bytes, capacity: int
    ) -> Outcome:
        plan = self.plan(parsed.family, tuple_of(parsed))
        if plan is None:
            return self._not_ours(packet, parsed, now, header)
        if not partial_fits(header, parsed):
            return _drop(packet, Reason.MALFORMED, header)
        state = FIRST.get((parsed.protocol, parsed.event))
        why_not = fate_of(plan, parsed.source)
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

    def _begin(self, parsed: Parsed, plan: Plan, state: State, now: int) -> Flow | Reason:
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

    def _choose(self, plan: Plan, there: Tuple, word: int, tick: int) -> tuple[Member, Endpoint]:
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
        masquerade = masquerade and not arrives(node, there.source, member.address)
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
