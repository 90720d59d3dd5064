"""Short forms of a scenario's config, and the Node object."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.backends.registry import Choice
from kproxy.config import value_at
from kproxy.errors import ScenarioError
from kproxy.lab.scenario.schema import NodeSpec, Scenario
from kproxy.lab.scenario.settings import configuration, node_manifest

IPTABLES = Choice("iptables", "nft")


def scenario(config: dict[str, Any]) -> Scenario:
    return Scenario(name="s", config=config, node=NodeSpec(name="n1", ips=("192.0.2.1", "::2")))


#: (config, field of the Config, its value)
TABLE = [
    ({}, "hostnameOverride", "n1"),
    ({}, "mode", "iptables"),
    ({}, "detectLocalMode", "ClusterCIDR"),
    ({}, "clusterCIDR", ""),
    ({}, "iptables.minSyncPeriod", 0),
    ({"iptables": {"minSyncPeriod": "2s"}}, "iptables.minSyncPeriod", 2),
    ({"detectLocal": None}, "clusterCIDR", ""),
    ({"detectLocal": {"mode": "ClusterCIDR", "cidr": "10.0.0.0/8"}}, "clusterCIDR", "10.0.0.0/8"),
    (
        {"detectLocal": {"mode": "ClusterCIDR", "cidr": ["10.0.0.0/8", "fd00::/8"]}},
        "clusterCIDR",
        "10.0.0.0/8,fd00::/8",
    ),
    ({"detectLocal": {"mode": "NodeCIDR", "cidr": "10.1.0.0/16"}}, "detectLocalMode", "NodeCIDR"),
    (
        {"detectLocal": {"mode": "BridgeInterface", "name": "br0"}},
        "detectLocal.bridgeInterface",
        "br0",
    ),
    (
        {"detectLocal": {"mode": "InterfaceNamePrefix", "name": "cali"}},
        "detectLocal.interfaceNamePrefix",
        "cali",
    ),
    ({"masqueradeAll": True}, "iptables.masqueradeAll", True),
    ({"masqueradeAll": True}, "nftables.masqueradeAll", True),
    (
        {"masqueradeAll": True, "iptables": {"masqueradeBit": 9}},
        "iptables.masqueradeAll",
        True,
    ),
    ({"localhostNodePorts": False}, "iptables.localhostNodePorts", False),
    ({"nodePortAddresses": ["primary"]}, "nodePortAddresses", ("primary",)),
    ({"serviceCIDRs": ["172.30.0.0/16"]}, "serviceCIDRs", ("172.30.0.0/16",)),
    ({"ipvs": {"scheduler": "sh"}}, "ipvs.scheduler", "sh"),
]


@pytest.mark.parametrize(("config", "field", "value"), TABLE)
def test_short_forms(config: dict[str, Any], field: str, value: object) -> None:
    """Each short form sets its field; everything else has kube-proxy's default."""
    assert value_at(configuration(scenario(config), IPTABLES), field) == value


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"masqeradeAll": True}, "masqeradeAll"),
        ({"detectLocal": {"mode": "ClusterCIDR", "cdr": "10.0.0.0/8"}}, "cdr"),
        ({"detectLocal": {"mode": "Guess"}}, "detectLocalMode"),
        ({"masqueradeAll": "often"}, "masqueradeAll"),
        ({"nodePortAddresses": ["everywhere"]}, "nodePortAddresses"),
    ],
)
def test_unknown_or_senseless_config_is_an_error(config: dict[str, Any], named: str) -> None:
    """The scenario and the field are named."""
    with pytest.raises(ScenarioError, match=named) as caught:
        configuration(scenario(config), IPTABLES)
    assert "s: config" in str(caught.value)


def test_the_node_object() -> None:
    """Addresses in order, labels, and the pod range when the detector needs it from there."""
    case = scenario({"detectLocal": {"mode": "NodeCIDR", "cidr": "10.1.0.0/16"}})
    node = node_manifest(case)
    assert node["metadata"]["name"] == "n1"
    assert [item["address"] for item in node["status"]["addresses"]] == ["192.0.2.1", "::2"]
    assert node["spec"]["podCIDRs"] == ["10.1.0.0/16"]
    assert node_manifest(scenario({}))["spec"] == {}
