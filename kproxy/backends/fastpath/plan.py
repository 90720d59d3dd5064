"""What fastpath mode makes of a Snapshot: one service table for each service port. Pure.

The engine decides nothing about policies: :mod:`kproxy.core.policy` is asked here for every kind of
client and way in, and the answers are what the engine looks up. A service port whose plan did not
change keeps its table, so that the work follows the change.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import gcd

from kproxy.core.objects import Family, PortName, Protocol, Value
from kproxy.core.policy import Client, Entry, Use, Verdict, treatment, verdict
from kproxy.core.snapshot import Endpoint, NodeSettings, PortPlan, Snapshot
from kproxy.core.twin.values import (
    SCTP,
    TCP,
    UDP,
    Algorithm,
    Fate,
    Member,
    NodeTable,
    Range,
    Row,
    Rows,
    ServiceTable,
    Way,
    WayKind,
)
from kproxy.core.ways import packed, permitted

#: By it a Service chooses how endpoints are picked, one of :data:`ALGORITHMS`.
SCHEDULER_ANNOTATION = "kproxy/fastpath-scheduler"
#: By it a Service weighs its endpoints: ``10.180.0.1=3, 10.180.0.2=1``; 1 for those not named.
#: One that starts slowly has its part of that.
WEIGHTS_ANNOTATION = "kproxy/fastpath-weights"

ALGORITHMS = {
    "maglev": Algorithm.MAGLEV,
    "random": Algorithm.RANDOM,
    "least-connections": Algorithm.LEAST,
}
MOST_WEIGHT = 65535

_NUMBERS = {Protocol.TCP: TCP, Protocol.UDP: UDP, Protocol.SCTP: SCTP}
_SETS = {Use.CLUSTER: 0, Use.LOCAL: 1}
_FATES = {Verdict.FORWARD: Fate.FORWARD, Verdict.REFUSE: Fate.REFUSE, Verdict.DROP: Fate.DROP}


class Tables(Value, frozen=True, eq=False):
    """All of one family. ``notices`` are service ports with an annotation that makes no sense, and
    why; they are served as if it were not there. Treat the mappings as read-only."""

    snapshot: Snapshot
    services: Mapping[PortName, ServiceTable]
    notices: Mapping[PortName, str]


def plan_tables(snapshot: Snapshot, previous: Tables | None) -> Tables:
    """``previous`` is the last result of the same planner, or None."""
    before = previous.snapshot if previous is not None else None
    if previous is None or before is None or snapshot.base != before.generation:
        names: Iterable[PortName] = snapshot.ports
        services: dict[PortName, ServiceTable] = {}
        notices: dict[PortName, str] = {}
    else:
        names = snapshot.changed
        gone = snapshot.changed | snapshot.removed
        services = {name: table for name, table in previous.services.items() if name not in gone}
        notices = {name: text for name, text in previous.notices.items() if name not in gone}
    for name in names:
        services[name], notice = service_table(
            snapshot.ports[name], snapshot.family, snapshot.settings
        )
        if notice:
            notices[name] = notice
    return Tables(snapshot, services, notices)


def differences(
    old: Mapping[PortName, ServiceTable], new: Tables
) -> tuple[dict[PortName, ServiceTable], set[PortName]]:
    """(what differs from ``old`` or is new, what is gone)."""
    changed = {
        name: table
        for name, table in new.services.items()
        if (was := old.get(name)) is not table and was != table
    }
    return changed, set(old.keys() - new.services.keys())


def service_table(
    plan: PortPlan, family: Family, settings: NodeSettings
) -> tuple[ServiceTable, str]:
    """The table of one service port, and what is wrong with its annotations ("" for nothing)."""
    algorithm, weights, notice = _wishes(plan)
    sets = plan.endpoints
    table = ServiceTable(
        family=family,
        protocol=_NUMBERS[plan.protocol],
        ways=tuple(_ways(plan)),
        members=_members(plan, weights),
        rows=(_rows(plan, settings, Entry.INTERNAL), _rows(plan, settings, Entry.EXTERNAL)),
        fates=(_FATES[verdict(sets, Use.CLUSTER)], _FATES[verdict(sets, Use.LOCAL)]),
        ranges=tuple(map(range_of, permitted(plan, settings))) if plan.restricted else None,
        affinity_seconds=plan.affinity_seconds,
        algorithm=algorithm,
    )
    return table, notice


def _ways(plan: PortPlan) -> Iterable[Way]:
    if plan.cluster_ip:
        yield Way(WayKind.CLUSTER_IP, packed(plan.cluster_ip), plan.port)
    for address in plan.external_ips:
        yield Way(WayKind.EXTERNAL_IP, packed(address), plan.port)
    for address in plan.load_balancer_ips:
        yield Way(WayKind.LOAD_BALANCER, packed(address), plan.port)
    if plan.node_port:
        yield Way(WayKind.NODE_PORT, b"", plan.node_port)


def _rows(plan: PortPlan, settings: NodeSettings, entry: Entry) -> Rows:
    def row(client: Client) -> Row:
        found = treatment(
            settings, entry, client, internal=plan.internal_policy, external=plan.external_policy
        )
        return _SETS[found.use], found.masquerade

    return row(Client.POD), row(Client.NODE), row(Client.OTHER)


def _members(plan: PortPlan, weights: Mapping[str, int]) -> tuple[Member, ...]:
    sets = plan.endpoints
    # With nobody usable anywhere the sets are empty, and who comes is refused.
    cluster, local = (_places(chosen or ()) for chosen in (sets.cluster, sets.local))
    everyone = (*sets.all, *sets.spared)
    found: dict[tuple[str, int], Member] = {}
    for endpoint, weight in zip(everyone, _weighed(everyone, weights), strict=True):
        place = endpoint.ip, endpoint.port
        found[place] = Member(
            packed(endpoint.ip),
            endpoint.port,
            weight,
            place in cluster,
            place in local,
            endpoint.local,
        )
    return tuple(sorted(found.values(), key=_place))


def _weighed(endpoints: Sequence[Endpoint], weights: Mapping[str, int]) -> list[int]:
    """Both weights of each as one, from 1 to :data:`MOST_WEIGHT`; the Service's own where nobody
    starts slowly."""
    unit = gcd(*[endpoint.weight for endpoint in endpoints])
    made = [weights.get(endpoint.ip, 1) * (endpoint.weight // unit) for endpoint in endpoints]
    most = max(made, default=1)
    if most <= MOST_WEIGHT:
        return made
    return [max(1, weight * MOST_WEIGHT // most) for weight in made]


def _place(member: Member) -> bytes:
    return member.place


def _places(endpoints: Iterable[Endpoint]) -> frozenset[tuple[str, int]]:
    return frozenset([(endpoint.ip, endpoint.port) for endpoint in endpoints])


def range_of(cidr: str) -> Range:
    network = ipaddress.ip_network(cidr)
    return Range(network.network_address.packed, network.prefixlen)


# --- annotations -------------------------------------------------------------------------------


def _wishes(plan: PortPlan) -> tuple[Algorithm, Mapping[str, int], str]:
    if not plan.annotations:
        return Algorithm.MAGLEV, {}, ""
    asked = dict(plan.annotations)
    name = asked.get(SCHEDULER_ANNOTATION, "maglev")
    weights, wrong = _weights(asked.get(WEIGHTS_ANNOTATION, ""))
    if name not in ALGORITHMS:
        wrong = f"{SCHEDULER_ANNOTATION}: {name!r} is none of {', '.join(ALGORITHMS)}"
    return ALGORITHMS.get(name, Algorithm.MAGLEV), weights, wrong


def _weights(text: str) -> tuple[dict[str, int], str]:
    """Weights by address, and what is wrong: then there are none."""
    weights: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        address, _, number = item.rpartition("=")
        weight = int(number) if number.isascii() and number.isdecimal() else 0
        if not 1 <= weight <= MOST_WEIGHT:
            wanted = f"ADDRESS=WEIGHT, a weight from 1 to {MOST_WEIGHT}"
            return {}, f"{WEIGHTS_ANNOTATION}: {item!r} is not {wanted}"
        weights[address] = weight
    return weights, ""


# --- the node ----------------------------------------------------------------------------------


def node_table(
    settings: NodeSettings,
    family: Family,
    addresses: Collection[str],
    ports: tuple[int, int],
    pods: Collection[str] = (),
) -> NodeTable:
    """``addresses`` are all of the network namespace, both families mixed; ``ports`` those that are
    reserved for hidden clients. ``pods``: ranges that are behind an interface by which the detector
    tells pods, since packets do not show where they came in."""
    local = frozenset(
        packed(address) for address in addresses if (":" in address) == (family is Family.IPV6)
    )
    targets, detector = settings.node_port_targets, settings.detector
    answering = local if targets.all else frozenset(map(packed, targets.addresses))
    ranges = [detector.cidr] if detector is not None and detector.cidr else list(pods)
    return NodeTable(
        family=family,
        local=local,
        pods=tuple(map(range_of, ranges)),
        # ::1 is never served, as in the other modes.
        node_ports=frozenset(one for one in answering if not _loopback(one)),
        localhost=targets.localhost and family is Family.IPV4,
        masquerade=packed(settings.addresses[0]) if settings.addresses else b"",
        ports=ports,
    )


def _loopback(address: bytes) -> bool:
    return address[0] == 127 if len(address) == 4 else address == bytes(15) + b"\x01"
