"""What nftables mode makes of one service port: elements, and chains that they lead to. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from ipaddress import collapse_addresses, ip_network

from kproxy.backends.nftables import elements
from kproxy.backends.nftables.elements import CLUSTER_IPS, HAIRPIN, RESTRICTED, Record
from kproxy.backends.nftables.rules import REFUSE, Fence, Pick, Spec, Treat, Way, way_of
from kproxy.backends.nftables.seats import NO_PAST, Past, Place, Seats, Slots, in_order, seated
from kproxy.core.objects import PortName, TrafficPolicy, Value
from kproxy.core.policy import Client, Entry, Use, Verdict, treatment, verdict
from kproxy.core.snapshot import NodeSettings, PortPlan
from kproxy.core.ways import permitted

#: By it a Service chooses how endpoints are picked, one of :data:`CHOICES`.
CHOICE_ANNOTATION = "kproxy/nftables-choice"
#: Name -> whether the client decides.
CHOICES = {"random": False, "hash": True}

_VERDICTS = {Verdict.REFUSE: REFUSE, Verdict.DROP: elements.DROP}
#: Elements by set.
Elements = Mapping[str, tuple[Record, ...]]


class Block(Value, frozen=True, gc=False):
    """One service port. ``shared`` are elements that other service ports may have as well.
    ``seats``: who has which slot, where that is not the order of the plan."""

    own: Elements
    shared: Elements
    specs: frozenset[Spec]
    seats: Seats
    notice: str = ""


def block(
    plan: PortPlan, settings: NodeSettings, choice: str = "random", past: Past = NO_PAST
) -> Block:
    """``choice`` is for service ports that say nothing of it; endpoints keep the slots that they
    had in the ``past``."""
    maker, notice = _maker(plan, settings, choice, past)
    shared = {CLUSTER_IPS.name: maker.cluster_ips, HAIRPIN.name: _hairpin(plan)}
    return Block(
        own={name: tuple(records) for name, records in maker.own.items()},
        shared={name: records for name, records in shared.items() if records},
        specs=_alike(frozenset(maker.specs)),
        seats=maker.seats or _IN_ORDER,
        notice=notice,
    )


def leads(plan: PortPlan, settings: NodeSettings, choice: str) -> dict[Use, tuple[Pick, bytes]]:
    """One of the ways on which each set is chosen from: the pick, and the key of its elements."""
    maker, _ = _maker(plan, settings, choice, NO_PAST)
    return maker.leads


def _maker(plan: PortPlan, settings: NodeSettings, choice: str, past: Past) -> tuple[_Maker, str]:
    asked = dict(plan.annotations).get(CHOICE_ANNOTATION, choice) if plan.annotations else choice
    notice = ""
    if asked not in CHOICES:
        notice = f"{CHOICE_ANNOTATION}: {asked!r} is none of {', '.join(CHOICES)}"
        asked = choice
    maker = _Maker(plan, settings, past, by_client=CHOICES[asked])
    maker.make()
    return maker, notice


#: One object for all that are in order.
_IN_ORDER: Seats = {}


@cache
def _alike(specs: frozenset[Spec]) -> frozenset[Spec]:
    """The same object for equal ones: there are few, and each block has one."""
    return specs


@cache
def _uses(entry: Entry, internal: TrafficPolicy, external: TrafficPolicy) -> tuple[Use, Use]:
    """The sets for the node itself, and for clients elsewhere; settings only decide who is
    masqueraded."""
    main, far = (
        treatment(NodeSettings(""), entry, client, internal=internal, external=external).use
        for client in (Client.NODE, Client.OTHER)
    )
    return main, far


@cache
def _chains(way: Way, size: int, node: bool, by_client: bool, stay: int) -> tuple[Treat, str]:
    treat = Treat(way, Pick(size, node, False, by_client, stay))
    return treat, treat.name


class _Maker:
    """Gathers what one service port has."""

    def __init__(
        self, plan: PortPlan, settings: NodeSettings, past: Past, *, by_client: bool
    ) -> None:
        self._plan, self._settings, self._by_client = plan, settings, by_client
        # Where the client decides, all nodes have to choose alike.
        self._past = NO_PAST if by_client else past
        self._stay = plan.affinity_seconds or 0
        self._slots: dict[Use, Slots] = {}
        self._protocol = elements.protocol(plan.protocol)
        self.own: dict[str, list[Record]] = {}
        self.specs: set[Spec] = set()
        self.seats: dict[Use, Slots] = {}
        self.leads: dict[Use, tuple[Pick, bytes]] = {}
        self.cluster_ips: tuple[Record, ...] = ()

    def make(self) -> None:
        plan = self._plan
        rest = self._protocol + elements.port(plan.port)
        if plan.cluster_ip:
            address = elements.address(plan.cluster_ip)
            self.cluster_ips = (elements.member(address),)
            self._way_in(Entry.INTERNAL, address + rest)
        for text in (*plan.external_ips, *plan.load_balancer_ips):
            self._way_in(Entry.EXTERNAL, elements.address(text) + rest)
        # What nobody serves is refused whoever asks.
        if plan.restricted and plan.endpoints.has_any:
            for text in plan.load_balancer_ips:
                self._restrict(elements.address(text) + rest)
        if plan.node_port:
            key = self._protocol + elements.port(plan.node_port)
            self._way_in(Entry.EXTERNAL, key, node=True)

    def _add(self, name: str, *records: Record) -> None:
        if records:
            self.own.setdefault(name, []).extend(records)

    def _way_in(self, entry: Entry, key: bytes, *, node: bool = False) -> None:
        plan, prefix = self._plan, "node-" * node
        main, far = _uses(entry, plan.internal_policy, plan.external_policy)
        sizes = {use: len(self._of(use)) for use in (main, far)}
        way = way_of(entry, plan.external_policy)
        treat, chain = _chains(way, sizes[main], node, self._by_client, self._stay)
        pick = treat.pick
        if any(sizes.values()) or not node:
            # An address of a service is never the node port of another, endpoints or not.
            self._add(f"{prefix}ways", elements.way(key, chain))
            self.specs |= {treat, pick} if pick.size else {treat}
        if self._stay and any(sizes.values()):
            self._add(f"{prefix}names", elements.entry(key, elements.number(_name(plan.name))))
        self._lead(pick, key, main)
        if far is not main and sizes[far]:
            local = Pick(sizes[far], node, True, self._by_client, self._stay)
            self._add(f"{prefix}local-ways", elements.way(key, local.name))
            self.specs.add(local)
            self._lead(local, key, far)
        if not all(sizes.values()):
            unserved = next(use for use, size in sizes.items() if not size)
            nobody = _VERDICTS[verdict(plan.endpoints, unserved)]
            self._add(f"{prefix}unserved", elements.way(key, nobody))

    def _of(self, use: Use) -> Slots:
        if use not in self._slots:
            wanted = in_order(self._plan.endpoints, use)
            found = self._slots[use] = seated(wanted, self._past.of(use))
            if found != wanted:
                self.seats[use] = found
        return self._slots[use]

    def _lead(self, pick: Pick, key: bytes, use: Use) -> None:
        """From slots to endpoints; with affinity by ids, which stay while slots move."""
        places = self._of(use)
        self.leads.setdefault(use, (pick, key))
        keys = [key + elements.number(slot) for slot in range(len(places))]
        if not pick.stay:
            self._add(pick.places, *elements.entries(keys, places))
            return
        ids = _ids(places)
        numbers = [elements.number(ids[place]) for place in places]
        self._add(f"{pick.prefix}ids", *elements.entries(keys, numbers))
        known = [key + elements.number(number) for number in ids.values()]
        self._add(pick.places, *elements.entries(known, list(ids)))

    def _restrict(self, key: bytes) -> None:
        # Ranges within each other are more elements than they need be.
        ranges = [ip_network(text) for text in permitted(self._plan, self._settings)]
        found = list(collapse_addresses(ranges))  # type: ignore[type-var]
        fence = Fence(tuple(sorted({range_.prefixlen for range_ in found})))
        if 0 in fence.lengths:
            return
        self.specs.add(fence)
        self._add(RESTRICTED.name, elements.way(key, fence.name))
        for range_ in found:
            self._add(*elements.source(key, str(range_)))


def _name(name: PortName) -> int:
    """The same in every life of the proxy, so that clients are known again."""
    return _hash(f"{name}/{name.protocol}".encode())


def _ids(places: Sequence[Place]) -> dict[Place, int]:
    """Place -> a number that stays while others come and go; no two have the same. Slots mean
    nothing to it."""
    found: dict[Place, int] = {}
    taken: set[int] = set()
    for place in sorted(set(places)):
        number = _hash(place)
        while number in taken:
            number = number % 0xFFFFFFFF + 1
        taken.add(number)
        found[place] = number
    return found


def _hash(data: bytes) -> int:
    """Never 0: that is no mark at all."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest()) or 1


def _hairpin(plan: PortPlan) -> tuple[Record, ...]:
    """An endpoint that is its own client is one of this node, as its packets come by here."""
    addresses = {one.ip for one in plan.endpoints.all if one.local}
    return tuple(elements.member(elements.address(ip) * 2) for ip in sorted(addresses))
