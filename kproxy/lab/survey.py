"""What labs look like right now: daemons' status, processes, and the kernel's own view of links."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kproxy import status, succession
from kproxy.core.objects import Value
from kproxy.errors import KernelError, LabError
from kproxy.health.standing import PortStanding
from kproxy.kernel import netns
from kproxy.kernel.netlink import explained, open_route
from kproxy.lab import daemons, state, wiring
from kproxy.lab.lifecycle import cluster_file
from kproxy.lab.model import LabState
from kproxy.lab.network import namespace_name
from kproxy.lab.undo import Process

if TYPE_CHECKING:
    from kproxy.backends.userspace.estate import Counters

#: linux/rtnetlink.h: route types worth a word; unicast needs none.
_ROUTE_KINDS = {6: "blackhole", 7: "unreachable", 8: "prohibit"}
_MAIN_TABLE = 254


class InterfaceFacts(Value, frozen=True):
    """``addresses`` with prefix length; ``up`` means carrier as well."""

    name: str
    mtu: int
    up: bool
    addresses: tuple[str, ...] = ()


class CarriedTo(Value, frozen=True):
    """What a node's relay has carried to one endpoint, since the endpoint came or the relay
    started; ``failures``: connections that it did not take, or reset before it said anything.

    ``address`` has the port with it. ``pod`` as ``namespace/name``, "" where the lab has none of
    that address.
    """

    address: str
    pod: str = ""
    connections: int = 0
    active: int = 0
    failures: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class Carried(Value, frozen=True):
    """What a node's relay has carried of one service port since it started, in both families;
    ``active`` are the connections and UDP sessions that there are. ``endpoints`` are told in wide
    surveys only."""

    name: str
    protocol: str
    connections: int = 0
    active: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    retries: int = 0
    failures: int = 0
    endpoints: tuple[CarriedTo, ...] = ()


class Ailing(Value, frozen=True):
    """An endpoint that is not plainly up: ``down`` (its check says so), ``ejected`` (connections to
    it failed) or ``starting`` (up, on its way to its full share). ``pod`` as in :class:`CarriedTo`,
    ``since`` in seconds since the epoch, 0.0 unknown."""

    address: str
    state: str
    pod: str = ""
    reason: str = ""
    since: float = 0.0
    weight: int = 100


class Judged(Value, frozen=True):
    """A service port whose endpoints a node checks, or watches, as its proxy uses them: ``up`` of
    ``of`` that the cluster calls usable. ``panic``: too few are up, so that all are used."""

    name: str
    protocol: str
    family: int
    up: int
    of: int
    panic: bool = False
    endpoints: tuple[Ailing, ...] = ()


class HostFacts(Value, frozen=True):
    """A node, client or pod. ``state`` is one word, ``detail`` what it stands for.

    Nodes: ``synced``, ``syncing``, ``failing``, ``down``; pods: ``ready``, ``not-ready``, ``down``
    (nothing answers for them); clients: ``up``. ``seconds`` is the age of a node's daemon.
    ``carried`` is what it carries itself, in modes that do; ``health`` are the service ports of
    which its proxy judges the endpoints.
    """

    name: str
    kind: str
    state: str
    node: str = ""
    mode: str = ""
    seconds: float | None = None
    addresses: tuple[str, ...] = ()
    detail: str = ""
    interfaces: tuple[InterfaceFacts, ...] = ()
    routes: tuple[str, ...] = ()
    carried: tuple[Carried, ...] = ()
    health: tuple[Judged, ...] = ()


class LabFacts(Value, frozen=True):
    """One lab. ``topology`` is "" and ``hosts`` empty when it is half made or half gone; ``fault``
    then says more, if more is known. ``kernel`` is ``host``, or ``uml`` when it has its own."""

    name: str
    topology: str = ""
    mode: str = ""
    kernel: str = "host"
    fault: str = ""
    hosts: tuple[HostFacts, ...] = ()


def survey(names: Iterable[str], *, wide: bool = False) -> tuple[LabFacts, ...]:
    """Look at labs. ``wide`` also asks the kernel for interfaces and routes, and relays for what
    they carried to each endpoint."""
    return tuple(_survey(name, wide) for name in names)


def _survey(name: str, wide: bool) -> LabFacts:
    lab = state.find(name)
    if lab is None:
        return LabFacts(name)
    proxies = daemons.alive(name, daemons.ROLE_PROXY)
    answered = bool(daemons.alive(name, daemons.ROLE_PODS))
    hosts = [_node(lab, node, proxies.get(node), wide) for node in lab.nodes]
    hosts += [
        HostFacts(c.name, "client", "up", addresses=wiring.client_addresses(lab.topology, c.name))
        for c in lab.topology.clients
    ]
    hosts += [
        HostFacts(
            pod.name,
            "pod",
            ("ready" if pod.ready else "not-ready") if answered else "down",
            node=pod.node,
            addresses=pod.addresses,
            detail="" if answered else f"mend: kproxy lab up --name {name}",
        )
        for pod in lab.pods
    ]
    if wide:
        hosts = [_with_links(name, host) for host in hosts]
    mode = f"{lab.mode}-{lab.variant}" if lab.variant else lab.mode
    return LabFacts(name, lab.topology.name, mode, hosts=tuple(hosts))


def _node(lab: LabState, node: str, process: Process | None, wide: bool) -> HostFacts:
    addresses = wiring.node_addresses(lab.topology, node)
    log = daemons.proxy_log(lab.name, node)
    directory = daemons.proxy_state_dir(lab.name, node)
    said = status.read(directory)
    if process is None:
        words = f"see {log}; mend: kproxy lab up --name {lab.name}"
        return HostFacts(node, "node", "down", addresses=addresses, detail=words)
    if said is None or said.pid != process.pid:
        return HostFacts(node, "node", "syncing", addresses=addresses)
    if said.last_error:
        word, detail = "failing", said.last_error
    elif status.in_force(directory, [cluster_file(lab.name)]):
        word, detail = "synced", ""
    else:
        word, detail = "syncing", ""
    carried: tuple[Carried, ...] = ()
    if lab.mode_of(node)[0] in succession.MODES:
        try:
            carried = _carried(lab, directory, wide)
        except KernelError as silent:
            detail = detail or f"its relay does not tell: {silent}"
    return HostFacts(
        node,
        "node",
        word,
        carried=carried,
        mode=f"{said.mode}-{said.variant}" if said.variant else said.mode,
        seconds=max(0.0, time.time() - said.started_at),
        addresses=addresses,
        detail=detail or "; ".join(said.refusals),
        health=_health(lab, said),
    )


def _pods_of(lab: LabState) -> dict[str, str]:
    """``namespace/name`` by address."""
    return {address: f"{pod.namespace}/{pod.name}" for pod in lab.pods for address in pod.addresses}


def _health(lab: LabState, said: status.Status) -> tuple[Judged, ...]:
    pods = _pods_of(lab)
    return tuple([_judged(each, pods) for each in said.health])


def _judged(port: PortStanding, pods: Mapping[str, str]) -> Judged:
    return Judged(
        port.name,
        port.protocol,
        port.family,
        port.up,
        port.of,
        port.panic,
        tuple(
            [
                Ailing(
                    each.address,
                    each.state.value,
                    pods.get(each.address.rpartition(":")[0].strip("[]"), ""),
                    each.reason,
                    each.since,
                    each.weight,
                )
                for each in port.endpoints
            ]
        ),
    )


def _carried(lab: LabState, directory: Path, wide: bool) -> tuple[Carried, ...]:
    from kproxy.backends.userspace import handover

    pods = _pods_of(lab)
    counts: dict[tuple[str, str], Counter[str]] = {}
    endpoints: dict[tuple[str, str], list[CarriedTo]] = {}
    for relay in handover.ask(directory, endpoints=wide) or ():
        for each in relay.services:
            key = str(each.name), each.name.protocol.value
            counts.setdefault(key, Counter()).update(each.counters)
            endpoints.setdefault(key, []).extend(_endpoints(each, pods))
    return tuple(
        Carried(
            *key,
            connections=counted["connections"],
            active=counted["active"],
            bytes_in=counted["bytes_in"],
            bytes_out=counted["bytes_out"],
            retries=counted["retries"],
            failures=counted["failures"],
            endpoints=tuple(endpoints[key]),
        )
        for key, counted in sorted(counts.items())
    )


def _endpoints(service: Counters, pods: Mapping[str, str]) -> list[CarriedTo]:
    """By address, as numbers go: all are of one family."""
    in_order = sorted(service.endpoints, key=lambda each: (ip_address(each.address), each.port))
    return [
        CarriedTo(
            str(each),
            pods.get(each.address, ""),
            connections=each.counters["connections"],
            active=each.counters["active"],
            failures=each.counters["failures"],
            bytes_in=each.counters["bytes_in"],
            bytes_out=each.counters["bytes_out"],
        )
        for each in in_order
    ]


def _with_links(lab: str, host: HostFacts) -> HostFacts:
    try:
        namespace = netns.open_fd(namespace_name(lab, host.name))
    except LabError:
        return HostFacts(host.name, host.kind, "gone", node=host.node, detail="no namespace")
    try:
        route = open_route(namespace)
    finally:
        os.close(namespace)
    try:
        with explained(f"read links and routes of {host.name}"):
            links, names = _interfaces(route)
            routes = _routes(route, names)
    finally:
        route.close()
    return msgspec.structs.replace(host, interfaces=links, routes=routes)


def _interfaces(route: Any) -> tuple[tuple[InterfaceFacts, ...], dict[int, str]]:
    addresses: dict[int, list[str]] = {}
    for found in route.get_addr():
        text = f"{found.get('address')}/{found['prefixlen']}"
        # Link-local addresses are on every link and tell nothing, but for a pod's gateway.
        if not text.startswith("fe80:") or text.startswith("fe80::1/"):
            addresses.setdefault(found["index"], []).append(text)
    facts: list[InterfaceFacts] = []
    names: dict[int, str] = {}
    for link in route.get_links():
        name = names[link["index"]] = link.get("ifname")
        up = link.get("operstate") in ("UP", "UNKNOWN")
        facts.append(
            InterfaceFacts(name, link.get("mtu"), up, tuple(addresses.get(link["index"], ())))
        )
    return tuple(facts), names


def _routes(route: Any, names: dict[int, str]) -> tuple[str, ...]:
    """Routes of the main table as ``ip route`` writes them, without those that every link has."""
    lines: list[str] = []
    for found in route.get_routes(table=_MAIN_TABLE):
        family = found["family"]
        destination = found.get("dst")
        if family not in (socket.AF_INET, socket.AF_INET6) or found["proto"] == 2:  # the kernel's
            continue
        words = [_ROUTE_KINDS.get(found["type"], "")]
        words.append(f"{destination}/{found['dst_len']}" if destination else "default")
        if found.get("gateway"):
            words.append(f"via {found.get('gateway')}")
        if found.get("oif") and found["type"] not in _ROUTE_KINDS:
            words.append(f"dev {names.get(found.get('oif'), '?')}")
        if found.get("prefsrc"):
            words.append(f"src {found.get('prefsrc')}")
        lines.append(" ".join(word for word in words if word))
    return tuple(lines)
