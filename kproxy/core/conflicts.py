"""Who gets an address, protocol and port that two services claim.

kube-proxy lets both write their rules, and which one works is chance. Here the stronger claim wins
in all modes, the loser keeps its other addresses and is reported, and it gets the address when the
winner goes. The index holds all claims of one family; its work follows the claims that change.
"""

from __future__ import annotations

from enum import IntEnum
from math import inf
from typing import NamedTuple

from kproxy.core.objects import ObjectKey, Protocol, Refusal
from kproxy.core.offers import Offer


class Kind(IntEnum):
    """How an address or port came to be claimed; of one service's own claims the lower wins."""

    CLUSTER_IP = 0
    LOAD_BALANCER = 1
    EXTERNAL_IP = 2
    NODE_PORT = 3
    HEALTH_CHECK = 4


#: Strength of a kind against other services, 0 strongest. Cluster IPs are given out by the cluster,
#: load-balancer addresses by its provider, external IPs by anybody who may write a Service
#: (CVE-2020-8554). Node ports and health checks are equals: both come from one range of ports.
RANK: dict[Kind, int] = {
    Kind.CLUSTER_IP: 0,
    Kind.LOAD_BALANCER: 1,
    Kind.EXTERNAL_IP: 2,
    Kind.NODE_PORT: 3,
    Kind.HEALTH_CHECK: 3,
}

#: kind -> (field of the Service, what it is called).
_WORDS: dict[Kind, tuple[str, str]] = {
    Kind.CLUSTER_IP: ("spec.clusterIPs", "cluster IP"),
    Kind.LOAD_BALANCER: ("status.loadBalancer.ingress", "load-balancer IP"),
    Kind.EXTERNAL_IP: ("spec.externalIPs", "external IP"),
    Kind.NODE_PORT: ("spec.ports[{place}].nodePort", "node port"),
    Kind.HEALTH_CHECK: ("spec.healthCheckNodePort", "health check node port"),
}


class Spot(NamedTuple):
    """What only one service port can have. ``address`` "" is every address of this node."""

    address: str
    protocol: Protocol
    number: int

    def __str__(self) -> str:
        """``192.0.2.1:80/TCP``, ``[2001:db8::1]:80/TCP``, ``30080/TCP``."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.number}/{self.protocol}" if host else f"{self.number}/{self.protocol}"


class Claim(NamedTuple):
    """One service port's claim; **the order of the fields is the order of precedence**, least wins.

    ``created`` is the creationTimestamp in seconds; an object without one is younger than all
    others, so that a hand-written manifest takes nothing away. ``place`` is the port's in
    ``spec.ports`` (-1: the service as a whole).
    """

    rank: int
    created: float
    namespace: str
    name: str
    kind: Kind
    place: int
    spot: Spot

    @property
    def service(self) -> ObjectKey:
        return ObjectKey(self.namespace, self.name)


def claims_of(offer: Offer) -> tuple[Claim, ...]:
    """Everything that the offer claims."""
    namespace, name = offer.key
    created = offer.created or inf
    claims: list[Claim] = []

    def claim(kind: Kind, place: int, address: str, protocol: Protocol, number: int) -> None:
        spot = Spot(address, protocol, number)
        claims.append(Claim(RANK[kind], created, namespace, name, kind, place, spot))

    for place, port in enumerate(offer.ports):
        claim(Kind.CLUSTER_IP, place, offer.cluster_ip, port.protocol, port.port)
        for address in offer.load_balancer_ips:
            claim(Kind.LOAD_BALANCER, place, address, port.protocol, port.port)
        for address in offer.external_ips:
            claim(Kind.EXTERNAL_IP, place, address, port.protocol, port.port)
        if port.node_port:
            claim(Kind.NODE_PORT, place, "", port.protocol, port.node_port)
    if offer.health_check_node_port:
        claim(Kind.HEALTH_CHECK, -1, "", Protocol.TCP, offer.health_check_node_port)
    return tuple(claims)


class ClaimIndex:
    """All claims of one family, and who lost what."""

    def __init__(self) -> None:
        self._claims: dict[ObjectKey, tuple[Claim, ...]] = {}
        self._holders: dict[Spot, Claim] = {}
        self._losers: dict[Spot, list[Claim]] = {}
        self._lost: dict[ObjectKey, set[Claim]] = {}
        self._refusals: tuple[Refusal, ...] | None = ()

    def replace(self, service: ObjectKey, claims: tuple[Claim, ...]) -> set[ObjectKey]:
        """Set all claims of a service. Returns the *other* services that won or lost by it."""
        old = self._claims.get(service, ())
        if claims == old:
            return set()
        if claims:
            self._claims[service] = claims
        else:
            del self._claims[service]
        gone, come = set(old), set(claims)
        touched: set[ObjectKey] = set()
        for claim in gone - come:
            touched |= self._withdraw(claim)
        for claim in come - gone:
            touched |= self._enter(claim)
        touched.discard(service)
        return touched

    def lost(self, service: ObjectKey) -> frozenset[Claim] | set[Claim]:
        """The claims of the service that somebody else (or a stronger one of its own) holds."""
        return self._lost.get(service, frozenset())

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """One refusal for each claim that was lost to another service port, sorted."""
        if self._refusals is None:
            found = [
                _refusal(loser, self._holders[spot])
                for spot, losers in self._losers.items()
                for loser in losers
                if not _same_port(loser, self._holders[spot])
            ]
            self._refusals = tuple(sorted(found, key=lambda it: (it.key, it.field, it.message)))
        return self._refusals

    def _enter(self, claim: Claim) -> set[ObjectKey]:
        holder = self._holders.setdefault(claim.spot, claim)
        if holder is claim:
            return set()
        winner, loser = (claim, holder) if claim < holder else (holder, claim)
        self._holders[claim.spot] = winner
        self._losers.setdefault(claim.spot, []).append(loser)
        self._mark(loser, lost=True)
        return {loser.service}

    def _withdraw(self, claim: Claim) -> set[ObjectKey]:
        spot = claim.spot
        losers = self._losers.get(spot)
        if losers is None:
            del self._holders[spot]
            return set()
        heir = claim if self._holders[spot] != claim else min(losers)
        losers.remove(heir)
        if not losers:
            del self._losers[spot]
        self._mark(heir, lost=False)
        if heir is not claim:
            self._holders[spot] = heir
        return {heir.service}

    def _mark(self, claim: Claim, *, lost: bool) -> None:
        self._refusals = None
        mine = self._lost.setdefault(claim.service, set())
        if lost:
            mine.add(claim)
        else:
            mine.discard(claim)
        if not mine:
            del self._lost[claim.service]


def _same_port(one: Claim, other: Claim) -> bool:
    """Whether one service port claims a spot twice: nothing is lost, so nothing is reported."""
    return one.service == other.service and one.place == other.place


def _refusal(loser: Claim, winner: Claim) -> Refusal:
    field, word = _WORDS[loser.kind]
    if loser.service == winner.service and loser.spot.address:
        field = "spec.ports[{place}].port"
    return Refusal(
        f"{word} {loser.spot} is taken by Service {winner.service} ({_WORDS[winner.kind][1]}); "
        "give one of the two another",
        kind="Service",
        key=str(loser.service),
        field=field.format(place=loser.place),
        whole=False,
    )
