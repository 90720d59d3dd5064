"""From a manifest's replacement to the first good packet: a daemon as it comes, and a client.

``kproxy run`` serves N services of a file that does not change, and those of a small one beside it,
which is replaced in one step (written under another name, then renamed): the daemon reads again
what has changed, so what is measured is how its work grows with what has not. A client connects to
the service every two milliseconds meanwhile; each pod answers with its own address.

    moved   the service's only endpoint goes from one pod to another
    new     a service that was not there before

Between the two there is quiet for as long as two syncs are kept apart: a lone change is what both
are.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path as File
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from kproxy import status
from kproxy.bench import usage, workload
from kproxy.bench.ours import PODS, READY, Mode
from kproxy.bench.path import Path
from kproxy.bench.peers import running
from kproxy.bench.prober import Prober
from kproxy.bench.results import Cost
from kproxy.core.objects import Value
from kproxy.errors import CheckFailed

ENDPOINTS = 10

#: The services that are measured, their port and their endpoints'.
MOVED, NEW = "10.96.200.1", "10.96.200.2"
_PORT, _TARGET = 80, 7100

#: Seconds that all may take to be in force, and a change to be seen; between two looks.
_PATIENCE, _SEEN, _LOOK = 120.0, 60.0, 0.005

#: Seconds without a change: kube-proxy's and our least time between two syncs (minSyncPeriod) is
#: one, after two that may follow at once.
QUIET = 1.1


class Converged(Value, frozen=True):
    """Seconds from the file's rename to the first good answer. ``cost`` is the daemon's: CPU and
    seconds from its start until all was in force, its memory then."""

    moved: float
    new: float
    cost: Cost


def measured(mode: str, services: int) -> Converged:
    """A daemon with so many services. CheckFailed: it does not come into force, or no answer
    comes."""
    with (
        TemporaryDirectory(prefix="kproxy-bench-") as folder,
        Path(pods=2, apart=True) as path,
        Prober(path.fd("pod")) as pods,
        Prober(path.fd("client")) as client,
    ):
        first, second = path.pod_addresses()
        pods.serve([(first, _TARGET), (second, _TARGET)])
        manifests = _Manifests(File(folder))
        manifests.write_rest(services)
        manifests.write_measured({MOVED: first})
        subject = Mode.named(mode, *PODS, "-f", str(manifests.folder))
        held, begun = usage.kernel_memory(), time.monotonic()
        with running(subject, path):
            _await_in_force(subject, manifests)
            cost = _cost(subject, time.monotonic() - begun, usage.kernel_memory() - held)
            moved = _seconds(client, manifests, {MOVED: second}, MOVED)
            time.sleep(QUIET)
            new = _seconds(client, manifests, {MOVED: second, NEW: first}, NEW)
    return Converged(moved, new, cost)


def _seconds(
    client: Prober, manifests: _Manifests, endpoints: Mapping[str, str], which: str
) -> float:
    """From the rename until the endpoint of one service answers there."""
    client.watch((which, _PORT), endpoints[which])
    begun = manifests.write_measured(endpoints)
    return (client.seen(_SEEN) - begun) / 1e9


def _await_in_force(subject: Mode, manifests: _Manifests) -> None:
    """Until the daemon has all files in force, and more: it has nothing left to do."""
    deadline = time.monotonic() + _PATIENCE
    while not status.in_force(subject.state, manifests.files):
        if time.monotonic() > deadline:
            raise CheckFailed(f"{subject.name} mode is not in force after {_PATIENCE:g} s")
        time.sleep(_LOOK)


def _cost(subject: Mode, seconds: float, held: int) -> Cost:
    pids = subject.pids()
    return Cost(
        seconds=seconds,
        proxy=usage.cpu_seconds(pids) + usage.tools_seconds(pids),
        memory=usage.memory(pids).pss,
        kernel_memory=max(0, held),
    )


class _Manifests:
    """A folder with a large file that stays as it is, and a small one that is replaced."""

    def __init__(self, root: File) -> None:
        self.folder = root / "manifests"
        self.folder.mkdir(mode=0o700)
        self._fresh = root / "measured.new"
        self._measured = self.folder / "measured.json"
        self._rest = self.folder / "rest.json"

    @property
    def files(self) -> list[File]:
        return [self._rest, self._measured]

    def write_rest(self, services: int) -> None:
        self._rest.write_bytes(workload.json_list(services, ENDPOINTS))

    def write_measured(self, endpoints: Mapping[str, str]) -> int:
        """Cluster IP -> the address of its one endpoint. When it was there (CLOCK_MONOTONIC ns)."""
        items = [each for address, pod in endpoints.items() for each in _service(address, pod)]
        self._fresh.write_bytes(
            msgspec.json.encode({"apiVersion": "v1", "kind": "List", "items": items})
        )
        begun = time.monotonic_ns()
        self._fresh.rename(self._measured)
        return begun


def _service(address: str, pod: str) -> list[dict[str, Any]]:
    """A service and its slice."""
    name = f"measured-{address.rpartition('.')[2]}"
    metadata = {"namespace": "bench", "name": name}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "protocol": "TCP", "port": _PORT, "targetPort": _TARGET}],
        },
    }
    endpoint_slice = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**metadata, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": _TARGET}],
        "endpoints": [{"addresses": [pod], "nodeName": "node", "conditions": READY}],
    }
    return [service, endpoint_slice]


def main() -> None:
    asked = ArgumentParser(prog="python -m kproxy.bench.convergence")
    asked.add_argument("mode")
    asked.add_argument("services", type=int)
    given = asked.parse_args()
    sys.stdout.buffer.write(msgspec.json.encode(measured(given.mode, given.services)) + b"\n")


if __name__ == "__main__":
    main()
