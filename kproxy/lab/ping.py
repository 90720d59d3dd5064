"""``lab ping``: which flows a lab must carry, and whether it does.

Two parts. Everybody must reach everybody: pods are asked by their echo responder; nodes and clients
run nothing, so a reset from a closed port is the proof that the packet got there. Then every
service port, by every way in, from every kind of client, in every family.

What must *not* work is known as well: a service without endpoints must refuse.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from kproxy.core.objects import Family, Protocol, Value, family_of
from kproxy.kernel import netns
from kproxy.lab import wiring
from kproxy.lab.controllers import Completed
from kproxy.lab.controllers.cluster import FAMILIES
from kproxy.lab.state import LabState, Pod
from kproxy.lab.tables import slices_of
from kproxy.lab.traffic import Outcome, Probe, Reach, probe_all

#: TCP port multiplexer (RFC 1078): nobody listens there, so whoever is there resets.
CLOSED_PORT = 1

#: More hosts than this and the matrix is told by nodes instead of by hosts.
MAX_COLUMNS = 12


class Attempt(Value, frozen=True):
    """One flow. ``row`` and ``column`` say where in which matrix its result belongs.

    ``sender`` is a host of the lab. ``expect`` REACHED or REFUSED; ``who``, when set, is the
    responder that must answer.
    """

    sender: str
    to: str
    port: int
    protocol: Protocol
    expect: Reach
    row: str
    column: str
    service: bool = False
    who: str = ""


class Result(Value, frozen=True):
    attempt: Attempt
    outcome: Outcome

    @property
    def passed(self) -> bool:
        if self.outcome.reach is not self.attempt.expect:
            return False
        return not self.attempt.who or self.outcome.endpoint == self.attempt.who

    def __str__(self) -> str:
        attempt = self.attempt
        place = f"[{attempt.to}]" if ":" in attempt.to else attempt.to
        return (
            f"{attempt.sender} → {place}:{attempt.port}/{attempt.protocol}:"
            f" {attempt.expect.value} expected, seen {self.outcome}"
        )


# --- plan: pairs ------------------------------------------------------------------------------


def pairs(lab: LabState) -> tuple[Attempt, ...]:
    """Everybody to everybody, every family of the lab."""
    names = _labels(lab)
    made: list[Attempt] = []
    for sender in names:
        for pod in lab.pods:
            if pod.name != sender:
                made += _to_pod(sender, pod, names)
        for host in lab.topology.hosts:
            if host != sender:
                made += [
                    _knock(sender, address, names[sender], names[host])
                    for address in addresses_of(lab, host)
                ]
    return tuple(made)


def _to_pod(sender: str, pod: Pod, names: Mapping[str, str]) -> Iterable[Attempt]:
    ends = names[sender], names[pod.name]
    for address in pod.addresses:
        if pod.ports:
            port = pod.ports[0]
            yield Attempt(
                sender, address, port.port, port.protocol, Reach.REACHED, *ends, who=pod.name
            )
        else:
            yield _knock(sender, address, *ends)


def _knock(sender: str, address: str, row: str, column: str) -> Attempt:
    """Whoever runs nothing answers with a reset from a closed port."""
    return Attempt(sender, address, CLOSED_PORT, Protocol.TCP, Reach.REFUSED, row, column)


def addresses_of(lab: LabState, host: str) -> tuple[str, ...]:
    """Underlay addresses of a node or client."""
    if host in lab.nodes:
        return wiring.node_addresses(lab.topology, host)
    return wiring.client_addresses(lab.topology, host)


def _labels(lab: LabState) -> dict[str, str]:
    """host -> its row and column: itself, or in a big lab its node's pods together."""
    hosts = [pod.name for pod in lab.pods]
    crowded = len(hosts) + len(lab.topology.hosts) > MAX_COLUMNS
    labels = {pod.name: f"pods@{pod.node}" if crowded else pod.name for pod in lab.pods}
    return labels | {host: host for host in lab.topology.hosts}


# --- plan: services ---------------------------------------------------------------------------


class _Way(Value, frozen=True):
    """One way into a service port: an address and a port. ``at`` names the node of a node port."""

    kind: str
    address: str
    port: int
    at: str = ""


def services(lab: LabState, done: Completed) -> tuple[Attempt, ...]:
    """Every service port by every way in, from one pod of each node, each node and each client."""
    senders = _senders(lab)
    homes = {address: pod.node for pod in lab.pods for address in pod.addresses}
    made: list[Attempt] = []
    for service in done.of("Service"):
        spec = service["spec"]
        if spec["type"] == "ExternalName" or spec.get("clusterIP") == "None":
            continue
        for port in spec["ports"]:
            if port["protocol"] == Protocol.SCTP:
                continue  # not every kernel has it, and nothing in a lab answers it
            for name in spec["ipFamilies"]:
                nodes = _endpoint_nodes(service, port, FAMILIES[name], done, homes)
                for way in _ways(lab, service, port, FAMILIES[name]):
                    made += _into(service, port, way, nodes, senders, lab)
    return tuple(made)


def _senders(lab: LabState) -> dict[str, str]:
    """Sender -> the node that it is on ("" outside)."""
    chosen = {node: node for node in lab.nodes} | {c.name: "" for c in lab.topology.clients}
    for node in lab.nodes:
        pod = next((pod for pod in lab.pods if pod.node == node), None)
        if pod is not None:
            chosen[pod.name] = node
    return chosen


def _endpoint_nodes(
    service: Mapping[str, Any],
    port: Mapping[str, Any],
    family: Family,
    done: Completed,
    homes: Mapping[str, str],
) -> list[str]:
    """Node of every ready endpoint of a service port ("" for one that is no pod of the lab)."""
    found: list[str] = []
    for part in slices_of(service, done):
        named = any(
            (p.get("name") or "", p.get("protocol", "TCP"))
            == (port.get("name", ""), port["protocol"])
            for p in part.get("ports") or ()
        )
        for endpoint in part.get("endpoints") or () if named else ():
            address = endpoint["addresses"][0]
            ready = (endpoint.get("conditions") or {}).get("ready", True)
            if ready and family_of(address) is family:
                found.append(endpoint.get("nodeName") or homes.get(address, ""))
    meta = service["metadata"]
    for obj in done.of("Endpoints"):
        own = obj["metadata"]
        if (own["name"], own["namespace"]) == (meta["name"], meta["namespace"]):
            found += [
                homes.get(entry["ip"], "")
                for subset in obj.get("subsets") or ()
                for entry in subset.get("addresses") or ()
                if family_of(entry["ip"]) is family
            ]
    return found


def _ways(
    lab: LabState, service: Mapping[str, Any], port: Mapping[str, Any], family: Family
) -> Iterable[_Way]:
    spec = service["spec"]
    for address in spec["clusterIPs"]:
        if family_of(address) is family:
            yield _Way("cluster IP", address, port["port"])
    if port.get("nodePort"):
        for node in lab.nodes:
            for address in addresses_of(lab, node):
                if family_of(address) is family:
                    yield _Way("node port", address, port["nodePort"], node)
    # Who may use a restricted balancer is the scenarios' business.
    if not spec.get("loadBalancerSourceRanges"):
        ingress = (service.get("status") or {}).get("loadBalancer", {}).get("ingress") or ()
        for entry in ingress:
            address = entry.get("ip", "")
            if address and family_of(address) is family and entry.get("ipMode", "VIP") == "VIP":
                yield _Way("balancer", address, port["port"], lab.nodes[0])


def _into(
    service: Mapping[str, Any],
    port: Mapping[str, Any],
    way: _Way,
    nodes: list[str],
    senders: Mapping[str, str],
    lab: LabState,
) -> Iterable[Attempt]:
    spec, meta = service["spec"], service["metadata"]
    name = meta["name"] if meta["namespace"] == "default" else f"{meta['namespace']}/{meta['name']}"
    row = f"{name}:{port['port']}/{port['protocol']} {way.kind}"
    for sender, home in senders.items():
        if way.kind == "cluster IP":
            if not home:
                continue  # the underlay knows no cluster IPs
            local_only = spec["internalTrafficPolicy"] == "Local"
            entered = home
        else:
            local_only = spec["externalTrafficPolicy"] == "Local"
            entered = way.at
        if nodes and local_only and entered not in nodes:
            continue  # dropped on purpose: nothing that a ping could tell from a gap
        if not nodes and way.kind == "balancer" and sender == way.at:
            # kube-proxy refuses these where packets arrive, not where a node sends its own: this
            # one goes up to the router and comes back with the node's own source, a martian.
            continue
        yield Attempt(
            sender,
            way.address,
            way.port,
            Protocol(port["protocol"]),
            Reach.REACHED if nodes else Reach.REFUSED,
            row,
            sender,
            service=True,
        )


# --- run --------------------------------------------------------------------------------------


def run(lab: LabState, attempts: Iterable[Attempt]) -> tuple[Result, ...]:
    """Try all flows in parallel, each from its sender's namespace."""
    todo = list(attempts)
    fds = {
        host: netns.open_fd(lab.network.namespace(host))
        for host in {attempt.sender for attempt in todo}
    }
    try:
        outcomes = probe_all(
            Probe(a.to, a.port, protocol=a.protocol, namespace=fds[a.sender]) for a in todo
        )
    finally:
        for fd in fds.values():
            os.close(fd)
    return tuple(Result(a, outcome) for a, outcome in zip(todo, outcomes, strict=True))


# --- matrix -----------------------------------------------------------------------------------


class Matrix(Value, frozen=True):
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


#: What a cell says: all arrived; all were refused, as they must be; nothing was tried.
ARRIVED, REFUSED, UNTRIED = "✓", "⊘", "·"


def matrix(corner: str, results: Iterable[Result]) -> Matrix:
    """Rows by columns; a cell with gaps is ``good/all``."""
    cells: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        cells.setdefault((result.attempt.row, result.attempt.column), []).append(result)
    rows = list(dict.fromkeys(row for row, _ in cells))
    # Where rows are senders too, the diagonal is easier to read.
    columns = list(dict.fromkeys(column for _, column in cells))
    columns = [row for row in rows if row in columns] + [c for c in columns if c not in rows]
    return Matrix(
        (corner, *columns),
        tuple((row, *(_cell(cells.get((row, column), [])) for column in columns)) for row in rows),
    )


def _cell(results: list[Result]) -> str:
    if not results:
        return UNTRIED
    good = sum(result.passed for result in results)
    if good < len(results):
        return f"✗ {good}/{len(results)}"
    service = results[0].attempt.service
    refused = all(result.attempt.expect is Reach.REFUSED for result in results)
    return REFUSED if service and refused else ARRIVED


def answered_by(results: Iterable[Result]) -> dict[str, tuple[str, ...]]:
    """Row of a service -> the responders that answered, sorted by name."""
    found: dict[str, set[str]] = {}
    for result in results:
        names = found.setdefault(result.attempt.row, set())
        if result.outcome.endpoint:
            names.add(result.outcome.endpoint)
    return {row: tuple(sorted(names)) for row, names in found.items()}
