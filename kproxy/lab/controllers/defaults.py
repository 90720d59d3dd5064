"""The defaults that an API server writes into a Service, and the families it settles on.

Pure; edits the copy that it is given. Source: SetDefaults_Service and initIPFamilyFields of
Kubernetes, the create path.
"""

from __future__ import annotations

from typing import Any

from kproxy.core.address import canonical_ip
from kproxy.core.objects import Family, family_of
from kproxy.lab.controllers.cluster import FAMILIES, FAMILY_NAMES
from kproxy.lab.controllers.faults import Faults

#: KEP: three hours.
AFFINITY_SECONDS = 10800

#: Types that have node ports.
EXTERNAL_TYPES = ("NodePort", "LoadBalancer")


def headless(spec: dict[str, Any]) -> bool:
    return spec.get("clusterIP") == "None"


def fill_defaults(spec: dict[str, Any]) -> None:
    """Every default that does not depend on the cluster. ``spec`` has passed the shape checks."""
    spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    if spec["sessionAffinity"] == "ClientIP":
        config = spec.setdefault("sessionAffinityConfig", {})
        config.setdefault("clientIP", {}).setdefault("timeoutSeconds", AFFINITY_SECONDS)
    for port in spec.get("ports") or ():
        port.setdefault("protocol", "TCP")
        if port.get("targetPort") in (None, "", 0):
            port["targetPort"] = port["port"]
    if spec["type"] == "ExternalName":
        return
    spec.setdefault("internalTrafficPolicy", "Cluster")
    if spec["type"] in EXTERNAL_TYPES or spec.get("externalIPs"):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if spec["type"] == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)
    addresses = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    if addresses:
        spec["clusterIPs"] = list(addresses)
        spec["clusterIP"] = addresses[0]


def settle_families(
    spec: dict[str, Any], cluster_families: tuple[Family, ...], faults: Faults
) -> None:
    """Fill ``ipFamilyPolicy`` and ``ipFamilies``; ``clusterIPs`` have been checked for form."""
    without_selector = headless(spec) and not spec.get("selector")
    policy = spec.setdefault(
        "ipFamilyPolicy", "RequireDualStack" if without_selector else "SingleStack"
    )
    addresses = [] if headless(spec) else spec.get("clusterIPs", [])
    families: list[str] = list(spec.get("ipFamilies") or ())
    for index, address in enumerate(addresses):
        name = FAMILY_NAMES[family_of(canonical_ip(address) or address)]
        if index >= len(families):
            families.append(name)
        elif families[index] != name:
            faults.invalid(
                f"spec.clusterIPs[{index}]", address, f"must be of the family {families[index]}"
            )
    if policy == "SingleStack" and (len(addresses) == 2 or len(families) == 2):
        faults.invalid(
            "spec.ipFamilyPolicy",
            policy,
            "must be 'RequireDualStack' or 'PreferDualStack' for two families",
        )
    if without_selector and not families:
        families = [FAMILY_NAMES[cluster_families[0]]]
    if without_selector and policy != "SingleStack" and len(families) == 1:
        families.append(_other(families[0]))
    if not without_selector:
        families = _of_cluster(policy, families, cluster_families, faults)
    spec["ipFamilies"] = families


def _of_cluster(
    policy: str, families: list[str], cluster: tuple[Family, ...], faults: Faults
) -> list[str]:
    """Families of a service whose addresses or endpoints come from the lab."""
    if policy == "RequireDualStack" and len(cluster) < 2:
        faults.invalid(
            "spec.ipFamilyPolicy", policy, "this lab has one family only; give it both (families)"
        )
    for index, name in enumerate(families):
        if FAMILIES[name] not in cluster:
            faults.invalid(f"spec.ipFamilies[{index}]", name, "this lab does not have that family")
    if not families:
        families = [FAMILY_NAMES[cluster[0]]]
    if policy != "SingleStack" and len(families) == 1 and len(cluster) == 2:
        families.append(_other(families[0]))
    return families


def _other(name: str) -> str:
    return "IPv6" if name == "IPv4" else "IPv4"
