"""UDP services planned for real, and flows written as text, for the tests of stale flows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from kproxy.core.events import Delta, ref_of
from kproxy.core.objects import (
    ClusterObject,
    Family,
    Protocol,
    Service,
    ServiceType,
    SliceEndpoint,
    SlicePort,
)
from kproxy.core.planner import Planner
from kproxy.core.snapshot import NodeSettings, Snapshot
from kproxy.core.stale_flows import Flow, StaleFlows
from kproxy.core.tracker import Tracker
from kproxy.core.ways import packed, packed_port
from tests.factories import make_endpoint, make_port, make_service, make_settings, make_slice

UDP = Protocol.UDP
DNS = (SlicePort("dns", UDP, 53),)


def dns(name: str = "svc1", *, port: int = 53, node_port: int = 0, **fields: object) -> Service:
    """A Service of one UDP port, of the type that its entrances ask for."""
    fields.setdefault("type", ServiceType.LOAD_BALANCER if node_port else ServiceType.CLUSTER_IP)
    ports = (make_port("dns", port, protocol=UDP, node_port=node_port),)
    return make_service(name, ports=ports, **fields)  # type: ignore[arg-type]


def pods(*endpoints: str | SliceEndpoint, service: str = "svc1") -> ClusterObject:
    """Its slice; ``10.180.0.1@node1`` is on that node."""
    entries = [make_endpoint(*one.split("@")) if isinstance(one, str) else one for one in endpoints]
    return make_slice(*entries, service=service, ports=DNS)


def draining(address: str, node: str = "", *, serving: bool = True) -> SliceEndpoint:
    return make_endpoint(address, node, ready=False, serving=serving, terminating=True)


def flow(text: str) -> Flow:
    """``10.0.0.9 > 172.30.0.41:53 > 10.180.0.1:53 as 192.168.0.2``; the place may be left out
    (the flow was left alone), and what it sees as the source too."""
    way, _, masked = text.partition(" as ")
    source, destination, *place = way.split(" > ")
    ip, port = _packed_place(destination)
    place_ip, place_port = _packed_place(place[0]) if place else (ip, port)
    return packed(source), ip, port, place_ip, packed(masked or source), place_port


def _packed_place(text: str) -> tuple[bytes, bytes]:
    host, _, port = text.rpartition(":")
    return packed(host.strip("[]")), packed_port(int(port))


@dataclass
class World:
    """One family of one node; ``addresses`` are all of its network namespace."""

    family: Family = Family.IPV4
    settings: NodeSettings = field(default_factory=make_settings)
    addresses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.tracker = Tracker()
        self.planner = Planner(self.family)
        self.stale = StaleFlows(self.family)

    def plan(self, *objects: ClusterObject, gone: Iterable[ClusterObject] = ()) -> Snapshot:
        """The next plan, told to :attr:`stale`."""
        self.tracker.apply(Delta(tuple(objects), tuple(map(ref_of, gone))))
        snapshot = self.planner.plan(self.tracker, self.settings, self.tracker.take())
        self.stale.plan(snapshot, self.addresses)
        return snapshot

    def clean(self) -> None:
        """All that is stale now is taken away."""
        self.stale.cleaned()

    def is_stale(self, text: str) -> bool:
        """Whether a look at the parts that are worth looking at finds a flow stale."""
        one = flow(text)
        looked_at = any(
            part.address in (b"", one[1]) and part.port in (b"", one[2])
            for part in self.stale.parts()
        )
        return looked_at and self.stale.judge([one]) == [0]
