"""Node objects of a lab's nodes, as their kubelets would report them. Pure."""

from __future__ import annotations

from typing import Any

from kproxy.lab.controllers.cluster import HOSTNAME_LABEL, Cluster, NodeFacts


def make_nodes(cluster: Cluster) -> list[dict[str, Any]]:
    return [_node(facts) for facts in cluster.nodes]


def _node(facts: NodeFacts) -> dict[str, Any]:
    addresses = [{"type": "InternalIP", "address": address} for address in facts.addresses]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": facts.name,
            "labels": {
                HOSTNAME_LABEL: facts.name,
                "kubernetes.io/os": "linux",
                **dict(facts.labels),
            },
        },
        "spec": {"podCIDR": facts.pod_cidrs[0], "podCIDRs": list(facts.pod_cidrs)}
        if facts.pod_cidrs
        else {},
        "status": {
            "addresses": [*addresses, {"type": "Hostname", "address": facts.name}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    }
