"""What the controllers know of a lab: ranges, nodes and pods, cut down to what they decide by."""

from __future__ import annotations

from kproxy.core.objects import Family, Value, family_of
from kproxy.lab.state import Pod

ZONE_LABEL = "topology.kubernetes.io/zone"
HOSTNAME_LABEL = "kubernetes.io/hostname"

#: How the API spells families.
FAMILY_NAMES = {Family.IPV4: "IPv4", Family.IPV6: "IPv6"}
FAMILIES = {name: family for family, name in FAMILY_NAMES.items()}


class NodeFacts(Value, frozen=True):
    """A node as its Node object tells of it; ``addresses`` and ``pod_cidrs`` of all families."""

    name: str
    labels: tuple[tuple[str, str], ...] = ()
    addresses: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()

    @property
    def zone(self) -> str:
        return dict(self.labels).get(ZONE_LABEL, "")


class Cluster(Value, frozen=True):
    """The lab as controllers see it.

    ``service_cidrs`` and ``lb_cidrs`` are the ranges that addresses are given from, at most one a
    family; the first family of ``families`` is the default one. ``seed`` makes random choices
    repeatable: the same lab name gives the same numbers.
    """

    seed: str
    families: tuple[Family, ...]
    service_cidrs: tuple[str, ...]
    lb_cidrs: tuple[str, ...] = ()
    nodes: tuple[NodeFacts, ...] = ()
    pods: tuple[Pod, ...] = ()

    def service_cidr(self, family: Family) -> str:
        return next(cidr for cidr in self.service_cidrs if family_of(cidr) is family)

    def lb_cidr(self, family: Family) -> str:
        """The load-balancer range of a family, "" when the lab has none."""
        return next((cidr for cidr in self.lb_cidrs if family_of(cidr) is family), "")

    def zone_of(self, node: str) -> str:
        return next((facts.zone for facts in self.nodes if facts.name == node), "")
