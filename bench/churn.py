"""A cluster that changes at random, one object at a time, for as long as one wants.

Every change goes the way that a daemon's does: objects, tracker, planner, Snapshot. The same seed
gives the same history.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec

from kproxy.bench import workload
from kproxy.core.decode import decode_value
from kproxy.core.events import Delta, Ref
from kproxy.core.objects import Family, ObjectKey
from kproxy.core.planner import Planner
from kproxy.core.snapshot import NodeSettings, Snapshot
from kproxy.core.tracker import Tracker

V4 = Family.IPV4
#: Of ipvs mode: node ports have a server on each of the node's addresses.
SETTINGS: NodeSettings = msgspec.structs.replace(
    workload.SETTINGS[V4], local_addresses=workload.SETTINGS[V4].addresses
)

_NAMESPACE = "churn"
#: Endpoints come from so few addresses that services share many of them.
_PODS = 400
_MOST = 12
_SCHEDULERS = ("rr", "wrr", "lc", "wlc", "sh", "mh")


class Churn:
    """``services`` names, each of which has a Service and endpoints or not, as it comes."""

    def __init__(self, services: int, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self._services = services
        self._tracker = Tracker()
        self._planner = Planner(V4)
        self._there: set[Ref] = set()
        for number in range(services):
            self._put(self._service(number))
            self._put(self._slice(number))
        self.snapshot = self._planner.plan(self._tracker, SETTINGS)

    def step(self) -> Snapshot:
        """The Snapshot after one more change, which may turn out to be none."""
        number = self._random.randrange(self._services)
        kind = self._random.random()
        if kind < 0.7:
            changes = self._put(self._slice(number))
        elif kind < 0.9:
            changes = self._put(self._service(number))
        else:
            changes = self._drop(self._random.choice(("Service", "EndpointSlice")), number)
        self.snapshot = self._planner.plan(self._tracker, SETTINGS, changes)
        return self.snapshot

    def afresh(self) -> Snapshot:
        """The present state as a proxy that starts now plans it."""
        return Planner(V4).plan(self._tracker, SETTINGS)

    def _put(self, manifest: dict[str, Any]) -> Any:
        objects = tuple(obj for item in decode_value(manifest).items for obj in item.objects)
        metadata = manifest["metadata"]
        self._there.add(Ref(manifest["kind"], ObjectKey(_NAMESPACE, metadata["name"])))
        return self._tracker.apply(Delta(upserted=objects))

    def _drop(self, kind: str, number: int) -> Any:
        name = f"s{number}" if kind == "Service" else f"s{number}-1"
        ref = Ref(kind, ObjectKey(_NAMESPACE, name))
        gone = (ref,) if ref in self._there else ()
        self._there.discard(ref)
        return self._tracker.apply(Delta(deleted=gone))

    def _maybe(self, chance: float) -> bool:
        return self._random.random() < chance

    def _service(self, number: int) -> dict[str, Any]:
        protocol = self._random.choice(("TCP", "TCP", "UDP", "SCTP"))
        port: dict[str, Any] = {"name": "main", "protocol": protocol, "port": 80}
        spec: dict[str, Any] = {"clusterIP": workload.cluster_ip(number), "ports": [port]}
        status: dict[str, Any] = {}
        if self._maybe(0.3):
            port["nodePort"] = 30000 + number
            spec["type"] = "NodePort"
        if self._maybe(0.2):
            # Two services may want the same one.
            spec["externalIPs"] = [f"192.168.99.{self._random.randrange(1, 9)}"]
        if self._maybe(0.2):
            spec["type"] = "LoadBalancer"
            status = {"loadBalancer": {"ingress": [{"ip": f"203.0.113.{number % 250 + 1}"}]}}
            if self._maybe(0.5):
                spec["loadBalancerSourceRanges"] = self._random.sample(
                    ["0.0.0.0/0", "192.168.0.0/16", "198.51.100.0/24", "10.0.0.0/9"], 2
                )
        for policy in ("internalTrafficPolicy", "externalTrafficPolicy"):
            if self._maybe(0.2):
                spec[policy] = "Local"
        if self._maybe(0.2):
            spec["sessionAffinity"] = "ClientIP"
        metadata: dict[str, Any] = {"namespace": _NAMESPACE, "name": f"s{number}"}
        if self._maybe(0.3):
            metadata["annotations"] = {"kproxy/ipvs-scheduler": self._random.choice(_SCHEDULERS)}
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": spec,
            "status": status,
        }

    def _slice(self, number: int) -> dict[str, Any]:
        pods = self._random.sample(range(_PODS), self._random.randrange(_MOST))
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": _NAMESPACE,
                "name": f"s{number}-1",
                "labels": {"kubernetes.io/service-name": f"s{number}"},
            },
            "addressType": "IPv4",
            "ports": [
                {"name": "main", "protocol": protocol, "port": 8080}
                for protocol in ("TCP", "UDP", "SCTP")
            ],
            "endpoints": [
                {
                    "addresses": [workload.pod_ip(pod)],
                    "nodeName": workload.NODE if pod % 5 == 0 else "elsewhere",
                    "conditions": {"ready": self._maybe(0.9), "serving": True,
                                   "terminating": self._maybe(0.1)},
                }
                for pod in pods
            ],
        }  # fmt: skip
