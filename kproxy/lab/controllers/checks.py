"""Whether a Service written by hand may be taken: types of fields first, then what they say.

Pure. The rules are the API server's (ValidateService); the words are ours and say what to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from kproxy.core.address import canonical_cidr, canonical_ip, special_use
from kproxy.lab.controllers.allocate import NODE_PORTS
from kproxy.lab.controllers.cluster import FAMILIES
from kproxy.lab.controllers.defaults import EXTERNAL_TYPES, headless
from kproxy.lab.controllers.faults import Faults

#: RFC 1035 label, for names of Services; RFC 1123 label, for port names and namespaces.
_LABEL_1035 = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_1123 = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
#: RFC 6335: 15 characters, a letter among them, no "--".
_PORT_NAME = re.compile(r"(?=.{1,15}$)(?!.*--)(?=.*[a-z])[a-z0-9]([-a-z0-9]*[a-z0-9])?")

TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
PROTOCOLS = ("TCP", "UDP", "SCTP")
#: One day: the API's limit of ClientIP affinity.
_MAX_AFFINITY = 86400

#: field of spec -> values that it may have.
_CHOICES: dict[str, tuple[str, ...]] = {
    "type": TYPES,
    "sessionAffinity": ("None", "ClientIP"),
    "internalTrafficPolicy": ("Cluster", "Local"),
    "externalTrafficPolicy": ("Cluster", "Local"),
    "ipFamilyPolicy": ("SingleStack", "PreferDualStack", "RequireDualStack"),
    "trafficDistribution": ("PreferClose", "PreferSameZone", "PreferSameNode"),
}

#: field of spec -> Python type and what to call it.
_TYPES: dict[str, tuple[type, str]] = {
    "type": (str, "text"),
    "ports": (list, "a list"),
    "selector": (dict, "a map"),
    "clusterIP": (str, "text"),
    "clusterIPs": (list, "a list"),
    "ipFamilies": (list, "a list"),
    "ipFamilyPolicy": (str, "text"),
    "externalIPs": (list, "a list"),
    "externalName": (str, "text"),
    "sessionAffinity": (str, "text"),
    "sessionAffinityConfig": (dict, "a map"),
    "internalTrafficPolicy": (str, "text"),
    "externalTrafficPolicy": (str, "text"),
    "trafficDistribution": (str, "text"),
    "loadBalancerIP": (str, "text"),
    "loadBalancerClass": (str, "text"),
    "loadBalancerSourceRanges": (list, "a list"),
    "healthCheckNodePort": (int, "a number"),
    "allocateLoadBalancerNodePorts": (bool, "true or false"),
    "publishNotReadyAddresses": (bool, "true or false"),
}

#: field of an entry of ports -> the same.
_PORT_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "name": ((str,), "text"),
    "protocol": ((str,), "text"),
    "port": ((int,), "a number"),
    "targetPort": ((int, str), "a number or a name"),
    "nodePort": ((int,), "a number"),
    "appProtocol": ((str,), "text"),
}


def check_meta(obj: Mapping[str, Any], faults: Faults) -> None:
    """``metadata`` of any namespaced object."""
    meta = obj.get("metadata")
    if not isinstance(meta, dict):
        faults.required("metadata.name")
        return
    name, namespace = meta.get("name"), meta.get("namespace")
    if not name:
        faults.required("metadata.name")
    elif not isinstance(name, str):
        faults.invalid("metadata.name", name, "must be text (put it in quotes)")
    elif obj.get("kind") == "Service" and not _LABEL_1035.fullmatch(name):
        faults.invalid(
            "metadata.name", name, "must be a lower-case DNS label that begins with a letter"
        )
    if namespace is not None and not (
        isinstance(namespace, str) and _LABEL_1123.fullmatch(namespace)
    ):
        faults.invalid("metadata.namespace", namespace, "must be a lower-case DNS label")
    for field in ("labels", "annotations"):
        check_text_map(meta.get(field), f"metadata.{field}", faults)


def check_text_map(value: object, field: str, faults: Faults) -> None:
    """Labels, annotations, selectors: text to text, YAML's numbers and booleans are none."""
    if value is None:
        return
    if not isinstance(value, dict):
        faults.invalid(field, value, "must be a map of text to text")
        return
    for key, text in value.items():
        if not isinstance(text, str):
            faults.invalid(f"{field}.{key}", text, "must be text (put it in quotes)")


def check_shape(obj: Mapping[str, Any], faults: Faults) -> None:
    """Types of all fields of a Service: whoever comes after may rely on them."""
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        faults.required("spec")
        return
    for field, (kind, called) in _TYPES.items():
        _typed(spec, field, "spec.", (kind,), called, faults)
    check_text_map(spec.get("selector"), "spec.selector", faults)
    for field in ("clusterIPs", "ipFamilies", "externalIPs", "loadBalancerSourceRanges"):
        for index, value in enumerate(_items(spec, field)):
            if not isinstance(value, str):
                faults.invalid(f"spec.{field}[{index}]", value, "must be text")
    for index, port in enumerate(_items(spec, "ports")):
        where = f"spec.ports[{index}]"
        if not isinstance(port, dict):
            faults.invalid(where, port, "must be a map")
            continue
        for field, (kinds, called) in _PORT_TYPES.items():
            _typed(port, field, f"{where}.", kinds, called, faults)
        if port.get("port") is None:
            faults.required(f"{where}.port")
    config = spec.get("sessionAffinityConfig")
    if isinstance(config, dict):
        _typed(config, "clientIP", "spec.sessionAffinityConfig.", (dict,), "a map", faults)


def _typed(
    holder: dict[str, Any],
    field: str,
    prefix: str,
    kinds: tuple[type, ...],
    called: str,
    faults: Faults,
) -> None:
    value = holder.get(field)
    # bool is an int in Python, and `port: true` is no port.
    wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
    if value is not None and wrong:
        faults.invalid(f"{prefix}{field}", value, f"must be {called}")


def _items(spec: dict[str, Any], field: str) -> list[Any]:
    value = spec.get(field)
    return value if isinstance(value, list) else []


def check_spec(spec: dict[str, Any], faults: Faults) -> None:
    """What the fields say, defaults filled in, families not yet."""
    for field, choices in _CHOICES.items():
        if field in spec and spec[field] not in choices:
            faults.unsupported(f"spec.{field}", spec[field], choices)
    for index, name in enumerate(spec.get("ipFamilies") or ()):
        if name not in FAMILIES:
            faults.unsupported(f"spec.ipFamilies[{index}]", name, FAMILIES)
        elif name in spec["ipFamilies"][:index]:
            faults.duplicate(f"spec.ipFamilies[{index}]", name)
    for check in _CHECKS:
        check(spec, faults)


def _ports(spec: dict[str, Any], faults: Faults) -> None:
    ports = spec.get("ports") or []
    if not ports and spec["type"] != "ExternalName" and not headless(spec):
        faults.required("spec.ports", "list at least one port")
    names: set[str] = set()
    pairs: set[tuple[str, int]] = set()
    for index, port in enumerate(ports):
        where = f"spec.ports[{index}]"
        _port(port, where, spec["type"], faults)
        name = port.get("name", "")
        if not name and len(ports) > 1:
            faults.required(f"{where}.name", "several ports need a name each")
        elif name in names:
            faults.duplicate(f"{where}.name", name)
        names.add(name)
        pair = (port["protocol"], port["port"])
        if pair in pairs:
            faults.duplicate(where, {"protocol": pair[0], "port": pair[1]})
        pairs.add(pair)


def _port(port: dict[str, Any], where: str, kind: str, faults: Faults) -> None:
    _port_number(port["port"], f"{where}.port", faults)
    if port["protocol"] not in PROTOCOLS:
        faults.unsupported(f"{where}.protocol", port["protocol"], PROTOCOLS)
    if port.get("name") and not _LABEL_1123.fullmatch(port["name"]):
        faults.invalid(f"{where}.name", port["name"], "must be a lower-case DNS label")
    target = port["targetPort"]
    if target == port["port"]:
        pass  # defaulted or the same: told once
    elif isinstance(target, int):
        _port_number(target, f"{where}.targetPort", faults)
    elif not _PORT_NAME.fullmatch(target):
        faults.invalid(
            f"{where}.targetPort",
            target,
            "must be a port's name: at most 15 of a-z, 0-9 and -, a letter among them",
        )
    node_port = port.get("nodePort") or 0
    if node_port and kind not in EXTERNAL_TYPES:
        faults.invalid(
            f"{where}.nodePort", node_port, f"type {kind} has no node ports; use type NodePort"
        )
    elif node_port and node_port not in NODE_PORTS:
        faults.invalid(f"{where}.nodePort", node_port, _port_range())


def _port_number(value: int, where: str, faults: Faults) -> None:
    if not 1 <= value <= 65535:
        faults.invalid(where, value, "must be between 1 and 65535, inclusive")


def _port_range() -> str:
    return f"must be between {NODE_PORTS[0]} and {NODE_PORTS[-1]}, or leave it out"


def _cluster_ips(spec: dict[str, Any], faults: Faults) -> None:
    addresses = spec.get("clusterIPs") or []
    if not addresses:
        return
    if spec["type"] == "ExternalName":
        faults.invalid("spec.clusterIPs", addresses, "type ExternalName has none; leave it out")
    if spec.get("clusterIP") != addresses[0]:
        faults.invalid("spec.clusterIPs[0]", addresses[0], "must be the same as clusterIP")
    if headless(spec):
        if len(addresses) > 1:
            faults.invalid("spec.clusterIPs", addresses, "'None' must stand alone")
        if spec["type"] in EXTERNAL_TYPES:
            faults.invalid("spec.clusterIPs[0]", "None", f"type {spec['type']} needs a cluster IP")
        return
    if len(addresses) > 2:
        faults.invalid("spec.clusterIPs", addresses, "at most two, one for each family")
    for index, address in enumerate(addresses):
        if canonical_ip(address) is None:
            faults.invalid(
                f"spec.clusterIPs[{index}]",
                address,
                "must be an IP address (10.9.8.7, 2001:db8::1)",
            )
    if len(addresses) == 2 and (":" in addresses[0]) == (":" in addresses[1]):
        faults.invalid("spec.clusterIPs", addresses, "two addresses must be of two families")


def _external_ips(spec: dict[str, Any], faults: Faults) -> None:
    for index, text in enumerate(spec.get("externalIPs") or ()):
        address = canonical_ip(text)
        if address is None:
            faults.invalid(f"spec.externalIPs[{index}]", text, "must be an IP address")
        elif special_use(address):
            faults.invalid(f"spec.externalIPs[{index}]", text, f"may not be {special_use(address)}")


def _affinity(spec: dict[str, Any], faults: Faults) -> None:
    if spec["sessionAffinity"] != "ClientIP":
        return
    where = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
    seconds = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"]
    if not isinstance(seconds, int) or not 1 <= seconds <= _MAX_AFFINITY:
        faults.invalid(where, seconds, f"must be between 1 and {_MAX_AFFINITY} seconds")


def _load_balancer(spec: dict[str, Any], faults: Faults) -> None:
    ranges = spec.get("loadBalancerSourceRanges") or []
    if ranges and spec["type"] != "LoadBalancer":
        faults.add(
            "spec.loadBalancerSourceRanges", "Forbidden: may only be used with type LoadBalancer"
        )
    for index, text in enumerate(ranges):
        if canonical_cidr(text.strip()) is None:
            faults.invalid(
                f"spec.loadBalancerSourceRanges[{index}]", text, "must be a range (10.0.0.0/8)"
            )
    address = spec.get("loadBalancerIP")
    if address and canonical_ip(address) is None:
        faults.invalid("spec.loadBalancerIP", address, "must be an IP address")
    port = spec.get("healthCheckNodePort") or 0
    if port and not needs_health_check(spec):
        faults.invalid(
            "spec.healthCheckNodePort",
            port,
            "only with type LoadBalancer and externalTrafficPolicy Local",
        )
    elif port and port not in NODE_PORTS:
        faults.invalid("spec.healthCheckNodePort", port, _port_range())
    if spec.get("externalTrafficPolicy") and not (
        spec["type"] in EXTERNAL_TYPES or spec.get("externalIPs")
    ):
        faults.invalid(
            "spec.externalTrafficPolicy",
            spec["externalTrafficPolicy"],
            "only where there are node ports or external addresses",
        )


def _external_name(spec: dict[str, Any], faults: Faults) -> None:
    if spec["type"] == "ExternalName" and not spec.get("externalName"):
        faults.required("spec.externalName", "the DNS name that the service stands for")


def needs_health_check(spec: dict[str, Any]) -> bool:
    return spec["type"] == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


_CHECKS: tuple[Callable[[dict[str, Any], Faults], None], ...] = (
    _ports,
    _cluster_ips,
    _external_ips,
    _affinity,
    _load_balancer,
    _external_name,
)
