"""Which UDP flows that conntrack remembers contradict the plan. Pure.

Conntrack translates the first packet of a flow by the rules and every later one by what it then
wrote down. TCP and SCTP end by themselves when their endpoint goes; UDP has no end as long as
its client goes on sending, so entries that the rules would not make today have to be taken away.
A flow is its original destination (a way in) and its reply source (the place it was sent to, or
that same destination when it was left alone):

=========================================  ====================================================
destination is                             the flow is stale when
=========================================  ====================================================
a way in of the plan                       its place is not one that the way has for its client
a way in of a former plan only             its place is one that the former plan had there
anything else                              never: somebody else's translation is not ours to cut
=========================================  ====================================================

The first row covers a changed endpoint, n→0 (no place is right), 0→n (left alone, so its place is
the destination itself), a reused VIP, node ports, external IPs, both policies and source ranges.
Places are all that *serve* (:attr:`EndpointSets.spared` too): draining does not cut a flow. The
second row covers deleted services. A former plan is remembered until its flows have been cleaned
once, no longer: whoever takes an address over after us must be left in peace.

Whose source is rewritten is no property of a healthy flow, with one exception: when a service
port's external policy changes, flows made under the other one are stale if their source is treated
otherwise than it is now. That is judged then, never later: others masquerade, too.

:class:`StaleFlows` also knows which part of the table can hold stale flows at all, so that a
sync that only adds endpoints looks at nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from kproxy.core.objects import Family, TrafficPolicy, Value
from kproxy.core.policy import EXTERNAL, Client
from kproxy.core.snapshot import NodeSettings, Snapshot
from kproxy.core.ways import (
    Host,
    Key,
    Place,
    Plan,
    Way,
    WayChange,
    host_of,
    packed,
    packed_port,
    plan_ways,
)

#: (source, destination, destination port, reply source, reply destination, reply source port),
#: packed. A plain tuple: a table has a hundred thousand of them.
Flow = tuple[bytes, bytes, bytes, bytes, bytes, bytes]

#: With more parts than this the whole table is read. The kernel walks all of it for each part, but
#: writes out only what matches: 11 ms instead of 118 for 100,000 flows.
MOST_PARTS = 8


class Part(NamedTuple):
    """A part of the table: flows to ``address`` and ``port``, packed; b"" is any."""

    address: bytes = b""
    port: bytes = b""


WHOLE = (Part(),)


class Former(Value, frozen=True):
    """What rules that were found in the kernel at the start did for UDP: a plan of the past.

    ``vips`` are (address, port), ``endpoints`` likewise, as text.
    """

    vips: frozenset[tuple[str, int]] = frozenset()
    node_ports: frozenset[int] = frozenset()
    endpoints: frozenset[tuple[str, int]] = frozenset()


class FlowJudge(Protocol):
    """What follows the plans of one family and knows which flows contradict them.

    Tell every plan *before* it is applied, also one that is then refused: part of it may be in
    force. After a good sync look at :meth:`parts`, judge what they hold, and say :meth:`cleaned`.
    """

    def plan(self, snapshot: Snapshot, addresses: tuple[str, ...]) -> None:
        """A plan that is about to be applied. ``addresses``: all of the network namespace."""

    def remember(self, former: Former) -> None:
        """Rules of a past life of this node's proxy have been found; a plan is known already."""

    def suspect_all(self) -> None:
        """The rules may have been out of force for a while: any flow may be stale."""

    def parts(self) -> Sequence[Part]:
        """What of the table has to be looked at: nothing, some parts, or :data:`WHOLE`."""

    def judge(self, flows: Iterable[Flow]) -> list[int]:
        """Positions of the flows that are stale."""

    def cleaned(self) -> None:
        """All that :meth:`parts` named has been judged, and what was stale is gone."""


class StaleFlows:
    """Follows the plans of one family and judges flows by the last one; a :class:`FlowJudge`."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._plan: Plan | None = None
        self._host = Host(frozenset(), frozenset(), False, None, True)
        self._host_inputs: tuple[NodeSettings, tuple[str, ...]] | None = None
        self._former: dict[Key, frozenset[Place]] = {}
        self._formerly_answering: frozenset[bytes] = frozenset()
        self._policies: dict[Key, set[TrafficPolicy]] = {}
        self._policy_changed: set[Key] = set()
        self._pending: set[Part] = set()
        self._whole = True

    def plan(self, snapshot: Snapshot, addresses: tuple[str, ...]) -> None:
        """A plan that is about to be applied. ``addresses``: all of the network namespace."""
        first = self._plan is None
        self._plan, changes = plan_ways(snapshot, self._plan)
        self._meet(snapshot, addresses, first=first)
        for change in changes:
            self._note(change)

    def remember(self, former: Former) -> None:
        """Rules of a past life of this node's proxy have been found; a plan is known already."""
        places = frozenset(packed(ip) + packed_port(port) for ip, port in former.endpoints)
        keys = [packed(ip) + packed_port(port) for ip, port in former.vips]
        keys += map(packed_port, former.node_ports)
        for key in keys:
            self._former[key] = self._former.get(key, frozenset()) | places
        # Its node ports may have answered on addresses where those of now do not.
        self._formerly_answering |= self._host.local - {packed("::1")}
        self._whole = True

    def suspect_all(self) -> None:
        """The rules may have been out of force for a while: any flow may be stale."""
        self._whole = True

    def parts(self) -> Sequence[Part]:
        """What of the table has to be looked at: nothing, some parts, or :data:`WHOLE`."""
        if self._whole or len(self._pending) > MOST_PARTS:
            # Without any way in, now or before, there is nothing to find.
            served = self._plan is not None and bool(self._plan.ways)
            return WHOLE if served or self._former else ()
        return sorted(self._pending)

    def cleaned(self) -> None:
        """All that :meth:`parts` named has been judged, and what was stale is gone."""
        self._former, self._formerly_answering = {}, frozenset()
        self._policies, self._policy_changed = {}, set()
        self._pending, self._whole = set(), False

    def judge(self, flows: Iterable[Flow]) -> list[int]:
        """Positions of the flows that are stale."""
        assert self._plan is not None
        way_at, former, answers = self._plan.ways.get, self._former, self._host.answers
        policy_changed = self._policy_changed
        stale = []
        for at, flow in enumerate(flows):
            _, destination, port, place_ip, _, place_port = flow
            key = destination + port
            way = way_at(key)
            if way is None:
                way = way_at(port)
                if way is None or not answers(destination):
                    if former and self._was_ours(flow):
                        stale.append(at)
                    continue
                key = port
            if place_ip + place_port in way.sure and key not in policy_changed:
                continue
            if not self._is_right(flow, key, way):
                stale.append(at)
        return stale

    def _is_right(self, flow: Flow, key: Key, way: Way) -> bool:
        """The whole question, for the few that a look at the place alone does not answer."""
        source, _, _, place_ip, reply_destination, place_port = flow
        client = self._host.client(source)
        places = way.far if client is Client.OTHER else way.near
        if place_ip + place_port not in places or not way.admits(source):
            return False
        if key not in self._policy_changed or way.policy is None:
            return True
        if source == place_ip or client is Client.NODE:
            # An endpoint that reaches itself is always masqueraded; the node masquerades as itself.
            return True
        # Pods and others, whichever this client is, are masqueraded alike.
        wanted = EXTERNAL[way.policy, client or Client.OTHER].masquerade
        return wanted == (reply_destination != source)

    def _was_ours(self, flow: Flow) -> bool:
        _, destination, port, place_ip, _, place_port = flow
        places = self._former.get(destination + port)
        if places is None:
            places = self._former.get(port)
            if places is None or not (
                self._host.answers(destination) or destination in self._formerly_answering
            ):
                return False
        return place_ip + place_port in places

    def _note(self, change: WayChange) -> None:
        key, old, new = change.key, change.old, change.new
        if old is not None and old.near:
            self._former[key] = self._former.get(key, frozenset()) | old.near
        if old is not None and old.policy is not None:
            self._policies.setdefault(key, set()).add(old.policy)
        others = self._policies.get(key, set()) - {new.policy if new is not None else None}
        if new is not None and new.policy is not None and others:
            self._policy_changed.add(key)
        if old is not None and new is not None and new.covers(old):
            return
        self._pending.add(Part(key[:-2], key[-2:]))

    def _meet(self, snapshot: Snapshot, addresses: tuple[str, ...], *, first: bool) -> None:
        """Node ports of an address that has just come here were somebody else's until now."""
        inputs = (snapshot.settings, addresses)
        if inputs == self._host_inputs:
            return
        before, self._host_inputs = self._host, inputs
        self._host = host_of(snapshot.settings, self.family, addresses)
        self._formerly_answering |= before.answering
        if first or self._plan is None or not any(len(key) == 2 for key in self._plan.ways):
            return
        fresh = self._host.answering - before.answering
        self._pending |= {Part(address) for address in fresh if not _link_local(address)}


def _link_local(address: bytes) -> bool:
    """Nobody but a neighbour has flows to it, and networks make and drop them with every pod."""
    if len(address) == 4:
        return address[:2] == b"\xa9\xfe"
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80
