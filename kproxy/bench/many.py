"""A mode that serves many services, and where the first and the last of them are.

Each has a cluster IP and one TCP port of its own, and one endpoint, the path's pod: what differs
between services is where they stand among the others, and nothing behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kproxy import status
from kproxy.bench.load import Place
from kproxy.bench.ours import MODES, PODS, READY, Mode
from kproxy.bench.path import PORT, Path
from kproxy.core.objects import Family
from kproxy.errors import CheckFailed
from kproxy.kernel import command

#: 10.96.1.1 to 10.96.250.250.
MOST = 250 * 250

_PORT_NAME = "tcp"
_PORT = {"name": _PORT_NAME, "protocol": "TCP", "port": PORT}

#: Services of one file are in force within so many seconds, and so many more for each of them. The
#: slowest here needs 5 ms for one.
_PATIENCE, _PATIENCE_EACH = 20.0, 0.02

#: Modes whose first packets walk along a chain, and where each service is a rule of it.
_CHAINS = {
    "iptables-legacy": "KUBE-SERVICES",
    "iptables-nft": "KUBE-SERVICES",
    "userspace": "KUBE-PORTALS-CONTAINER",
}
_SAVERS = ("iptables-nft-save", "iptables-legacy-save")

#: Nobody looks through what stands while others are measured: full syncs are an hour apart.
_SETTINGS = {
    "clusterCIDR": PODS[1],
    **{mode: {"syncPeriod": "1h"} for mode in ("iptables", "ipvs", "nftables")},
}


def address(number: int) -> str:
    """The cluster IP of a service."""
    return f"10.96.{1 + number // 250}.{1 + number % 250}"


class Many(Mode):
    """``services`` of them, at :func:`address`; place is the first of them in the kernel's order
    once it has started. ValueError: more than there are addresses."""

    def __init__(self, name: str, services: int) -> None:
        if not 1 <= services <= MOST:
            raise ValueError(f"between 1 and {MOST} services")
        super().__init__(*MODES[name], name=name, descriptors=True, settings=_SETTINGS)
        self.services = services
        self._ends = address(0), address(services - 1)

    def start(self, path: Path) -> None:
        """CheckFailed: it is not in force, or not with all of the services."""
        patience = _PATIENCE + _PATIENCE_EACH * self.services
        pod = path.pod_place(Family.IPV4)[0]
        self.start_serving(path, _list(self.services, pod), patience=patience)
        self._whole()
        if self.name in _CHAINS:
            self._ends = _ends(path, _CHAINS[self.name])

    def _whole(self) -> None:
        """CheckFailed: it leaves services out."""
        known = status.read(self.state)
        if known is not None and known.refusals:
            why = known.refusals[0].rpartition(f":{_PORT_NAME}: ")[2]
            raise CheckFailed(
                f"it leaves out {len(known.refusals):,} of {self.services:,} services: {why}"
            )

    def place(self, family: Family) -> Place:
        return self._ends[0], PORT

    def last(self) -> Place:
        """Where the service is that is looked up last."""
        return self._ends[1], PORT


def _ends(path: Path, chain: str) -> tuple[str, str]:
    """The first and the last service of a chain: its rules are tried one after the other."""
    rule = re.compile(rf"^-A {chain} .*-d (10\.96\.[\d.]+)/32 .*--dport {PORT} ", re.MULTILINE)
    for tool in _SAVERS:
        saved = command.run([tool, "-t", "nat"], namespace=path.fd("node")).stdout.decode()
        if found := rule.findall(saved):
            return found[0], found[-1]
    raise CheckFailed(f"no rule of {chain} leads to a service")


def _list(services: int, pod: str) -> dict[str, Any]:
    """As a ``List``. Names are in the order of their numbers, however they are sorted."""
    items = [item for number in range(services) for item in _objects(number, pod)]
    return {"apiVersion": "v1", "kind": "List", "items": items}


def _objects(number: int, pod: str) -> Iterator[dict[str, Any]]:
    """A Service and its slice."""
    name, cluster_ip = f"service-{number:05}", address(number)
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "bench", "name": name},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ip,
            "clusterIPs": [cluster_ip],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{**_PORT, "targetPort": PORT}],
        },
    }
    yield {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": "bench",
            "name": name,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": [_PORT],
        "endpoints": [{"addresses": [pod], "nodeName": "node", "conditions": READY}],
    }
