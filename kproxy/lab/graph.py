"""A lab as a picture: who is where, and which service sends to whom. Pure values, no drawing.

:mod:`.graph_text` draws them in a terminal, :mod:`.graph_svg` as SVG.
"""

from __future__ import annotations

from collections.abc import Iterable

from kproxy.core.objects import Value
from kproxy.lab import wiring
from kproxy.lab.controllers import Completed
from kproxy.lab.controllers.cluster import ZONE_LABEL
from kproxy.lab.network import Shape
from kproxy.lab.state import LabState
from kproxy.lab.tables import slices_of
from kproxy.lab.topology import LinkSpec, Port


class PodMark(Value, frozen=True):
    """A pod. ``services`` are indexes into the picture's services that may send to it."""

    name: str
    addresses: tuple[str, ...]
    ports: str
    services: tuple[int, ...] = ()
    ready: bool = True


class NodeMark(Value, frozen=True):
    name: str
    addresses: tuple[str, ...]
    zone: str = ""
    link: str = ""
    pods: tuple[PodMark, ...] = ()


class ClientMark(Value, frozen=True):
    name: str
    addresses: tuple[str, ...]
    link: str = ""


class ServiceMark(Value, frozen=True):
    """``ports`` as kubectl prints them; ``external`` are load-balancer and external addresses;
    ``elsewhere`` are endpoint addresses that are no pod of the lab."""

    name: str
    type: str
    addresses: tuple[str, ...]
    ports: tuple[str, ...]
    external: tuple[str, ...] = ()
    endpoints: int = 0
    elsewhere: tuple[str, ...] = ()
    note: str = ""


class Picture(Value, frozen=True):
    lab: str
    mode: str
    underlay: tuple[str, ...]
    nodes: tuple[NodeMark, ...]
    clients: tuple[ClientMark, ...]
    services: tuple[ServiceMark, ...]

    @property
    def caption(self) -> str:
        """``2 nodes, 4 pods, 1 client, 5 services``."""
        counts = (
            (len(self.nodes), "node"),
            (sum(len(node.pods) for node in self.nodes), "pod"),
            (len(self.clients), "client"),
            (len(self.services), "service"),
        )
        return ", ".join(f"{n} {word}{'' if n == 1 else 's'}" for n, word in counts)


def picture_of(lab: LabState, done: Completed) -> Picture:
    """The picture of a lab and of what its controllers filled in."""
    topology = lab.topology
    services, receivers = _services(lab, done)
    nodes = tuple(
        NodeMark(
            node.name,
            wiring.node_addresses(topology, node.name),
            dict(node.labels).get(ZONE_LABEL, ""),
            link_text(node.link),
            tuple(
                PodMark(
                    pod.name,
                    pod.addresses,
                    ports_text(pod.ports),
                    tuple(sorted(receivers.get(pod.name, ()))),
                    pod.ready,
                )
                for pod in lab.pods
                if pod.node == node.name
            ),
        )
        for node in topology.nodes
    )
    clients = tuple(
        ClientMark(
            client.name, wiring.client_addresses(topology, client.name), link_text(client.link)
        )
        for client in topology.clients
    )
    ranges = tuple(wiring.UNDERLAY_CIDRS[family] for family in topology.families)
    mode = f"{lab.mode} ({lab.variant})" if lab.variant else lab.mode
    return Picture(lab.name, mode, ranges, nodes, clients, services)


def link_text(link: LinkSpec) -> str:
    """What is special about a link, "" for an ordinary one."""
    parts = [f"mtu {link.mtu}"] if link.mtu != LinkSpec().mtu else []
    return " ".join([*parts, *_shape_words(link.shape)])


def ports_text(ports: Iterable[Port]) -> str:
    """``8080/TCP 7000/TCP+UDP``: protocols of one number together."""
    by_number: dict[int, list[str]] = {}
    for port in ports:
        by_number.setdefault(port.port, []).append(port.protocol.value)
    return " ".join(f"{number}/{'+'.join(names)}" for number, names in by_number.items())


def _shape_words(shape: Shape) -> list[str]:
    words = []
    if shape.rate:
        words.append(f"{shape.rate / 1e6:g}Mbit/s")
    if shape.delay:
        words.append(f"{shape.delay * 1e3:g}ms")
    if shape.loss:
        words.append(f"{shape.loss * 100:g}% loss")
    return words


def _services(
    lab: LabState, done: Completed
) -> tuple[tuple[ServiceMark, ...], dict[str, set[int]]]:
    """Marks of all services, and for each pod the indexes of those that send to it."""
    owners = {address: pod.name for pod in lab.pods for address in pod.addresses}
    receivers: dict[str, set[int]] = {}
    marks: list[ServiceMark] = []
    for index, service in enumerate(done.of("Service")):
        spec, meta = service["spec"], service["metadata"]
        addresses = dict.fromkeys(_ready_addresses(service, done))
        pods = {owners[address] for address in addresses if address in owners}
        elsewhere = tuple(address for address in addresses if address not in owners)
        for pod in pods:
            receivers.setdefault(pod, set()).add(index)
        ingress = (service.get("status") or {}).get("loadBalancer", {}).get("ingress") or ()
        name = meta["name"]
        marks.append(
            ServiceMark(
                name if meta["namespace"] == "default" else f"{meta['namespace']}/{name}",
                spec["type"],
                tuple(spec.get("clusterIPs") or ()),
                tuple(
                    f"{port['port']}"
                    + (f":{port['nodePort']}" if port.get("nodePort") else "")
                    + f"/{port['protocol']}"
                    for port in spec.get("ports") or ()
                ),
                (*(entry.get("ip", "") for entry in ingress), *spec.get("externalIPs", ())),
                len(pods) + len(elsewhere),
                elsewhere,
                ", ".join(_notes(spec)),
            )
        )
    return tuple(marks), receivers


def _ready_addresses(service: dict[str, object], done: Completed) -> list[str]:
    found = [
        str(endpoint["addresses"][0])
        for part in slices_of(service, done)
        for endpoint in part.get("endpoints") or ()
        if (endpoint.get("conditions") or {}).get("ready", True)
    ]
    meta = service["metadata"]
    assert isinstance(meta, dict)
    for obj in done.of("Endpoints"):
        own = obj["metadata"]
        if (own["name"], own["namespace"]) == (meta["name"], meta["namespace"]):
            found += [
                str(entry["ip"])
                for subset in obj.get("subsets") or ()
                for entry in subset.get("addresses") or ()
            ]
    return found


#: (field of spec, value) -> how a picture says it.
_NOTES = {
    ("sessionAffinity", "ClientIP"): "sticky",
    ("externalTrafficPolicy", "Local"): "external: local",
    ("internalTrafficPolicy", "Local"): "internal: local",
    ("clusterIP", "None"): "headless",
}


def _notes(spec: dict[str, object]) -> list[str]:
    return [note for (field, value), note in _NOTES.items() if spec.get(field) == value]
