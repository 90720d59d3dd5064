"""Services written by hand, made whole: defaults, families, cluster IPs, node ports, balancers.

Pure. Services that already have their addresses are served first, then those that ask for some,
then those that take what comes: so nobody loses an address to a newcomer, and a lucky draw never
takes what another one asked for.
"""

from __future__ import annotations

import copy
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kproxy.core.address import canonical_ip
from kproxy.core.objects import Refusal, Value, family_of
from kproxy.lab.controllers.allocate import Pool, pool_from
from kproxy.lab.controllers.checks import check_meta, check_shape, check_spec, needs_health_check
from kproxy.lab.controllers.cluster import FAMILIES, Cluster
from kproxy.lab.controllers.defaults import (
    EXTERNAL_TYPES,
    fill_defaults,
    headless,
    settle_families,
)
from kproxy.lab.controllers.faults import Faults, key_of
from kproxy.lab.state import Allocations


class Filled(Value, frozen=True):
    """``services`` in the order that they came in, without the refused ones."""

    services: tuple[dict[str, Any], ...]
    allocations: Allocations
    refusals: tuple[Refusal, ...] = ()


def fill_services(
    services: Iterable[Mapping[str, Any]], cluster: Cluster, kept: Allocations
) -> Filled:
    """Every Service as an API server would store it, and what is allocated afterwards."""
    checked: dict[int, dict[str, Any]] = {}
    refusals: list[Refusal] = []
    for index, raw in enumerate(services):
        service = copy.deepcopy(dict(raw))
        faults = _check(service, cluster)
        refusals += faults.found
        if not faults:
            checked[index] = service
    books = _Books(cluster, kept)
    order = sorted(checked, key=lambda index: books.rank(checked[index]))
    for index in order:
        faults = Faults(checked[index])
        books.serve(checked[index], faults)
        if faults:
            refusals += faults.found
            del checked[index]
    return Filled(
        tuple(checked[index] for index in sorted(checked)), books.allocations(), tuple(refusals)
    )


def _check(service: dict[str, Any], cluster: Cluster) -> Faults:
    """Defaults and checks that need no other service. Null fields count as absent."""
    faults = Faults(service)
    check_meta(service, faults)
    check_shape(service, faults)
    if faults:
        return faults
    service["metadata"].setdefault("namespace", "default")
    spec = service["spec"] = {k: v for k, v in service["spec"].items() if v is not None}
    spec["ports"] = [
        {k: v for k, v in port.items() if v is not None} for port in spec.get("ports", ())
    ]
    fill_defaults(spec)
    check_spec(spec, faults)
    if not faults and spec["type"] != "ExternalName":
        settle_families(spec, cluster.families, faults)
    return faults


class _Books:
    """Who has which address and port while the services are filled in."""

    def __init__(self, cluster: Cluster, kept: Allocations) -> None:
        self._cluster = cluster
        self._kept = kept
        self._addresses = pool_from(cluster.seed, kept.cluster_ips)
        self._balancers = pool_from(cluster.seed, kept.load_balancer_ips)
        self._ports = Pool(cluster.seed)
        for entry, number in kept.node_ports.items():
            self._ports.keep([number], _service_of(entry))
        self._cluster_ips = dict(kept.cluster_ips)
        self._node_ports = dict(kept.node_ports)
        self._balancer_ips = dict(kept.load_balancer_ips)

    def allocations(self) -> Allocations:
        return Allocations(
            cluster_ips=self._cluster_ips,
            node_ports=self._node_ports,
            load_balancer_ips=self._balancer_ips,
        )

    def rank(self, service: Mapping[str, Any]) -> int:
        """0: has its addresses already, 1: asks for some, 2: takes what comes."""
        spec, key = service["spec"], key_of(service)
        asked = _asked(spec)
        had = self._kept.cluster_ips.get(key, ())
        if had and set(asked) <= set(had) and self._ports_unchanged(spec, key):
            return 0
        ports = any(port.get("nodePort") for port in spec["ports"])
        wants = asked or ports or spec.get("healthCheckNodePort") or spec.get("loadBalancerIP")
        return 1 if wants else 2

    def _ports_unchanged(self, spec: dict[str, Any], key: str) -> bool:
        return all(
            self._kept.node_ports.get(_entry(key, port)) == port["nodePort"]
            for port in spec["ports"]
            if port.get("nodePort")
        )

    def serve(self, service: dict[str, Any], faults: Faults) -> None:
        """Fill in what this service gets; nothing is written down when it is refused."""
        key, spec = key_of(service), service["spec"]
        addresses = self._choose_addresses(key, spec, faults)
        ports = self._choose_ports(key, spec, faults)
        if faults:
            return
        for address in addresses:
            self._addresses.take(address, key)
        for number in ports.values():
            self._ports.take(number, key)
        _replace(self._cluster_ips, key, tuple(addresses))
        for entry in [e for e in self._node_ports if _service_of(e) == key]:
            del self._node_ports[entry]
        self._node_ports.update(ports)
        if addresses:
            spec["clusterIPs"], spec["clusterIP"] = list(addresses), addresses[0]
        self._balance(key, service)

    # --- cluster IPs --------------------------------------------------------------------------

    def _choose_addresses(self, key: str, spec: dict[str, Any], faults: Faults) -> list[str]:
        if headless(spec) or spec["type"] == "ExternalName":
            return []
        asked, had = _asked(spec), self._kept.cluster_ips.get(key, ())
        chosen: list[str] = []
        for index, name in enumerate(spec["ipFamilies"]):
            cidr = self._cluster.service_cidr(FAMILIES[name])
            if index < len(asked):
                chosen.append(asked[index])
                self._check_address(asked[index], cidr, key, f"spec.clusterIPs[{index}]", faults)
                continue
            again = next((a for a in had if _within(a, cidr) and not self._other(a, key)), None)
            address = again or self._addresses.next_address(cidr, key)
            if address is None:
                faults.add("spec.clusterIPs", f"no free address is left in {cidr}")
            else:
                chosen.append(address)
        return chosen

    def _other(self, address: str, key: str) -> str:
        """Another service that holds an address."""
        holder = self._addresses.holder(address)
        return holder if holder != key else ""

    def _check_address(self, address: str, cidr: str, key: str, where: str, faults: Faults) -> None:
        if not _within(address, cidr):
            faults.invalid(
                where, address, f"must be in {cidr}, the lab's service range; or leave it out"
            )
        elif self._other(address, key):
            faults.invalid(
                where,
                address,
                f"is allocated already, to service {self._other(address, key)}; choose another one",
            )

    # --- node ports ---------------------------------------------------------------------------

    def _choose_ports(self, key: str, spec: dict[str, Any], faults: Faults) -> dict[str, int]:
        """Node ports by entry of the record; fills them into ``spec``.

        Ports of one number share their node port over the protocols, as the API server does it.
        """
        chosen: dict[str, int] = {}
        if spec["type"] in EXTERNAL_TYPES:
            self._choose_node_ports(key, spec, faults, chosen)
        if needs_health_check(spec):
            entry = f"{key}/healthCheck"
            where = "spec.healthCheckNodePort"
            asked = spec.get("healthCheckNodePort") or 0
            number = self._port(key, entry, asked, where, set(chosen.values()), faults)
            if number:
                spec["healthCheckNodePort"] = chosen[entry] = number
        return chosen

    def _choose_node_ports(
        self, key: str, spec: dict[str, Any], faults: Faults, chosen: dict[str, int]
    ) -> None:
        allocate = spec["type"] == "NodePort" or spec["allocateLoadBalancerNodePorts"]
        asked_for: dict[int, int] = {}
        for port in spec["ports"]:
            if port.get("nodePort"):
                asked_for.setdefault(port["port"], port["nodePort"])
        shared: dict[int, int] = {}
        for index, port in enumerate(spec["ports"]):
            if not port.get("nodePort") and not allocate:
                continue
            where, entry = f"spec.ports[{index}].nodePort", _entry(key, port)
            asked = port.get("nodePort") or shared.get(port["port"]) or asked_for.get(port["port"])
            others = {*chosen.values(), *asked_for.values(), spec.get("healthCheckNodePort", 0)}
            number = self._port(key, entry, asked or 0, where, others, faults)
            if not number:
                continue
            same = [e for e, n in chosen.items() if n == number and e.endswith(port["protocol"])]
            if same:
                faults.duplicate(where, number)
            shared.setdefault(port["port"], number)
            port["nodePort"] = chosen[entry] = number

    def _port(
        self,
        key: str,
        entry: str,
        asked: int,
        where: str,
        others: set[int],
        faults: Faults,
    ) -> int:
        """One port for one entry: the one asked for, the one it had, or a new one; 0 refused.

        ``others`` are the service's other ports.
        """
        had = self._kept.node_ports.get(entry, 0)
        for number in (asked, had if had not in others else 0):
            holder = self._ports.holder(number) if number else ""
            if number and holder in ("", key):
                return number
            if number and number == asked:
                faults.invalid(
                    where, asked, f"is allocated already, to service {holder}; choose another one"
                )
                return 0
        number = self._ports.next_port(key, others) or 0
        if not number:
            faults.add(where, "no free node port is left")
        return number

    # --- load balancers -----------------------------------------------------------------------

    def _balance(self, key: str, service: dict[str, Any]) -> None:
        """What a cloud's controller would do: an address of each family from the lab's range.

        A class of its own means another controller, which the lab has not; addresses that the user
        wrote into the status stay.
        """
        spec = service["spec"]
        if spec["type"] != "LoadBalancer":
            service.pop("status", None)
            _replace(self._balancer_ips, key, ())
            return
        written = (service.get("status") or {}).get("loadBalancer", {}).get("ingress")
        if written:
            return
        service["status"] = {"loadBalancer": {}}
        if spec.get("loadBalancerClass"):
            return
        had, chosen = self._kept.load_balancer_ips.get(key, ()), []
        asked = canonical_ip(spec.get("loadBalancerIP") or "")
        for name in spec["ipFamilies"]:
            family = FAMILIES[name]
            if asked and family_of(asked) is family:
                chosen.append(asked)
                continue
            cidr = self._cluster.lb_cidr(family)
            again = next((a for a in had if cidr and _within(a, cidr)), None)
            if again and self._balancers.holder(again) not in ("", key):
                again = None
            address = again or (
                self._balancers.next_address(cidr, key, reserve=False) if cidr else None
            )
            chosen += [address] if address else []
        for address in chosen:
            self._balancers.take(address, key)
        _replace(self._balancer_ips, key, tuple(chosen))
        if chosen:
            service["status"]["loadBalancer"]["ingress"] = [
                {"ip": address, "ipMode": "VIP"} for address in chosen
            ]


def release(allocations: Allocations, keys: Sequence[str]) -> Allocations:
    """Without what deleted services had."""
    gone = set(keys)
    return Allocations(
        cluster_ips={k: v for k, v in allocations.cluster_ips.items() if k not in gone},
        node_ports={k: v for k, v in allocations.node_ports.items() if _service_of(k) not in gone},
        load_balancer_ips={k: v for k, v in allocations.load_balancer_ips.items() if k not in gone},
    )


def _asked(spec: Mapping[str, Any]) -> list[str]:
    """Cluster IPs that the user wrote, canonical."""
    if headless(dict(spec)):
        return []
    return [canonical_ip(text) or text for text in spec.get("clusterIPs") or ()]


def _within(address: str, cidr: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(cidr)


def _entry(key: str, port: Mapping[str, Any]) -> str:
    return f"{key}/{port['port']}/{port['protocol']}"


def _service_of(entry: str) -> str:
    """``ns/name`` of an entry of node_ports."""
    return "/".join(entry.split("/")[:2])


def _replace(record: dict[str, tuple[str, ...]], key: str, values: tuple[str, ...]) -> None:
    record.pop(key, None)
    if values:
        record[key] = values
