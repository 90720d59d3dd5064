"""What the rules do with one packet: netfilter's walk through typed rules, without a kernel. Pure.

Every way that chance may take is walked, so the result holds each endpoint that may be chosen with
its exact probability, and for each the rules that were met on the way. The path is that of the
first packet of a connection::

    from a link   nat PREROUTING ─ routing ─┬─ filter INPUT ── nat INPUT            this node's own
                                            └─ filter FORWARD ─ nat POSTROUTING     somebody else's
    from here     nat OUTPUT ── filter OUTPUT ── nat POSTROUTING ── (lo: filter INPUT)

nat is asked once for the destination and once for the source of a connection; a packet that came
back through ``lo`` has had both, so only filter sees it again. mangle holds no rule that a packet
meets, and is not walked.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from itertools import chain as joined

from msgspec.structs import replace

from kproxy.backends.xtables.rules import (
    Accept,
    Dnat,
    Drop,
    Goto,
    Jump,
    Masquerade,
    Reject,
    Return,
    Rule,
    SetMark,
    SetMatch,
    Table,
    Target,
)
from kproxy.core.objects import Protocol, Value
from kproxy.errors import UsageError

Hook = tuple[Table, str]

_OUTPUT: Hook = (Table.NAT, "OUTPUT")
_PREROUTING: Hook = (Table.NAT, "PREROUTING")
_POSTROUTING: Hook = (Table.NAT, "POSTROUTING")
_INPUT: Hook = (Table.FILTER, "INPUT")

#: (sent by this node, addressed to this node once translated) -> the hooks behind routing.
HOOKS: dict[tuple[bool, bool], tuple[Hook, ...]] = {
    (False, True): (_INPUT, (Table.NAT, "INPUT")),
    (False, False): ((Table.FILTER, "FORWARD"), _POSTROUTING),
    (True, False): ((Table.FILTER, "OUTPUT"), _POSTROUTING),
    (True, True): ((Table.FILTER, "OUTPUT"), _POSTROUTING, _INPUT),
}

#: Connection states in which nat looks at its rules; other packets follow what was decided.
_UNDECIDED = frozenset({"NEW", "RELATED"})

_LOOPBACK_DEVICE = "lo"

#: xt_statistic compares 31 random bits with the probability.
_CHANCES = 1 << 31


class Fate(StrEnum):
    """What becomes of a packet."""

    TRANSLATED = "translated"  # it goes to an endpoint
    UNTOUCHED = "untouched"  # it goes where it would go without us
    REJECTED = "rejected"  # its sender is told at once
    DROPPED = "dropped"


#: The target that ended the walk of a filter chain -> fate, where that is decided by it.
_ENDS: dict[type[Target], Fate] = {Drop: Fate.DROPPED, Reject: Fate.REJECTED}


class Packet(Value, frozen=True):
    """One packet of ``protocol`` to ``destination``:``dport``; addresses are canonical text.

    ``in_interface`` "" means that this node sends it. ``ctstate`` is what conntrack calls it: NEW,
    ESTABLISHED, RELATED or INVALID. ``sport`` matters to rules that ask a set.
    """

    source: str
    destination: str
    protocol: Protocol
    dport: int
    in_interface: str = ""
    ctstate: str = "NEW"
    sport: int = 0


class Step(Value, frozen=True):
    """A rule that the packet met all matches of, and the base chain by which it got there."""

    hook: str
    rule: Rule


class Outcome(Value, frozen=True):
    """One way that the packet may go.

    ``endpoint`` (``ip:port``, IPv6 in brackets) is "" when it is not translated. ``masquerade``:
    it leaves with an address of this node. ``accepted``: a rule of filter let it through, whatever
    rules of others come later. ``recorded`` names the ``recent`` list that the client is put on.
    """

    fate: Fate
    probability: Fraction
    endpoint: str = ""
    masquerade: bool = False
    accepted: bool = False
    recorded: str = ""
    steps: tuple[Step, ...] = ()


class Walk(Value, frozen=True):
    """All ways that a packet may go, in the order of the rules; their probabilities add up to 1."""

    packet: Packet
    outcomes: tuple[Outcome, ...]

    @property
    def fates(self) -> frozenset[Fate]:
        """Mostly one; several when what an endpoint answers to is itself refused."""
        return frozenset(outcome.fate for outcome in self.outcomes)

    @property
    def endpoints(self) -> Mapping[str, Fraction]:
        """Endpoint -> probability that it gets the packet."""
        chances: dict[str, Fraction] = {}
        for outcome in self.outcomes:
            if outcome.fate is Fate.TRANSLATED:
                before = chances.get(outcome.endpoint, Fraction(0))
                chances[outcome.endpoint] = before + outcome.probability
        return chances


class Walker:
    """The rules of one family (:func:`kproxy.backends.iptables.render.render_rules`), walkable.

    ``addresses`` are this node's own; the loopback ones need no mention. ``sets`` are those that
    rules ask: name -> (address, protocol, port).
    """

    def __init__(
        self,
        rules: Iterable[Rule],
        addresses: Collection[str],
        sets: Mapping[str, Collection[tuple[str, Protocol, int]]] | None = None,
    ) -> None:
        self._sets = sets or {}
        self._chains: dict[Hook, list[Rule]] = {}
        for rule in rules:
            self._chains.setdefault((rule.table, rule.chain), []).append(rule)
        self._addresses = frozenset(addresses)

    def walk(self, packet: Packet, recent: Collection[str] = ()) -> Walk:
        """Where the packet goes. ``recent`` names the lists that its source is on, not too long
        ago for any rule (:attr:`Outcome.recorded` of an earlier walk: the client comes back)."""
        start = _Way(packet, Fraction(1))
        sent = not packet.in_interface
        outcomes: list[Outcome] = []
        for way in self._pass([start], _OUTPUT if sent else _PREROUTING, recent):
            ways = [way]
            for hook in HOOKS[sent, self._is_local(way.packet.destination)]:
                if sent and hook == _INPUT:
                    ways = [_looped(one) for one in ways]
                ways = self._pass(ways, hook, recent)
            outcomes += [_outcome(one) for one in ways]
        return Walk(packet, tuple(outcomes))

    def _is_local(self, address: str) -> bool:
        return address in self._addresses or ipaddress.ip_address(address).is_loopback

    def _pass(self, ways: Iterable[_Way], hook: Hook, recent: Collection[str]) -> list[_Way]:
        """The packet as it comes out of one hook."""
        return list(joined.from_iterable(self._pass_one(way, hook, recent) for way in ways))

    def _pass_one(self, way: _Way, hook: Hook, recent: Collection[str]) -> list[_Way]:
        table, base = hook
        if way.stopped or (table is Table.NAT and way.packet.ctstate not in _UNDECIDED):
            return [way]
        out: list[_Way] = []
        # The way that chance did not take waits, with the place where it goes on.
        pending: list[tuple[_Way, _Stack]] = [(way, ((base, 0),))]
        while pending:
            way, stack = pending.pop()
            while stack:
                chain, index = stack[-1]
                rules = self._chains.get((table, chain), ())
                if index == len(rules):
                    stack = stack[:-1]
                    continue
                rule = rules[index]
                stack = (*stack[:-1], (chain, index + 1))
                if not self._matches(rule, way, recent):
                    continue
                if rule.probability:
                    chance = probability_of(rule)
                    pending.append((replace(way, odds=way.odds * (1 - chance)), stack))
                    way = replace(way, odds=way.odds * chance)
                way = _met(way, rule, base)
                stack = self._next(rule, stack)
            out.append(way)
        return out

    def _next(self, rule: Rule, stack: _Stack) -> _Stack:
        """Where the packet goes on after a rule that it met; nowhere when that was the last."""
        match rule.target:
            case Jump(chain):
                stack = (*stack, (chain, 0))
            case Goto(chain):
                stack = (*stack[:-1], (chain, 0))
            case Return():
                return stack[:-1]
            case None | SetMark():
                return stack
            case _:
                return ()
        if len(stack) > len(self._chains) + 1:
            raise UsageError(
                "the chains jump in a circle",
                where=f"{rule.table} {rule.chain}",
                hint="no kernel takes such rules: render them again",
            )
        return stack

    def _asked(self, match: SetMatch, packet: Packet) -> bool:
        held = _member(match.directions, packet) in self._sets.get(match.name, ())
        return held is not match.negated

    def _matches(self, rule: Rule, way: _Way, recent: Collection[str]) -> bool:
        packet, negated = way.packet, rule.negated
        if rule.dport and rule.dport != packet.dport:
            return False
        if rule.protocol and rule.protocol != packet.protocol.lower():
            return False
        if rule.destination and (
            inside(packet.destination, rule.destination) is ("destination" in negated)
        ):
            return False
        if rule.source and inside(packet.source, rule.source) is ("source" in negated):
            return False
        if rule.in_interface and (
            _same_device(packet.in_interface, rule.in_interface) is ("in_interface" in negated)
        ):
            return False
        if rule.mark is not None and (
            (way.mark & rule.mark.mask == rule.mark.value) is ("mark" in negated)
        ):
            return False
        if rule.ctstate and bool(way.states & set(rule.ctstate)) is ("ctstate" in negated):
            return False
        if not all(self._asked(match, packet) for match in rule.sets):
            return False
        if rule.source_local and (self._is_local(packet.source) is ("source_local" in negated)):
            return False
        if rule.destination_local and (
            self._is_local(packet.destination) is ("destination_local" in negated)
        ):
            return False
        if rule.recent is None or rule.recent.seconds is None:
            return True
        return rule.recent.name in recent


def _member(directions: Sequence[str], packet: Packet) -> tuple[object, ...]:
    """What a set is asked for: an address and, with a second direction, protocol and port."""
    addresses = {"src": packet.source, "dst": packet.destination}
    ports = {"src": packet.sport, "dst": packet.dport}
    first, *more = directions
    return (addresses[first], *((packet.protocol, ports[more[0]]) if more else ()))


_Stack = tuple[tuple[str, int], ...]


class _Way(Value, frozen=True):
    """A packet on its way: as it is now, and what was done to it."""

    packet: Packet
    odds: Fraction
    mark: int = 0
    endpoint: str = ""
    masquerade: bool = False
    last: Target | None = None  # of filter: what ended the walk of its last chain
    accepted: bool = False
    recorded: str = ""
    steps: tuple[Step, ...] = ()

    @property
    def stopped(self) -> bool:
        return type(self.last) in _ENDS

    @property
    def states(self) -> set[str]:
        return {self.packet.ctstate, "DNAT"} if self.endpoint else {self.packet.ctstate}


def _met(way: _Way, rule: Rule, base: str) -> _Way:
    """The packet after a rule whose matches it met."""
    way = replace(way, steps=(*way.steps, Step(base, rule)))
    if rule.recent is not None and rule.recent.seconds is None:
        way = replace(way, recorded=rule.recent.name)
    match rule.target:
        case SetMark(value, mask):
            return replace(way, mark=(way.mark & ~mask) ^ value)
        case Dnat(to):
            address, port = split_endpoint(to)
            packet = replace(way.packet, destination=address, dport=port)
            return replace(way, packet=packet, endpoint=to)
        case Masquerade():
            return replace(way, masquerade=True)
        case Accept() if rule.table is Table.FILTER:
            return replace(way, accepted=True)
        case Drop() | Reject():
            return replace(way, last=rule.target)
        case _:
            return way


def _looped(way: _Way) -> _Way:
    """A packet of this node to itself arrives on the loopback device, still NEW."""
    return replace(way, packet=replace(way.packet, in_interface=_LOOPBACK_DEVICE))


def _outcome(way: _Way) -> Outcome:
    usual = Fate.TRANSLATED if way.endpoint else Fate.UNTOUCHED
    stopped = way.stopped
    return Outcome(
        fate=_ENDS[type(way.last)] if stopped and way.last is not None else usual,
        probability=way.odds,
        endpoint=way.endpoint,
        masquerade=way.masquerade and not stopped,
        accepted=way.accepted and not stopped,
        recorded=way.recorded,
        steps=way.steps,
    )


def recent_lists(rules: Iterable[Rule]) -> Mapping[str, str]:
    """Name of a ``recent`` list -> endpoint of the clients on it."""
    return {
        rule.recent.name: rule.target.to
        for rule in rules
        if rule.recent is not None and rule.recent.seconds is None and isinstance(rule.target, Dnat)
    }


def probability_of(rule: Rule) -> Fraction:
    """The chance of a rule as the kernel has it: a multiple of 2^-31, whatever digits it prints."""
    return Fraction(round(Fraction(rule.probability) * _CHANCES), _CHANCES)


def split_endpoint(text: str) -> tuple[str, int]:
    """``ip:port`` (IPv6 in brackets) as address and port."""
    address, _, port = text.rpartition(":")
    return address.strip("[]"), int(port)


@lru_cache(maxsize=1 << 16)
def inside(address: str, cidr: str) -> bool:
    """Whether the address is in the range; never when the families differ."""
    return ipaddress.ip_address(address) in ipaddress.ip_network(cidr)


def _same_device(name: str, pattern: str) -> bool:
    """Whether a device is the one of ``-i``; a ``+`` at its end stands for anything."""
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern


def steps_of(walk: Walk) -> Sequence[Step]:
    """Every step of any way once, in order of appearance: what ``explain`` prints."""
    return list(dict.fromkeys(joined.from_iterable(way.steps for way in walk.outcomes)))
