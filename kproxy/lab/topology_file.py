"""Reads the text of a topology file into a :class:`~kproxy.lab.topology.Topology`. Pure.

msgspec checks keys and types; what it cannot know (names that clash, a workload on a node that is
not there, an MTU that IPv6 cannot live with) is checked here. The first fault is reported, with
file and key.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
import yaml

from kproxy.core.objects import Family, Protocol
from kproxy.errors import TopologyError
from kproxy.lab import probes
from kproxy.lab.network import Shape
from kproxy.lab.probes import ProbeFault, Probes
from kproxy.lab.topology import (
    MAX_CLIENTS,
    MAX_NODES,
    MAX_PODS_PER_NODE,
    NAME,
    UNDERLAY,
    ClientSpec,
    LinkSpec,
    NodeSpec,
    Port,
    Topology,
    Workload,
)
from kproxy.sources import yaml_reader
from kproxy.sources.text import encoding_fault, pieces_of

#: IPv6's smallest MTU (RFC 8200, section 5); the largest that a veth takes.
_MTU = range(1280, 65536)

#: Bit/s. tc has 32 bits for bytes a second, and for the time of a burst in ticks of 64 ns.
_RATE = range(8_000, 32_000_000_001)

#: Seconds; more than any link on earth, far below the 275 that 32 bits of ticks hold.
_MAX_DELAY = 60

_FAMILIES = {"IPv4": Family.IPV4, "IPv6": Family.IPV6}

#: tc's units: powers of 1000, in bit/s and seconds.
_RATES = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_DELAYS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_SHARES = {"%": 0.01}

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z%]+)")


class _File(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _Link(_File):
    mtu: int = 1500
    rate: int | float | str = 0
    delay: int | float | str = 0
    loss: int | float | str = 0


class _Port(_File):
    port: int
    name: str = ""
    protocol: Protocol = Protocol.TCP


class _Node(_File):
    name: str
    labels: dict[str, str] = {}
    link: _Link = msgspec.field(default_factory=_Link)


class _Client(_File):
    name: str
    link: _Link = msgspec.field(default_factory=_Link)


class _Workload(_File):
    name: str
    replicas: int = 1
    labels: dict[str, str] | None = None
    ports: list[_Port] = msgspec.field(default_factory=lambda: [_Port(8080, "http")])
    nodes: list[str] = []
    namespace: str = "default"
    link: _Link = msgspec.field(default_factory=_Link)
    readiness_probe: probes.Written | None = msgspec.field(default=None, name="readinessProbe")
    liveness_probe: probes.Written | None = msgspec.field(default=None, name="livenessProbe")


class _Topology(_File):
    name: str
    nodes: list[_Node]
    about: str = ""
    families: list[str] = msgspec.field(default_factory=lambda: list(_FAMILIES))
    clients: list[_Client] = []
    workloads: list[_Workload] = []
    objects: list[dict[str, Any]] = []
    manifests: list[str] = []


def parse(text: str | bytes, file: str) -> Topology:
    """Read a topology. TopologyError names ``file`` and the key or line that is wrong."""
    raw = _document(text.encode() if isinstance(text, str) else text, file)
    try:
        read = msgspec.convert(raw, _Topology)
    except msgspec.ValidationError as wrong:
        what, _, key = str(wrong).partition(" - at `$")
        raise _fault(file, key.strip("`.") or "the file", what) from wrong
    return _Reader(file).topology(read)


def _document(data: bytes, file: str) -> object:
    """The one YAML document of a file, as plain values."""
    pieces = pieces_of(data)
    if len(pieces) != 1:
        raise _fault(file, "the file", f"holds {len(pieces)} documents, a topology is one")
    piece = pieces[0]
    wrong = encoding_fault(piece)
    try:
        value = None if wrong else yaml_reader.parse(piece.data)
    except yaml.YAMLError as fault:
        line, why = yaml_reader.where_and_why(fault)
        wrong = piece.line + max(line, 0), f"{why}; correct the YAML"
    if wrong:
        raise TopologyError(wrong[1], where=f"{file}:{wrong[0]}")
    return value


def _fault(file: str, key: str, what: str) -> TopologyError:
    return TopologyError(
        what, where=f"{file}: {key}", hint="docs/lab.md lists what a topology may hold"
    )


class _Reader:
    """Turns what msgspec read into values; knows the file's name for complaints."""

    def __init__(self, file: str) -> None:
        self._file = file

    def _check(self, good: bool, key: str, what: str) -> None:
        if not good:
            raise _fault(self._file, key, what)

    def topology(self, raw: _Topology) -> Topology:
        self._check(bool(raw.nodes), "nodes", "a lab needs at least one node")
        self._check(len(raw.nodes) <= MAX_NODES, "nodes", f"at most {MAX_NODES} nodes")
        self._check(len(raw.clients) <= MAX_CLIENTS, "clients", f"at most {MAX_CLIENTS} clients")
        self._check(bool(raw.families), "families", "name IPv4, IPv6 or both")
        for at, obj in enumerate(raw.objects):
            named = isinstance(obj.get("kind"), str)
            self._check(named, f"objects[{at}]", "is no Kubernetes object: it has no kind")
        for name in raw.families:
            self._check(name in _FAMILIES, "families", f"{name!r} is neither IPv4 nor IPv6")
        made = Topology(
            name=self._name(raw.name, "name"),
            about=raw.about,
            families=tuple(sorted({_FAMILIES[name] for name in raw.families})),
            nodes=tuple(
                NodeSpec(
                    self._name(node.name, f"nodes[{at}].name"),
                    tuple(node.labels.items()),
                    self._link(node.link, f"nodes[{at}].link"),
                )
                for at, node in enumerate(raw.nodes)
            ),
            clients=tuple(
                ClientSpec(
                    self._name(client.name, f"clients[{at}].name"),
                    self._link(client.link, f"clients[{at}].link"),
                )
                for at, client in enumerate(raw.clients)
            ),
            workloads=tuple(
                self._workload(load, f"workloads[{at}]") for at, load in enumerate(raw.workloads)
            ),
            objects=tuple(raw.objects),
            manifests=tuple(raw.manifests),
        )
        self._unique(made.hosts, "nodes and clients")
        self._unique((load.name for load in made.workloads), "workloads")
        for at, load in enumerate(made.workloads):
            for node in load.nodes:
                known = node in {spec.name for spec in made.nodes}
                self._check(known, f"workloads[{at}].nodes", f"there is no node {node!r}")
        return made

    def _workload(self, raw: _Workload, key: str) -> Workload:
        labels = {"app": raw.name} if raw.labels is None else raw.labels
        most = MAX_NODES * MAX_PODS_PER_NODE
        self._check(0 <= raw.replicas <= most, f"{key}.replicas", f"0 to {most} pods")
        for at, port in enumerate(raw.ports):
            self._check(0 < port.port < 65536, f"{key}.ports[{at}].port", "1 to 65535")
            answers = port.protocol in (Protocol.TCP, Protocol.UDP)
            self._check(answers, f"{key}.ports[{at}].protocol", "pods answer over TCP and UDP")
        self._unique((f"{p.port}/{p.protocol}" for p in raw.ports), f"{key}.ports")
        self._unique((p.name for p in raw.ports if p.name), f"{key}.ports (names)")
        ports = tuple(Port(p.port, p.name, p.protocol) for p in raw.ports)
        return Workload(
            name=self._name(raw.name, f"{key}.name"),
            replicas=raw.replicas,
            labels=tuple(labels.items()),
            ports=ports,
            nodes=tuple(raw.nodes),
            link=self._link(raw.link, f"{key}.link"),
            namespace=self._name(raw.namespace, f"{key}.namespace"),
            probes=Probes(
                self._probe(raw.readiness_probe, ports, f"{key}.readinessProbe"),
                self._probe(raw.liveness_probe, ports, f"{key}.livenessProbe"),
            ),
        )

    def _probe(
        self, written: probes.Written | None, ports: tuple[Port, ...], key: str
    ) -> probes.Probe | None:
        if written is None:
            return None
        named = [(port.name, port.port, port.protocol) for port in ports]
        try:
            return probes.made(written, named, liveness=key.endswith("livenessProbe"))
        except ProbeFault as wrong:
            raise _fault(self._file, f"{key}.{wrong.field}".rstrip("."), wrong.what) from wrong

    def _name(self, name: str, key: str) -> str:
        self._check(
            NAME.fullmatch(name) is not None,
            key,
            f"{name!r} is no name: lower case letters, digits and inner dashes, at most 40",
        )
        self._check(name != UNDERLAY, key, f"{UNDERLAY!r} is the name of the lab's own switch")
        return name

    def _unique(self, names: Iterable[str], key: str) -> None:
        twice = [name for name, times in Counter(names).items() if times > 1]
        self._check(not twice, key, f"named twice: {', '.join(twice)}")

    def _link(self, raw: _Link, key: str) -> LinkSpec:
        self._check(raw.mtu in _MTU, f"{key}.mtu", f"{_MTU[0]} to {_MTU[-1]} bytes")
        loss = self._quantity(raw.loss, _SHARES, f"{key}.loss")
        self._check(loss <= 1, f"{key}.loss", "at most 100%")
        rate = round(self._quantity(raw.rate, _RATES, f"{key}.rate"))
        self._check(not rate or rate in _RATE, f"{key}.rate", "8kbit to 32gbit")
        delay = self._quantity(raw.delay, _DELAYS, f"{key}.delay")
        self._check(delay <= _MAX_DELAY, f"{key}.delay", f"at most {_MAX_DELAY}s")
        return LinkSpec(raw.mtu, Shape(rate=rate, delay=delay, loss=loss))

    def _quantity(self, given: float | str, units: dict[str, float], key: str) -> float:
        if not isinstance(given, str):
            self._check(0 <= given < math.inf, key, "a number, not below 0")
            return float(given)
        match = _QUANTITY.fullmatch(given.lower())
        if match is None or match[2] not in units:
            raise _fault(self._file, key, f"{given!r}: a number with one of {', '.join(units)}")
        return float(match[1]) * units[match[2]]
