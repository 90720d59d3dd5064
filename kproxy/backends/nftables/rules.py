"""The rules of nftables mode, typed. Pure.

What no service decides: a constant set of base chains, and chains for each *number* of endpoints
and way of choosing among them (:class:`Pick`), with what happens to the source before
(:class:`Treat`). Who is treated how is asked of :mod:`kproxy.core.policy`.
"""

from __future__ import annotations

import hashlib
from enum import Enum, StrEnum
from typing import NamedTuple

from msgspec.structs import replace

from kproxy.core.objects import Family, TrafficPolicy, Value
from kproxy.core.policy import Client, Entry, Treatment, treatment
from kproxy.core.snapshot import LocalDetector, NodeSettings

TABLE = "kproxy"
WORD = {Family.IPV4: "ip", Family.IPV6: "ip6"}

#: Up to so many slots a chain looks up the endpoint of its slot itself, and those that choose for
#: cluster IPs and node ports stand whether somebody has that many or not: for a chain that looks up
#: a map the kernel walks along all elements of that map (nf_tables_bind_set, 4 ms for 110,000).
#: Beyond, a slot's number is handed to a chain that all numbers of slots share.
ALWAYS = 64

#: All nodes choose alike: a client that comes by another node gets the same endpoint.
HASH_SEED = 0x6B70726F


class Frame(Value, frozen=True):
    """What the rules depend on besides the services. ``every_address``: node ports answer on all
    addresses but loopback, else on those of a set. ``seed`` is of the hash of IPv6 clients."""

    family: Family
    settings: NodeSettings
    every_address: bool
    mark: int
    detector: LocalDetector | None
    masquerade_all: bool
    ranges: tuple[str, ...]
    seed: int


# --- what a rule is made of ---------------------------------------------------------------------


class When(Enum):
    """Conditions without parameters."""

    NEW = "of a new connection"
    POD = "from a pod of this node"
    FROM_NODE = "from the node itself"
    TO_NODE = "to an address on which node ports answer"
    UNTRANSLATED = "not led to an endpoint by anybody"
    CLUSTER_IP = "to a cluster IP"
    NOT_STEERED = "not led to fastpath's engine"
    TCP = "of TCP"
    HAIRPIN = "an endpoint to itself"
    MARKED = "marked to be masqueraded"


class ToRange(Value, frozen=True):
    """The destination is in a range."""

    cidr: str


class Permitted(Value, frozen=True):
    """The source is in a permitted range with a prefix of ``length`` bits."""

    length: int


class Do(Enum):
    """Actions without parameters. MASQUERADE takes the mark off where there is one."""

    MARK = "mark"
    DROP = "drop"
    RETURN = "return"
    RESET = "refuse by reset"
    REFUSE = "refuse"
    UNMARK = "take the mark off"
    MASQUERADE = "masquerade"


class Go(Value, frozen=True):
    """Go to a chain for good."""

    chain: str


class Ask(Value, frozen=True):
    """A verdict map decides."""

    map: str


class Choose(Value, frozen=True):
    """DNAT to one of ``size`` endpoints of a map, by chance or by the client."""

    map: str
    size: int
    by_client: bool


class Draw(Value, frozen=True):
    """Put the number of one of ``size`` slots, by chance or by the client, into the packet's
    priority, and go to a chain that sends it there."""

    chain: str
    size: int
    by_client: bool


class Send(Value, frozen=True):
    """DNAT to the endpoint that a map has for the packet's priority."""

    map: str


class Step(Enum):
    """The steps of affinity, see :func:`_staying`."""

    NAME = "the service port's name as a number"
    CANDIDATE = "the id of one of the endpoints"
    RECALL = "keep the client's id, or store the candidate"
    READ = "the client's id"
    CLEAR = "leave no trace on the connection"
    SEND = "DNAT to the endpoint of that id"
    FORGET = "the id is gone: forget the client"


class Stay(Value, frozen=True):
    """One step of affinity for a pick."""

    step: Step
    pick: Pick


Condition = When | ToRange | Permitted
Action = Do | Go | Ask | Choose | Draw | Send | Stay


class Rule(NamedTuple):
    when: tuple[Condition, ...]
    then: tuple[Action, ...]


class Hook(Value, frozen=True):
    type: str
    hook: str
    priority: int


class Chain(Value, frozen=True):
    name: str
    rules: tuple[Rule, ...]
    hook: Hook | None = None


# --- chains that services are led to ------------------------------------------------------------


class Pick(Value, frozen=True):
    """Choose among ``size`` slots. ``node``: of a node port; ``local``: of the Local set beside the
    Cluster one; ``by_client``: by a hash; ``stay``: seconds of affinity, 0 for none."""

    size: int
    node: bool = False
    local: bool = False
    by_client: bool = False
    stay: int = 0

    @property
    def prefix(self) -> str:
        """Of its maps."""
        return f"{'node-' * self.node}{'local-' * self.local}"

    @property
    def direct(self) -> bool:
        """Whether its chain looks up the endpoint of a slot itself."""
        return not self.stay and self.size <= ALWAYS

    @property
    def places(self) -> str:
        """The map that has its endpoints: by slot, or by their ids where clients stay."""
        return f"{self.prefix}{'endpoints' if self.direct else 'known'}"

    @property
    def words(self) -> str:
        stay = f"-stay-{self.stay}" if self.stay else ""
        return f"{self.size}{'-hash' * self.by_client}{stay}"

    @property
    def name(self) -> str:
        return f"{self.prefix}pick-{self.words}"


class Way(StrEnum):
    """How a client came in, as far as it decides about the source address."""

    INSIDE = "inside"
    OUTSIDE = "outside"
    NEAR = "near"


class Treat(Value, frozen=True):
    """What happens before a pick."""

    way: Way
    pick: Pick

    @property
    def name(self) -> str:
        return f"{'node-' * self.pick.node}{self.way}-{self.pick.words}"


class Fence(Value, frozen=True):
    """Who may come in: sources in ranges with prefixes of these lengths."""

    lengths: tuple[int, ...]

    @property
    def name(self) -> str:
        words = "-".join(map(str, self.lengths)) or "nobody"
        # nf_tables has room for 255 bytes.
        return f"fence-{words if len(words) < _LONGEST else _digest(words)}"


_LONGEST = 100


def _digest(words: str) -> str:
    return hashlib.blake2b(words.encode(), digest_size=16).hexdigest()


Spec = Pick | Treat | Fence

_POLICIES = {
    Way.INSIDE: (Entry.INTERNAL, TrafficPolicy.CLUSTER),
    Way.OUTSIDE: (Entry.EXTERNAL, TrafficPolicy.CLUSTER),
    Way.NEAR: (Entry.EXTERNAL, TrafficPolicy.LOCAL),
}


def way_of(entry: Entry, policy: TrafficPolicy) -> Way:
    """``policy`` is the external one; the internal one only decides which endpoints there are."""
    if entry is Entry.INTERNAL:
        return Way.INSIDE
    return Way.OUTSIDE if policy is TrafficPolicy.CLUSTER else Way.NEAR


def treated(settings: NodeSettings, way: Way, client: Client) -> Treatment:
    entry, policy = _POLICIES[way]
    return treatment(settings, entry, client, internal=TrafficPolicy.CLUSTER, external=policy)


def chain_of(spec: Spec, frame: Frame) -> Chain:
    """The chain of its name."""
    if isinstance(spec, Fence):
        rules = [Rule((Permitted(length),), (Do.RETURN,)) for length in spec.lengths]
        return Chain(spec.name, (*rules, Rule((), (Do.DROP,))))
    rules = _pick(spec, frame) if isinstance(spec, Pick) else _treat(spec, frame)
    return Chain(spec.name, tuple(rules))


def _treat(spec: Treat, frame: Frame) -> list[Rule]:
    rest = treated(frame.settings, spec.way, Client.OTHER)
    main = treated(frame.settings, spec.way, Client.NODE).use
    rules = []
    for client, when in ((Client.POD, When.POD), (Client.NODE, When.FROM_NODE)):
        row = treated(frame.settings, spec.way, client)
        if row == rest or (client is Client.POD and frame.detector is None):
            continue
        rules.append(Rule((when,), _onwards(spec.pick, row.masquerade)))
    if rest.use is main:
        rules.append(Rule((), _onwards(spec.pick, rest.masquerade)))
    else:
        mark = (Do.MARK,) if rest.masquerade else ()
        rules.append(Rule((), (*mark, Ask(f"{'node-' * spec.pick.node}local-ways"))))
    return rules


def _onwards(pick: Pick, masquerade: bool) -> tuple[Action, ...]:
    mark: tuple[Action, ...] = (Do.MARK,) if masquerade else ()
    return (*mark, Go(pick.name)) if pick.size else (Do.RETURN,)


def _pick(pick: Pick, frame: Frame) -> list[Rule]:
    if pick.direct:
        return [Rule((), (Choose(pick.places, pick.size, pick.by_client),))]
    if not pick.stay:
        return [Rule((), (Draw(f"{pick.prefix}send", pick.size, pick.by_client),))]
    return [Rule((), (Stay(step, pick),)) for step in _staying(frame.family)]


def _staying(family: Family) -> tuple[Step, ...]:
    """The id that a client keeps is written and read by packets; where it is gone, once more."""
    if family is Family.IPV4:
        once = (Step.NAME, Step.CANDIDATE, Step.RECALL, Step.READ, Step.CLEAR, Step.SEND)
        return (*once, Step.NAME, Step.FORGET, *once[1:])
    # The name goes into the hash, and the priority is free again after that.
    once = (Step.NAME, Step.CANDIDATE, Step.RECALL, Step.READ, Step.CLEAR, Step.SEND)
    return (*once, Step.NAME, Step.FORGET, *once)


#: Chains of one kind whose numbers of slots are together.
_TOGETHER = 16


def together(spec: Spec) -> list[Spec]:
    """The same for other numbers of slots, which are likely to be next."""
    if isinstance(spec, Fence):
        return []
    pick = spec if isinstance(spec, Pick) else spec.pick
    first = pick.size // _TOGETHER * _TOGETHER
    picks = [replace(pick, size=size) for size in range(first, first + _TOGETHER)]
    if isinstance(spec, Treat):
        return [Treat(spec.way, other) for other in picks]
    return [other for other in picks if other.size]


def leads(chain: Chain) -> set[str]:
    """Names of the chains that its rules go to."""
    return {
        action.chain
        for rule in chain.rules
        for action in rule.then
        if isinstance(action, Go | Draw)
    }


# --- base chains ----------------------------------------------------------------------------------

REFUSE = "refuse"
#: Which maps: of addresses or node ports, of the main or the Local set; see :attr:`Pick.prefix`.
_WAYS = ("", "local-", "node-", "node-local-")


def base(frame: Frame) -> tuple[Chain, ...]:
    """All chains that do not depend on services; those that others go to come first."""
    new = (When.NEW,)
    to_node = (When.UNTRANSLATED, When.TO_NODE)
    # Who was led to an endpoint does not care that its place is somebody's address without any.
    unserved = Rule((When.UNTRANSLATED,), (Ask("unserved"),))
    strangers = [Rule((When.CLUSTER_IP, When.NOT_STEERED), (Go(REFUSE),))]
    strangers += [Rule((ToRange(cidr), When.NOT_STEERED), (Do.DROP,)) for cidr in frame.ranges]
    return (
        Chain(REFUSE, (Rule((When.TCP,), (Do.RESET,)), Rule((), (Do.REFUSE,)))),
        *(Chain(f"{way}send", (Rule((), (Send(f"{way}known"),)),)) for way in _WAYS),
        Chain("sources", (Rule((), (Ask("restricted"),)),)),
        Chain("services", (
            Rule((), (Ask("ways"),)),
            Rule((When.TO_NODE,), (Ask("node-ways"),)),
        )),
        Chain("arriving", (unserved, Rule(to_node, (Ask("node-unserved"),)))),
        Chain("leaving", (unserved, *strangers)),
        _hooked("filter", "prerouting", -110, Rule(new, (Go("sources"),)), "first-"),
        _hooked("filter", "output", -110, Rule(new, (Go("sources"),)), "first-"),
        _hooked("nat", "prerouting", -100, Rule((), (Go("services"),))),
        _hooked("nat", "output", -100, Rule((), (Go("services"),))),
        _hooked("filter", "input", 0, Rule(new, (Go("arriving"),))),
        _hooked("filter", "forward", 0, Rule(new, (Go("leaving"),))),
        _hooked("filter", "output", 0, Rule(new, (Go("leaving"),))),
        Chain("nat-postrouting", (
            Rule((When.MARKED,), (Do.UNMARK, Do.MASQUERADE)),
            Rule((When.HAIRPIN,), (Do.MASQUERADE,)),
        ), Hook("nat", "postrouting", 100)),
    )  # fmt: skip


def _hooked(type_: str, hook: str, priority: int, rule: Rule, before: str = "") -> Chain:
    return Chain(f"{before}{type_}-{hook}", (rule,), Hook(type_, hook, priority))
