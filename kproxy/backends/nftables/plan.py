"""What nftables mode makes of one service port: elements, and chains that they lead to. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from ipaddress import collapse_addresses, ip_network
from math import gcd

from kproxy.backends.nftables import elements
from kproxy.backends.nftables.elements import CLUSTER_IPS, HAIRPIN, RESTRICTED, SOURCES, Record
from kproxy.backends.nftables.rules import REFUSE, Pick, Spec, Treat, way_of
from kproxy.core.objects import PortName, Value
from kproxy.core.policy import Client, Entry, Use, Verdict, treatment, verdict
from kproxy.core.snapshot import Endpoint, NodeSettings, PortPlan
from kproxy.core.ways import permitted

#: By it a Service chooses how endpoints are picked, one of :data:`CHOICES`.
CHOICE_ANNOTATION = "kproxy/nftables-choice"
#: Name -> whether the client decides.
CHOICES = {"random": False, "hash": True}

_VERDICTS = {Verdict.REFUSE: REFUSE, Verdict.DROP: elements.DROP}
#: Elements by set.
Elements = Mapping[str, tuple[Record, ...]]


class Block(Value, frozen=True):
    """One service port. ``shared`` are elements that other service ports may have as well."""

    own: Elements
    shared: Elements
    specs: frozenset[Spec]
    notice: str = ""


class _Slots(Value, frozen=True):
    """The endpoints of a set by slot, packed; each as often as its weight says."""

    places: tuple[bytes, ...]

    @property
    def size(self) -> int:
        return len(self.places)


def block(plan: PortPlan, settings: NodeSettings, choice: str = "random") -> Block:
    """``choice`` is for service ports that say nothing of it."""
    asked = dict(plan.annotations).get(CHOICE_ANNOTATION, choice) if plan.annotations else choice
    notice = ""
    if asked not in CHOICES:
        notice = f"{CHOICE_ANNOTATION}: {asked!r} is none of {', '.join(CHOICES)}"
        asked = choice
    maker = _Maker(plan, settings, CHOICES[asked])
    maker.make()
    shared = {CLUSTER_IPS.name: maker.cluster_ips, HAIRPIN.name: _hairpin(plan)}
    return Block(
        own={name: tuple(records) for name, records in maker.own.items()},
        shared={name: records for name, records in shared.items() if records},
        specs=frozenset(maker.specs),
        notice=notice,
    )


class _Maker:
    """Gathers what one service port has."""

    def __init__(self, plan: PortPlan, settings: NodeSettings, by_client: bool) -> None:
        self._plan, self._settings, self._by_client = plan, settings, by_client
        self._stay = plan.affinity_seconds or 0
        self._slots: dict[Use, _Slots] = {}
        self._protocol = elements.protocol(plan.protocol)
        self.own: dict[str, list[Record]] = {}
        self.specs: set[Spec] = set()
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
        main, far = (self._use(entry, client) for client in (Client.NODE, Client.OTHER))
        sizes = {use: self._of(use).size for use in (main, far)}
        pick = self._pick(sizes[main], node=node)
        treat = Treat(way_of(entry, plan.external_policy), pick)
        if any(sizes.values()) or not node:
            # An address of a service is never the node port of another, endpoints or not.
            self._add(f"{prefix}ways", elements.way(key, treat.name))
            self.specs |= {treat, pick} if pick.size else {treat}
        if self._stay and any(sizes.values()):
            self._add(f"{prefix}names", elements.entry(key, elements.number(_name(plan.name))))
        self._lead(pick, key, main)
        if far is not main and sizes[far]:
            local = self._pick(sizes[far], node=node, local=True)
            self._add(f"{prefix}local-ways", elements.way(key, local.name))
            self.specs.add(local)
            self._lead(local, key, far)
        if not all(sizes.values()):
            unserved = next(use for use, size in sizes.items() if not size)
            chain = _VERDICTS[verdict(plan.endpoints, unserved)]
            self._add(f"{prefix}unserved", elements.way(key, chain))

    def _use(self, entry: Entry, client: Client) -> Use:
        plan = self._plan
        return treatment(
            self._settings,
            entry,
            client,
            internal=plan.internal_policy,
            external=plan.external_policy,
        ).use

    def _pick(self, size: int, *, node: bool, local: bool = False) -> Pick:
        return Pick(size, node, local, self._by_client, self._stay)

    def _of(self, use: Use) -> _Slots:
        if use not in self._slots:
            sets = self._plan.endpoints
            chosen = sets.cluster if use is Use.CLUSTER else sets.local
            self._slots[use] = _slots(chosen or ())
        return self._slots[use]

    def _lead(self, pick: Pick, key: bytes, use: Use) -> None:
        """From slots to endpoints; with affinity by ids, which stay while slots move."""
        places = self._of(use).places
        keys = [key + elements.number(slot) for slot in range(len(places))]
        if not pick.stay:
            self._add(f"{pick.prefix}endpoints", *elements.entries(keys, places))
            return
        ids = _ids(places)
        numbers = [elements.number(ids[place]) for place in places]
        self._add(f"{pick.prefix}ids", *elements.entries(keys, numbers))
        known = [key + elements.number(number) for number in ids.values()]
        self._add(f"{pick.prefix}known", *elements.entries(known, list(ids)))

    def _restrict(self, key: bytes) -> None:
        self._add(RESTRICTED.name, elements.member(key))
        # Ranges within each other would be refused.
        ranges = [ip_network(text) for text in permitted(self._plan, self._settings)]
        for range_ in collapse_addresses(ranges):  # type: ignore[type-var]
            self._add(SOURCES.name, elements.source(key, str(range_)))


def _slots(endpoints: Sequence[Endpoint]) -> _Slots:
    places = [elements.address(one.ip) + elements.port(one.port) for one in endpoints]
    weights = {one.weight for one in endpoints}
    if len(weights) < 2:
        return _Slots(tuple(places))
    unit = gcd(*weights)
    return _Slots(
        tuple(
            place
            for place, one in zip(places, endpoints, strict=True)
            for _ in range(one.weight // unit)
        )
    )


def _name(name: PortName) -> int:
    """The same in every life of the proxy, so that clients are known again."""
    return _hash(f"{name}/{name.protocol}".encode())


def _ids(places: Sequence[bytes]) -> dict[bytes, int]:
    """Place -> a number that stays while others come and go; no two have the same."""
    found: dict[bytes, int] = {}
    taken: set[int] = set()
    for place in places:
        if place in found:
            continue
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
