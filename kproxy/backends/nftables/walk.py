"""What the rules and elements do with a connection's first packet, walked as the kernel does. Pure.

For tests, which hold it against :mod:`kproxy.core.policy`. Choices are walked all ways.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from ipaddress import ip_address, ip_network

import msgspec

from kproxy.backends.nftables.elements import DROP, KINDS, Element, unpack
from kproxy.backends.nftables.render import Desired
from kproxy.backends.nftables.rules import (
    Action,
    Ask,
    Chain,
    Choose,
    Condition,
    Do,
    Go,
    Pick,
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


class Outcome(Value, frozen=True):
    """``endpoint``: address and port, None when nobody was chosen."""

    fate: Fate
    endpoint: tuple[str, int] | None = None
    masqueraded: bool = False


class _State(Value, frozen=True):
    destination: str
    port: int
    translated: bool = False
    marked: bool = False
    fate: Fate | None = None
    masqueraded: bool = False


Maps = Mapping[str, Mapping[tuple[str | int, ...], Element]]


class Walker:
    """Over one Desired. ``local`` are the node's addresses. ``stuck``: the id of the endpoint that
    affinity remembers for the client, 0 for none."""

    def __init__(self, desired: Desired, local: Collection[str]) -> None:
        self._frame = desired.frame
        self._chains = desired.chains
        self._local = frozenset(local)
        self._maps: Maps = {
            name: {
                element.key: element
                for element in (unpack(KINDS[name], one, desired.frame.family) for one in records)
            }
            for name, records in desired.elements().items()
        }

    def outcomes(self, packet: Packet, stuck: int = 0) -> set[Outcome]:
        """Everything that may become of it."""
        first = "output" if not packet.device else "prerouting"
        return {
            _outcome(state)
            for state in self._along(packet, _State(packet.destination, packet.port), first, stuck)
        }

    def _along(self, packet: Packet, state: _State, first: str, stuck: int) -> Iterator[_State]:
        states = self._hook(packet, state, f"first-filter-{first}", stuck)
        states = self._then(states, packet, f"nat-{first}", stuck)
        for each in states:
            if each.fate is not None:
                yield each
                continue
            hooks = [f"filter-{first}"] if first == "output" else []
            hooks += ["filter-input"] if each.destination in self._local else []
            hooks += ["filter-forward"] if first != "output" and not hooks else []
            found: Iterator[_State] = iter([each])
            # What stays on the node meets postrouting before input; nothing hangs on the order.
            for hook in (*hooks, "nat-postrouting"):
                found = self._then(found, packet, hook, stuck)
            yield from found

    def _then(
        self, states: Iterator[_State], packet: Packet, hook: str, stuck: int
    ) -> Iterator[_State]:
        for state in states:
            if state.fate is not None:
                yield state
            else:
                yield from self._hook(packet, state, hook, stuck)

    def _hook(self, packet: Packet, state: _State, name: str, stuck: int) -> Iterator[_State]:
        yield from self._chain(packet, state, self._chains[name], stuck)

    def _chain(self, packet: Packet, state: _State, chain: Chain, stuck: int) -> Iterator[_State]:
        sent = any(isinstance(a, Stay) for rule in chain.rules for a in rule.then)
        if sent:
            yield from self._stay(packet, state, chain, stuck)
            return
        for rule in chain.rules:
            if not all(self._holds(one, packet, state) for one in rule.when):
                continue
            for action in rule.then:
                done = self._act(action, packet, state, stuck)
                if isinstance(done, _State):
                    state = done
                elif done is not None:
                    yield from done
                    return
        yield state

    def _act(
        self, action: Action, packet: Packet, state: _State, stuck: int
    ) -> _State | Iterator[_State] | None:
        """The state with which the rule goes on, or what becomes of it for good; None: nothing."""
        if isinstance(action, Go):
            return self._chain(packet, state, self._chains[action.chain], stuck)
        if isinstance(action, Ask):
            element = self._maps[action.map].get(self._key(action.map, packet, state))
            if element is None:
                return None
            assert isinstance(element.data, str)
            if element.data == DROP:
                return iter([_with(state, fate=Fate.DROPPED)])
            return self._chain(packet, state, self._chains[element.data], stuck)
        if isinstance(action, Choose):
            key = self._key(action.map, packet, state)
            slots = (self._maps[action.map][*key, slot] for slot in range(action.size))
            return iter([_to(state, element) for element in slots])
        assert isinstance(action, Do)
        if action in _ENDS:
            return iter([_with(state, **_ENDS[action])])
        return _with(state, **_GOES_ON[action])

    def _stay(self, packet: Packet, state: _State, chain: Chain, stuck: int) -> Iterator[_State]:
        pick = _pick_of(chain)
        key = self._key(pick.prefix, packet, state)
        known = self._maps[f"{pick.prefix}known"]
        if (*key, stuck) in known:
            yield _to(state, known[*key, stuck])
            return
        for slot in range(pick.size):
            ids = self._maps[f"{pick.prefix}ids"][*key, slot].data
            assert isinstance(ids, tuple)
            (number,) = ids
            yield _to(state, known[*key, number])

    def _key(self, map_: str, packet: Packet, state: _State) -> tuple[str | int, ...]:
        if map_.startswith("node-"):
            return packet.protocol, state.port
        return state.destination, packet.protocol, state.port

    def _holds(self, one: Condition, packet: Packet, state: _State) -> bool:
        if isinstance(one, ToRange):
            return ip_address(state.destination) in ip_network(one.cidr)
        key = (state.destination, packet.protocol, state.port)
        if one is When.POD:
            return self._from_pod(packet)
        if one is When.TO_NODE:
            if self._frame.every_address:
                return state.destination in self._local
            return (state.destination,) in self._maps["node-addresses"]
        if one is When.NOT_PERMITTED:
            source = ip_address(packet.source)
            return not any(
                element.key[:3] == key and source in ip_network(str(element.key[3]))
                for element in self._maps["sources"].values()
            )
        return {
            When.NEW: True,
            When.FROM_NODE: packet.source in self._local,
            When.UNTRANSLATED: not state.translated,
            When.RESTRICTED: key in self._maps["restricted"],
            When.CLUSTER_IP: (state.destination,) in self._maps["cluster-ips"],
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
    return Outcome(Fate.SENT, (state.destination, state.port), state.masqueraded)
