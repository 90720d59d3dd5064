"""From a scenario's short forms to the proxy's own configuration, and to the Node object. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from kproxy.backends.registry import Choice
from kproxy.config import Config, config_from_mapping, replace_at
from kproxy.config_check import check
from kproxy.durations import Seconds
from kproxy.errors import ConfigError, ScenarioError
from kproxy.lab.scenario.schema import Manifest, Scenario

Fields = dict[str, Any]

#: Sections of KubeProxyConfiguration that hold rule settings.
_RULES = ("iptables", "nftables")


class Detection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The short form of ``detectLocal``. ``cidr`` is one range or two, of both families."""

    mode: str
    cidr: str | tuple[str, ...] = ""
    name: str = ""

    @property
    def cidrs(self) -> tuple[str, ...]:
        if isinstance(self.cidr, str):
            return tuple(part.strip() for part in self.cidr.split(",") if part.strip())
        return self.cidr


def detection(scenario: Scenario) -> Detection | None:
    """The scenario's short form of ``detectLocal``; None when it has none."""
    given = scenario.config.get("detectLocal")
    if isinstance(given, Mapping) and "mode" in given:
        try:
            return msgspec.convert(given, Detection)
        except msgspec.ValidationError as wrong:
            raise _wrong(scenario, f"detectLocal: {wrong}") from wrong
    return None


def _masquerade_all(value: Any, scenario: Scenario) -> Fields:
    return {section: {"masqueradeAll": value} for section in _RULES}


def _localhost_node_ports(value: Any, scenario: Scenario) -> Fields:
    return {"iptables": {"localhostNodePorts": value}}


def _detect_local(value: Any, scenario: Scenario) -> Fields:
    """``null`` means none: ClusterCIDR mode without a range tells nobody apart."""
    short = detection(scenario)
    if value is None:
        return {"detectLocalMode": "ClusterCIDR", "clusterCIDR": ""}
    if short is None:
        return {"detectLocal": value}
    return {
        "detectLocalMode": short.mode,
        "clusterCIDR": ",".join(short.cidrs) if short.mode == "ClusterCIDR" else "",
        "detectLocal": {
            "bridgeInterface": short.name if short.mode == "BridgeInterface" else "",
            "interfaceNamePrefix": short.name if short.mode == "InterfaceNamePrefix" else "",
        },
    }


_SHORT: dict[str, Callable[[Any, Scenario], Fields]] = {
    "masqueradeAll": _masquerade_all,
    "localhostNodePorts": _localhost_node_ports,
    "detectLocal": _detect_local,
}


def configuration(scenario: Scenario, choice: Choice) -> Config:
    """The Config of the proxy that runs this scenario. ScenarioError for what it does not know.

    Unless the scenario says otherwise, nothing holds syncs back: each change is applied at once.
    """
    fields: Fields = {}
    for key, value in scenario.config.items():
        translate = _SHORT.get(key)
        _merge(fields, translate(value, scenario) if translate else {key: value})
    try:
        config, unknown = config_from_mapping(
            {**fields, "mode": choice.mode, "hostnameOverride": scenario.node.name}
        )
    except ConfigError as wrong:
        raise _wrong(scenario, wrong.what) from wrong
    if unknown:
        raise _wrong(scenario, "; ".join(unknown))
    for section in (*_RULES, "ipvs"):
        if "minSyncPeriod" not in (fields.get(section) or {}):
            config = replace_at(config, f"{section}.minSyncPeriod", Seconds(0))
    try:
        return check(config)
    except ConfigError as wrong:
        raise _wrong(scenario, wrong.what) from wrong


def _merge(into: Fields, more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), Mapping):
            merged = dict(into[key])
            _merge(merged, value)
            into[key] = merged
        else:
            into[key] = value


def _wrong(scenario: Scenario, what: str) -> ScenarioError:
    return ScenarioError(
        what,
        where=f"{scenario.name}: config",
        hint="use a short form or a KubeProxyConfiguration field",
    )


def node_manifest(scenario: Scenario) -> Manifest:
    """The Node object of the node under test, as ``node:`` describes it."""
    node = scenario.node
    short = detection(scenario)
    ranges = short.cidrs if short is not None and short.mode == "NodeCIDR" else ()
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": dict(node.labels)},
        "spec": {"podCIDR": ranges[0], "podCIDRs": list(ranges)} if ranges else {},
        "status": {"addresses": [{"type": "InternalIP", "address": ip} for ip in node.ips]},
    }
