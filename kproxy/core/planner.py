"""Makes the Snapshots of one family: from the tracked objects to what this node should do.

A planner remembers its last Snapshot and plans again only what may have changed: the services that
the tracker names, and those that won or lost an address by it. All else is shared with the
predecessor, object for object, so that later stages can tell by identity.
"""

from __future__ import annotations

from collections.abc import Iterable

from kproxy.core.conflicts import Claim, ClaimIndex, Kind, claims_of
from kproxy.core.health.book import Book
from kproxy.core.health.clerk import Clerk
from kproxy.core.objects import Family, ObjectKey, PortName, Protocol, ServicePort
from kproxy.core.offers import Offer, offer_of
from kproxy.core.slices import join
from kproxy.core.snapshot import NodeSettings, PortPlan, Snapshot
from kproxy.core.topology import categorize, local_ready, spare
from kproxy.core.tracker import Changes, Tracker


class Planner:
    """Plans one family. Every :class:`Changes` has to be given to it exactly once, in order."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._last: Snapshot | None = None
        self._claims = ClaimIndex()
        self._names: dict[ObjectKey, tuple[PortName, ...]] = {}
        self._clerk = Clerk(family)

    def plan(
        self,
        tracker: Tracker,
        settings: NodeSettings,
        changes: Changes | None = None,
        book: Book | None = None,
    ) -> Snapshot:
        """The Snapshot for the tracker's present state.

        Everything is planned the first time, without ``changes`` and when ``settings`` differ;
        such a Snapshot has no ``base``. Otherwise only what ``changes`` touches is planned, and
        the last Snapshot itself comes back when nothing differs in this family. ``book`` has what
        is known of health, always the same one; services whose health changed are ``changes`` too.
        Without it only the API decides.
        """
        last = self._last
        self._clerk.open(settings.health, book)
        if last is None or changes is None or settings != last.settings:
            self._last = self._plan_all(tracker, settings)
        else:
            self._last = self._plan_changed(tracker, last, changes)
        return self._last

    def _plan_all(self, tracker: Tracker, settings: NodeSettings) -> Snapshot:
        old = self._last.ports if self._last is not None else {}
        self._claims, self._names = ClaimIndex(), {}
        offers: dict[ObjectKey, Offer] = {}
        for service in tracker.services():
            offer = offer_of(service, self.family)
            if offer is not None:
                offers[offer.key] = offer
                self._claims.replace(offer.key, claims_of(offer))
        ports: dict[PortName, PortPlan] = {}
        for key, offer in offers.items():
            plans = self._plan_service(tracker, settings, offer)
            self._names[key] = tuple(plans)
            for name, plan in plans.items():
                before = old.get(name)
                ports[name] = before if before is not None and before == plan else plan
        health, forbidden = self._clerk.close(everything=True)
        return Snapshot(
            family=self.family,
            settings=settings,
            ports=ports,
            generation=self._last.generation + 1 if self._last is not None else 1,
            changed=frozenset(ports),
            removed=frozenset(old.keys() - ports.keys()),
            endpoint_count=sum(len(plan.endpoints.all) for plan in ports.values()),
            conflicts=self._claims.refusals + forbidden,
            health=health,
        )

    def _plan_changed(self, tracker: Tracker, last: Snapshot, changes: Changes) -> Snapshot:
        ports: dict[PortName, PortPlan] | None = None
        changed: set[PortName] = set()
        removed: set[PortName] = set()
        count = last.endpoint_count
        for key in self._dispute(tracker, changes.services):
            offer = offer_of(tracker.service(key), self.family)
            plans = self._plan_service(tracker, last.settings, offer) if offer is not None else {}
            for name, plan in _differences(plans, self._names.get(key, ()), last):
                if ports is None:
                    ports = dict(last.ports)
                before = ports.pop(name, None) if plan is None else ports.get(name)
                count -= len(before.endpoints.all) if before is not None else 0
                if plan is None:
                    removed.add(name)
                else:
                    ports[name] = plan
                    changed.add(name)
                    count += len(plan.endpoints.all)
            self._clerk.planned(key, self._names.get(key, ()))
            self._remember(key, tuple(plans))
        health, forbidden = self._clerk.close(everything=False)
        conflicts = self._claims.refusals + forbidden
        if ports is None and conflicts == last.conflicts and health is last.health:
            return last
        return Snapshot(
            family=self.family,
            settings=last.settings,
            ports=last.ports if ports is None else ports,
            generation=last.generation + 1,
            base=last.generation,
            changed=frozenset(changed),
            removed=frozenset(removed),
            endpoint_count=count,
            conflicts=conflicts,
            health=health,
        )

    def _dispute(self, tracker: Tracker, services: Iterable[ObjectKey]) -> set[ObjectKey]:
        """Enter the claims of changed services; returns these and whom that touches."""
        touched = set(services)
        for key in services:
            offer = offer_of(tracker.service(key), self.family)
            touched |= self._claims.replace(key, claims_of(offer) if offer is not None else ())
        return touched

    def _remember(self, key: ObjectKey, names: tuple[PortName, ...]) -> None:
        if names:
            self._names[key] = names
        else:
            self._names.pop(key, None)

    def _plan_service(
        self, tracker: Tracker, settings: NodeSettings, offer: Offer
    ) -> dict[PortName, PortPlan]:
        """The plans of all ports of a service that are left with any way in."""
        slices = tracker.slices_of(offer.key)
        lost = self._claims.lost(offer.key)
        plans: dict[PortName, PortPlan] = {}
        for place, port in enumerate(offer.ports):
            kept = _Kept(offer, port, place, lost)
            name = PortName(*offer.key, port.name, port.protocol)
            if name in plans or not kept.any:
                continue
            endpoints = join(slices, self.family, port.name, port.protocol, settings.name)
            endpoints = self._clerk.pass_through(name, offer.health, endpoints)
            sets = categorize(
                endpoints,
                internal=offer.internal_policy,
                external=offer.external_policy,
                entry=kept.external,
                node=settings.name,
                zone=settings.zone,
            )
            if port.protocol is Protocol.UDP:
                sets = spare(sets, endpoints)
            plans[name] = PortPlan(
                name=name,
                port=port.port,
                endpoints=sets,
                cluster_ip=kept.cluster_ip,
                node_port=kept.node_port,
                external_ips=kept.external_ips,
                load_balancer_ips=kept.load_balancer_ips,
                source_ranges=offer.source_ranges if kept.load_balancer_ips else (),
                restricted=offer.restricted and bool(kept.load_balancer_ips),
                affinity_seconds=offer.affinity_seconds,
                internal_policy=offer.internal_policy,
                external_policy=offer.external_policy,
                health_check_node_port=kept.health_check_node_port,
                local_ready=local_ready(endpoints) if kept.health_check_node_port else (),
                annotations=offer.annotations,
            )
        return plans


def _differences(
    plans: dict[PortName, PortPlan], had: tuple[PortName, ...], last: Snapshot
) -> list[tuple[PortName, PortPlan | None]]:
    """The ports of one service that differ from the last Snapshot; None: it is gone."""
    found: list[tuple[PortName, PortPlan | None]] = [
        (name, plan) for name, plan in plans.items() if last.ports.get(name) != plan
    ]
    found += [(name, None) for name in had if name not in plans]
    return found


class _Kept:
    """What a service port keeps of its offer once the claims that it lost are taken away."""

    __slots__ = (
        "cluster_ip",
        "external_ips",
        "health_check_node_port",
        "load_balancer_ips",
        "node_port",
    )

    def __init__(self, offer: Offer, port: ServicePort, place: int, lost: Iterable[Claim]) -> None:
        self.cluster_ip = offer.cluster_ip
        self.node_port = port.node_port
        self.external_ips = offer.external_ips
        self.load_balancer_ips = offer.load_balancer_ips
        self.health_check_node_port = offer.health_check_node_port
        for claim in lost:
            if claim.place == place or claim.kind is Kind.HEALTH_CHECK:
                self._take(claim)

    def _take(self, claim: Claim) -> None:
        gone = claim.spot.address
        match claim.kind:
            case Kind.CLUSTER_IP:
                self.cluster_ip = ""
            case Kind.NODE_PORT:
                self.node_port = 0
            case Kind.HEALTH_CHECK:
                self.health_check_node_port = 0
            case Kind.EXTERNAL_IP:
                self.external_ips = tuple(ip for ip in self.external_ips if ip != gone)
            case Kind.LOAD_BALANCER:
                self.load_balancer_ips = tuple(ip for ip in self.load_balancer_ips if ip != gone)

    @property
    def external(self) -> bool:
        return bool(self.node_port or self.external_ips or self.load_balancer_ips)

    @property
    def any(self) -> bool:
        return bool(self.cluster_ip or self.external or self.health_check_node_port)
