"""What the rules and elements do with a connection's first packet, walked as the kernel does. Pure.

For tests, which hold it against :mod:`kproxy.core.policy`. Choices are walked all ways.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from ipaddress import ip_address, ip_network

import msgspec

from kproxy.backends.nftables.elements import DROP, KINDS, NODE_ADDRESSES, Element, source, unpack
from kproxy.backends.nftables.render import Desired
from kproxy.backends.nftables.rules import (
    Action,
    Ask,
    Chain,
    Choose,
    Condition,
    Do,
    Draw,
    Go,
    Permitted,
    Pick,
    Send,
    Stay,
    Step,
    ToRange,
    When,
)
from kproxy.core.objects import Value


class Fate(StrEnum):
    SENT = "sent"
    REFUSED = "refused"
    DROPPED = "dropped"
    UNTOUCHED = "untouched"


class Packet(Value, frozen=True):
    """``device`` "": the node sends it. ``protocol``: tcp, udp or sctp."""

    source: str
    destination: str
    protocol: str
    port: int
    device: str = ""


class Note(Value, frozen=True):
    """What affinity remembers of a client: by the service port's number the id of an endpoint, for
    so many seconds."""

    service_port: int
    id: int
    seconds: int


class Outcome(Value, frozen=True):
    """``endpoint``: address and port, None when nobody was chosen. ``note``: what is written."""

    fate: Fate
    endpoint: tuple[str, int] | None = None
    masqueraded: bool = False
    note: Note | None = None


class _State(Value, frozen=True):
    destination: str
    port: int
    translated: bool = False
    marked: bool = False
    fate: Fate | None = None
    masqueraded: bool = False
    note: Note | None = None
    priority: int = 0


#: What affinity remembers: client and number of a service port -> id of an endpoint.
Memory = Mapping[tuple[str, int], int]
Maps = Mapping[str, Mapping[tuple[str | int, ...], Element]]


_BLANK: Memory = {}


class Walker:
    """Over one Desired. ``local`` are the node's addresses."""

    def __init__(self, desired: Desired, local: Collection[str]) -> None:
        self._frame = desired.frame
        self._chains = desired.chains
        self._local = frozenset(local)
        self._memory: Memory = _BLANK
        self._maps: Maps = {
            name: {
                element.key: element
                for element in (unpack(KINDS[name], one, desired.frame.family) for one in records)
            }
            for name, records in desired.elements().items()
        }

    def outcomes(self, packet: Packet, memory: Memory = _BLANK) -> set[Outcome]:
        """Everything that may become of it. ``memory``: what affinity remembers."""
        self._memory = memory
        first = "output" if not packet.device else "prerouting"
        start = _State(packet.destination, packet.port)
        return {_outcome(state) for state in self._along(packet, start, first)}

    def _along(self, packet: Packet, state: _State, first: str) -> Iterator[_State]:
        states = self._hook(packet, state, f"first-filter-{first}")
        for each in self._then(states, packet, f"nat-{first}"):
            arrives = each.destination in self._local or _loopback(each.destination)
            found: Iterator[_State] = iter([each])
            for hook in _HOOKS[first, arrives]:
                found = self._then(found, packet, hook)
            yield from found

    def _then(self, states: Iterator[_State], packet: Packet, hook: str) -> Iterator[_State]:
        for state in states:
            if state.fate is not None:
                yield state
            else:
                yield from self._hook(packet, state, hook)

    def _hook(self, packet: Packet, state: _State, name: str) -> Iterator[_State]:
        yield from self._chain(packet, state, self._chains[name])

    def _chain(self, packet: Packet, state: _State, chain: Chain) -> Iterator[_State]:
        if any(isinstance(action, Stay) for rule in chain.rules for action in rule.then):
            yield from self._stay(packet, state, chain)
            return
        for rule in chain.rules:
            if not all(self._holds(one, packet, state) for one in rule.when):
                continue
            for action in rule.then:
                done = self._act(action, packet, state)
                if isinstance(done, _State):
                    state = done
                elif done is not None:
                    yield from done
                    return
        yield state

    def _act(
        self, action: Action, packet: Packet, state: _State
    ) -> _State | Iterator[_State] | None:
        """The state with which the rule goes on, or what becomes of it for good; None: nothing."""
        if isinstance(action, Go):
            return self._chain(packet, state, self._chains[action.chain])
        if isinstance(action, Ask):
            element = self._maps[action.map].get(self._key(action.map, packet, state))
            if element is None:
                return None
            assert isinstance(element.data, str)
            if element.data == DROP:
                return iter([_with(state, fate=Fate.DROPPED)])
            return self._chain(packet, state, self._chains[element.data])
        if isinstance(action, Choose):
            key = self._key(action.map, packet, state)
            slots = (self._maps[action.map][*key, slot] for slot in range(action.size))
            return iter([_to(state, element) for element in slots])
        if isinstance(action, Draw):
            return self._drawn(packet, state, action)
        if isinstance(action, Send):
            key = self._key(action.map, packet, state)
            return iter([_to(state, self._maps[action.map][*key, state.priority])])
        assert isinstance(action, Do)
        if action in _ENDS:
            return iter([_with(state, **_ENDS[action])])
        return _with(state, **_GOES_ON[action])

    def _drawn(self, packet: Packet, state: _State, draw: Draw) -> Iterator[_State]:
        for slot in range(draw.size):
            yield from self._chain(packet, _with(state, priority=slot), self._chains[draw.chain])

    def _stay(self, packet: Packet, state: _State, chain: Chain) -> Iterator[_State]:
        pick = _pick_of(chain)
        key = self._key(pick.prefix, packet, state)
        known = self._maps[pick.places]
        name = _number(self._maps[f"{'node-' * pick.node}names"][key])
        kept = self._memory.get((packet.source, name))
        ids = [kept] if kept is not None and (*key, kept) in known else []
        ids = ids or [
            _number(self._maps[f"{pick.prefix}ids"][*key, slot]) for slot in range(pick.size)
        ]
        for each in ids:
            yield _with(_to(state, known[*key, each]), note=Note(name, each, pick.stay))

    def _key(self, map_: str, packet: Packet, state: _State) -> tuple[str | int, ...]:
        if map_.startswith("node-"):
            return packet.protocol, state.port
        return state.destination, packet.protocol, state.port

    def _holds(self, one: Condition, packet: Packet, state: _State) -> bool:
        if isinstance(one, ToRange):
            return ip_address(state.destination) in ip_network(one.cidr)
        if isinstance(one, Permitted):
            prefix = f"{ip_address(packet.source)}/{one.length}"
            range_ = ip_network(prefix, strict=False)
            name, record = source(b"", str(range_))
            (place,) = unpack(NODE_ADDRESSES, record, self._frame.family).key
            key = (state.destination, packet.protocol, state.port)
            return (*key, place) in self._maps[name]
        if one is When.POD:
            return self._from_pod(packet)
        if one is When.TO_NODE:
            if self._frame.every_address:
                return state.destination in self._local and not _loopback(state.destination)
            return (state.destination,) in self._maps["node-addresses"]
        return {
            When.NEW: True,
            When.FROM_NODE: packet.source in self._local or _loopback(packet.source),
            When.UNTRANSLATED: not state.translated,
            When.CLUSTER_IP: (state.destination,) in self._maps["cluster-ips"],
            # While this mode stands alone.
            When.NOT_STEERED: True,
            When.TCP: packet.protocol == "tcp",
            When.HAIRPIN: state.translated
            and (packet.source, state.destination) in self._maps["hairpin"],
            When.MARKED: state.marked,
        }[one]

    def _from_pod(self, packet: Packet) -> bool:
        detector = self._frame.detector
        assert detector is not None
        if detector.cidr:
            return ip_address(packet.source) in ip_network(detector.cidr)
        if detector.bridge:
            return packet.device == detector.bridge
        return packet.device.startswith(detector.prefix)


#: Where a packet begins, and whether it ends on this node -> the hooks behind routing. What comes
#: back through loopback meets input as well.
_HOOKS = {
    ("prerouting", True): ("filter-input",),
    ("prerouting", False): ("filter-forward", "nat-postrouting"),
    ("output", True): ("filter-output", "nat-postrouting", "filter-input"),
    ("output", False): ("filter-output", "nat-postrouting"),
}

_ENDS: Mapping[Do, Mapping[str, object]] = {
    Do.DROP: {"fate": Fate.DROPPED},
    Do.RETURN: {},
    Do.RESET: {"fate": Fate.REFUSED},
    Do.REFUSE: {"fate": Fate.REFUSED},
    Do.MASQUERADE: {"masqueraded": True},
}
_GOES_ON: Mapping[Do, Mapping[str, object]] = {
    Do.MARK: {"marked": True},
    Do.UNMARK: {"marked": False},
}


def _pick_of(chain: Chain) -> Pick:
    return next(
        action.pick
        for rule in chain.rules
        for action in rule.then
        if isinstance(action, Stay) and action.step is Step.SEND
    )


def _number(element: Element) -> int:
    assert isinstance(element.data, tuple)
    return int(element.data[0])


def _loopback(address: str) -> bool:
    return ip_address(address).is_loopback


def _with(state: _State, **changes: object) -> _State:
    return msgspec.structs.replace(state, **changes)


def _to(state: _State, element: Element) -> _State:
    assert isinstance(element.data, tuple)
    address, port = element.data
    return _with(state, destination=str(address), port=int(port), translated=True)


def _outcome(state: _State) -> Outcome:
    if state.fate is not None:
        return Outcome(state.fate)
    if not state.translated:
        return Outcome(Fate.UNTOUCHED, masqueraded=state.masqueraded)
    endpoint = state.destination, state.port
    return Outcome(Fate.SENT, endpoint, state.masqueraded, state.note)
