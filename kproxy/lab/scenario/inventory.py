"""What a scenario's manifests hold, over all steps: endpoint addresses and service addresses. Pure.

Objects may be broken on purpose, so nothing here trusts their shape; what makes no sense is passed
over, because the proxy must leave it out as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kproxy.core.address import canonical_ip, special_use
from kproxy.core.objects import Protocol, Value
from kproxy.lab.scenario.schema import Manifest, Scenario


class Endpoint(Value, frozen=True):
    """One endpoint address over all steps: where it lives and what it answers."""

    address: str
    local: bool
    ports: tuple[tuple[int, Protocol], ...]


def endpoints_of(scenario: Scenario) -> tuple[Endpoint, ...]:
    """Every address of every slice (and Endpoints object) of every step that can be served."""
    ports: dict[str, set[tuple[int, Protocol]]] = {}
    local: dict[str, bool] = {}
    for manifest in scenario.manifests:
        for address, node, offered in _addresses_of(manifest):
            text = canonical_ip(address)
            if text is None or special_use(text):
                continue  # a bad member: the proxy must leave it out, and nobody lives there
            ports.setdefault(text, set()).update(offered)
            local[text] = local.get(text, False) or node == scenario.node.name
    return tuple(Endpoint(ip, local[ip], tuple(sorted(ports[ip]))) for ip in sorted(ports))


def _addresses_of(
    manifest: Manifest,
) -> Iterator[tuple[str, str, set[tuple[int, Protocol]]]]:
    """(address, node name, ports) of one object; objects may be broken on purpose."""
    kind = manifest.get("kind")
    if kind == "List":
        for item in _mappings(manifest.get("items")):
            yield from _addresses_of(dict(item))
    elif kind == "EndpointSlice":
        offered = set(_ports(manifest.get("ports")))
        for endpoint in _mappings(manifest.get("endpoints")):
            node = str(endpoint.get("nodeName") or "")
            for address in endpoint.get("addresses") or ():
                yield str(address), node, offered
    elif kind == "Endpoints":
        for subset in _mappings(manifest.get("subsets")):
            offered = set(_ports(subset.get("ports")))
            for key in ("addresses", "notReadyAddresses"):
                for entry in _mappings(subset.get(key)):
                    yield str(entry.get("ip")), str(entry.get("nodeName") or ""), offered


def _ports(entries: object) -> Iterator[tuple[int, Protocol]]:
    known = {str(protocol): protocol for protocol in Protocol}
    for entry in _mappings(entries):
        number, protocol = entry.get("port"), known.get(entry.get("protocol") or "TCP")
        if isinstance(number, int) and 0 < number < 65536 and protocol is not None:
            yield number, protocol


def _mappings(value: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, list | tuple):
        yield from (item for item in value if isinstance(item, Mapping))


def service_addresses(scenario: Scenario) -> frozenset[str]:
    """Every cluster, external and load-balancer address of every step."""
    found: set[str] = set()
    for manifest in scenario.manifests:
        if manifest.get("kind") != "Service":
            continue
        spec, status = manifest.get("spec"), manifest.get("status")
        spec = spec if isinstance(spec, Mapping) else {}
        balancer = status.get("loadBalancer") if isinstance(status, Mapping) else None
        ingress = balancer.get("ingress") if isinstance(balancer, Mapping) else None
        texts = [spec.get("clusterIP"), *_texts(spec.get("clusterIPs"))]
        texts += [
            *_texts(spec.get("externalIPs")),
            *(item.get("ip") for item in _mappings(ingress)),
        ]
        for text in texts:
            address = canonical_ip(text) if isinstance(text, str) else None
            if address is not None:
                found.add(address)
    return frozenset(found)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, list | tuple):
        yield from (item for item in value if isinstance(item, str))
