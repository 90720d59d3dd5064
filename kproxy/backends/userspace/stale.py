"""Which UDP flows that conntrack remembers lead to the wrong relay port, or past all of them. Pure.

To conntrack a flow of this mode ends at a relay port of this node, and goes on for as long as its
client sends, whatever the rules say by then. Which endpoint it has is the relay's to know and to
change: what has to go here are flows that were made before a service stood, that lead to a front
which is closed, or to one that does not serve their client any more. Flows of others are left
alone, as :mod:`kproxy.core.stale_flows` says for the modes that translate to endpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from kproxy.backends.userspace.plan import uses_of
from kproxy.core.objects import Family, PortName, Protocol, Value
from kproxy.core.policy import EXTERNAL, INTERNAL, Client, Use
from kproxy.core.snapshot import NodeSettings, PortPlan, Snapshot
from kproxy.core.stale_flows import MOST_PARTS, WHOLE, Flow, Former, Part
from kproxy.core.ways import (
    Host,
    Key,
    Range,
    host_of,
    packed,
    packed_port,
    packed_range,
    permitted,
)

#: Relay ports of every service port, by list.
RelayPorts = Mapping[PortName, Iterable[tuple[Use, int]]]


class Way(Value, frozen=True, gc=False):
    """One way in to a UDP service port. ``near`` serves this node and its pods, ``far`` all others;
    None: nobody does. ``sources`` None: everyone may come in."""

    name: PortName
    near: Use | None
    far: Use | None
    sources: tuple[Range, ...] | None = None

    def admits(self, source: bytes) -> bool:
        return self.sources is None or any(part.holds(source) for part in self.sources)

    def uses(self, client: Client | None) -> tuple[Use | None, ...]:
        """By which list a client is served; either when it cannot be told who it is."""
        if client is None:
            return self.near, self.far
        return (self.far if client is Client.OTHER else self.near,)


def ways_of(plan: PortPlan, settings: NodeSettings) -> dict[Key, Way]:
    """The ways in to one service port; none when it is not of UDP."""
    if plan.protocol is not Protocol.UDP:
        return {}
    there = uses_of(plan)

    def served(use: Use) -> Use | None:
        return use if use in there else None

    port, ways = packed_port(plan.port), {}
    if plan.cluster_ip:
        inside = served(INTERNAL[plan.internal_policy])
        ways[packed(plan.cluster_ip) + port] = Way(plan.name, inside, inside)
    near = served(EXTERNAL[plan.external_policy, Client.NODE].use)
    far = served(EXTERNAL[plan.external_policy, Client.OTHER].use)
    outside = Way(plan.name, near, far)
    ways.update((packed(address) + port, outside) for address in plan.external_ips)
    if plan.node_port:
        ways[packed_port(plan.node_port)] = outside
    if plan.restricted:
        sources = tuple(map(packed_range, permitted(plan, settings)))
        outside = Way(plan.name, near, far, sources)
    ways.update((packed(address) + port, outside) for address in plan.load_balancer_ips)
    return ways


class RelayFlows:
    """Follows the plans of one family and judges flows by the last one, as
    :class:`kproxy.core.stale_flows.StaleFlows` does. ``ports`` tells where the relay listens.

    Work follows what changed: a service whose endpoints change has the ways that it had.
    """

    def __init__(self, family: Family, ports: Callable[[], RelayPorts]) -> None:
        self.family = family
        self._ports = ports
        self._snapshot: Snapshot | None = None
        self._ways: dict[Key, Way] = {}
        self._host = Host(frozenset(), frozenset(), False, None, True)
        self._host_inputs: tuple[NodeSettings, tuple[str, ...]] | None = None
        #: Way in of a former plan -> the relay ports, packed, that it led to.
        self._former: dict[Key, set[bytes]] = {}
        self._pending: set[Part] = set()
        self._whole = True

    def plan(self, snapshot: Snapshot, addresses: tuple[str, ...]) -> None:
        """A plan that is about to be applied. ``addresses``: all of the network namespace."""
        before, self._snapshot = self._snapshot, snapshot
        inputs = (snapshot.settings, addresses)
        if inputs != self._host_inputs:
            self._host_inputs = inputs
            self._host = host_of(snapshot.settings, self.family, addresses)
            # Node ports of an address that has just come here were somebody else's until now.
            self._whole = self._whole or any(len(key) == 2 for key in self._ways)
        if snapshot is before:
            return
        if before is None or snapshot.base != before.generation:
            self._change(dict(self._ways), _all_ways(snapshot))
            return
        old: dict[Key, Way] = {}
        new: dict[Key, Way] = {}
        for name in snapshot.changed | snapshot.removed:
            if name in before.ports:
                old |= ways_of(before.ports[name], before.settings)
            if name in snapshot.ports:
                new |= ways_of(snapshot.ports[name], snapshot.settings)
        self._change(old, new)

    def _change(self, old: Mapping[Key, Way], new: Mapping[Key, Way]) -> None:
        differ = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if not differ:
            return
        ports = self._ports()
        for key in differ:
            if key in old:
                led = [port for _, port in ports.get(old[key].name, ())]
                self._former.setdefault(key, set()).update(map(packed_port, led))
                self._ways.pop(key, None)
            self._pending.add(Part(key[:-2], key[-2:]))
        self._ways.update((key, new[key]) for key in differ if key in new)

    def remember(self, former: Former) -> None:
        """Rules of a past life of this node's proxy have been found; a plan is known already."""
        ports = {packed_port(port) for _, port in former.endpoints}
        keys = [packed(ip) + packed_port(port) for ip, port in former.vips]
        keys += map(packed_port, former.node_ports)
        for key in keys:
            self._former.setdefault(key, set()).update(ports)
        self._whole = True

    def suspect_all(self) -> None:
        """The rules may have been out of force for a while: any flow may be stale."""
        self._whole = True

    def parts(self) -> Sequence[Part]:
        """What of the table has to be looked at: nothing, some parts, or all."""
        if self._whole or len(self._pending) > MOST_PARTS:
            return WHOLE if self._ways or self._former else ()
        return sorted(self._pending)

    def cleaned(self) -> None:
        """All that :meth:`parts` named has been judged, and what was stale is gone."""
        self._former, self._pending, self._whole = {}, set(), False

    def judge(self, flows: Iterable[Flow]) -> list[int]:
        """Positions of the flows that are stale."""
        open_ = {
            (name, use): packed_port(port)
            for name, ports in self._ports().items()
            for use, port in ports
        }
        return [at for at, flow in enumerate(flows) if self._is_stale(flow, open_)]

    def _is_stale(self, flow: Flow, open_: Mapping[tuple[PortName, Use], bytes]) -> bool:
        source, destination, port, place_ip, _, place_port = flow
        key = destination + port
        way = self._ways.get(key)
        if way is None and self._host.answers(destination):
            key = port
            way = self._ways.get(key)
        here = place_ip in self._host.local or (len(place_ip) == 4 and place_ip[0] == 127)
        if way is None:
            former = self._former.get(destination + port) or self._former.get(port)
            return here and former is not None and place_port in former
        if not (here and way.admits(source)):
            return True
        uses = way.uses(self._host.client(source))
        return not any(open_.get((way.name, use)) == place_port for use in uses if use is not None)


def _all_ways(snapshot: Snapshot) -> dict[Key, Way]:
    ways: dict[Key, Way] = {}
    for plan in snapshot.ports.values():
        ways |= ways_of(plan, snapshot.settings)
    return ways
