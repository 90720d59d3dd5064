"""Names inside a lab: which host a word means, and the hosts file of its programs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from kproxy.errors import LabError
from kproxy.lab import wiring
from kproxy.lab.model import LabState
from kproxy.lab.network import Host

#: A cluster's default DNS domain.
CLUSTER_DOMAIN = "cluster.local"


def host_of(lab: LabState, name: str) -> Host:
    """The node, client, pod or underlay of that name. LabError lists close ones."""
    known = {host.name: host for host in lab.network.hosts}
    if name in known:
        return known[name]
    close = get_close_matches(name, known, n=4, cutoff=0.5)
    hint = f"close: {', '.join(close)}" if close else f"there are: {_some(list(known))}"
    raise LabError(f"lab {lab.name} has no node, client or pod {name!r}", hint=hint)


def _some(names: list[str], limit: int = 12) -> str:
    shown = ", ".join(names[:limit])
    return f"{shown}, … (kproxy lab ls)" if len(names) > limit else shown


def hosts_file(lab: LabState, services: Iterable[Mapping[str, Any]]) -> str:
    """hosts(5): nodes, clients, pods by name; services by the names that cluster DNS gives them."""
    topology = lab.topology
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
    for node in topology.nodes:
        lines += [f"{a} {node.name}" for a in wiring.node_addresses(topology, node.name)]
    for client in topology.clients:
        lines += [f"{a} {client.name}" for a in wiring.client_addresses(topology, client.name)]
    for pod in lab.pods:
        lines += [f"{address} {pod.name}" for address in pod.addresses]
    for service in services:
        names = _service_names(service["metadata"])
        addresses = service["spec"].get("clusterIPs") or ()
        lines += [f"{address} {names}" for address in addresses if address != "None"]
    return "\n".join(lines) + "\n"


def _service_names(meta: Mapping[str, Any]) -> str:
    name, namespace = meta["name"], meta["namespace"]
    long = f"{name}.{namespace}"
    names = [long, f"{long}.svc", f"{long}.svc.{CLUSTER_DOMAIN}"]
    # Short names are relative to the asker's namespace; programs in a lab stand in ``default``.
    return " ".join([name, *names] if namespace == "default" else names)
