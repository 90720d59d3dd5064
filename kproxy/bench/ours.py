"""kproxy as a subject: the bare relay, and a whole mode."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path as File
from typing import Any

import msgspec

import kproxy
from kproxy import status
from kproxy.bench.helper import ROOT, Helper
from kproxy.bench.load import Place
from kproxy.bench.path import PORT, Path
from kproxy.core.objects import Family
from kproxy.errors import CheckFailed
from kproxy.kernel.netns import entered

#: An endpoint's conditions, as in an EndpointSlice.
Conditions = Mapping[str, bool]
READY: Conditions = {"ready": True, "serving": True, "terminating": False}
#: Serves what it has, and what nobody who is ready could take.
DRAINING: Conditions = {"ready": False, "serving": True, "terminating": True}

#: The one service of a mode that is measured.
CLUSTER_IPS = {Family.IPV4: "10.96.0.10", Family.IPV6: "fd96::10"}
#: Where pods are, so that the client is none: what it sends is masqueraded as from outside.
_CLUSTER_CIDRS = "10.78.0.0/16,fd78::/64"

#: Seconds that a mode may take for its first sync, and between two looks.
_PATIENCE, _LOOK = 20.0, 0.01


class BareRelay:
    """The relay of userspace mode alone, at the node's address: no rules, no daemon.

    ``options`` are those of :class:`kproxy._relay.Relay`; one worker unless they say else.
    """

    def __init__(self, name: str = "relay", **options: Any) -> None:
        self.name = name
        self._options = {"workers": 1, **options}
        self._path: Path | None = None
        self._helper: Helper | None = None

    def start(self, path: Path) -> None:
        self._path = path
        self._helper = Helper(path.fd("node"), "kproxy.bench.relay_agent")
        fronts = [
            (protocol, path.node_place(family), path.pod_place(family))
            for protocol in ("tcp", "udp")
            for family in Family
        ]
        self._helper.ask(do="start", fronts=fronts, options=self._options)

    def place(self, family: Family) -> Place:
        assert self._path is not None
        return self._path.node_place(family)

    def pids(self) -> tuple[int, ...]:
        assert self._helper is not None
        return (self._helper.pid,)

    def version(self) -> str:
        return f"kproxy {kproxy.__version__}, {self._options}"

    def stop(self) -> None:
        if self._helper is not None:
            self._helper.close()
        self._path = self._helper = None

    def set_endpoints(self, protocol: str, family: Family, places: Sequence[Place]) -> None:
        """Replace the endpoints of the one service of that protocol and family."""
        assert self._helper is not None
        self._helper.ask(
            do="endpoints", service=f"{protocol} {self.place(family)[0]}", places=places
        )

    def counters(self) -> dict[str, Any]:
        """The relay's own: ``totals``, and of each of its ``services``."""
        assert self._helper is not None
        answer: dict[str, Any] = self._helper.ask(do="counters")
        return answer


class Mode:
    """``kproxy run`` in a mode, with one dual-stack service of TCP and UDP ports; clients reach it
    by its cluster IP. ``arguments`` are more of kube-proxy's flags, ``check`` is the service's
    ``kproxy/health-check``.

    Its CPU and memory are those of the daemon: what rules cost is the kernel's.
    """

    def __init__(self, mode: str, *arguments: str, check: str = "") -> None:
        self.name = mode
        self._arguments = arguments
        self._check = check
        self._path: Path | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, path: Path) -> None:
        """Every pod is a ready endpoint."""
        everyone = range(len(path.pod_addresses(Family.IPV4)))
        self.start_with(path, dict.fromkeys(everyone, READY))

    def start_with(self, path: Path, pods: Mapping[int, Conditions]) -> None:
        """With these endpoints: number of the pod's address -> its conditions."""
        self._path = path
        self._folder = tempfile.TemporaryDirectory(prefix="kproxy-bench-")
        folder = File(self._folder.name)
        self._publish(pods)
        argv = [sys.executable, "-m", "kproxy", "run", "-f", str(self._manifests)]
        argv += ["--proxy-mode", self.name, "--state-dir", str(self.state)]
        argv += ["--hostname-override", "node", "--cluster-cidr", _CLUSTER_CIDRS]
        environment = {
            **os.environ,
            "KPROXY_RECORDS": str(folder / "records"),
            "XTABLES_LOCKFILE": str(folder / "xtables.lock"),
        }
        log = (folder / "log").open("wb")
        with log, entered(path.fd("node")):
            self._process = subprocess.Popen(
                [*argv, *self._arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        self._await()

    def set_endpoints(self, pods: Mapping[int, Conditions]) -> None:
        """Others, and wait until they are in force. CheckFailed: it takes too long."""
        self._publish(pods)
        self._await()

    def place(self, family: Family) -> Place:
        return CLUSTER_IPS[family], PORT

    def pids(self) -> tuple[int, ...]:
        assert self._process is not None
        return (self._process.pid,)

    def version(self) -> str:
        return f"kproxy {kproxy.__version__} {' '.join((self.name, *self._arguments))}"

    @property
    def state(self) -> File:
        """The daemon's state directory."""
        return self._in_folder("state")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._folder is not None:
            self._folder.cleanup()
        self._process = self._folder = self._path = None

    def words(self) -> list[str]:
        """What the daemon has written to its log."""
        return self._in_folder("log").read_text(errors="replace").splitlines()

    @property
    def _manifests(self) -> File:
        return self._in_folder("service.json")

    def _in_folder(self, name: str) -> File:
        assert self._folder is not None
        return File(self._folder.name, name)

    def _publish(self, pods: Mapping[int, Conditions]) -> None:
        """In one step: the daemon never reads half a file."""
        assert self._path is not None
        content = _objects(self._path, pods, self._check)
        fresh = self._in_folder("service.new")
        fresh.write_bytes(msgspec.json.encode(content))
        fresh.rename(self._manifests)

    def _await(self) -> None:
        """Until the file is in force. CheckFailed: it takes too long, or the daemon ended."""
        assert self._process is not None
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            known = status.read(self.state)
            if known is not None and status.in_force(self.state, [self._manifests]):
                return
            time.sleep(_LOOK)
        words = self.words()
        raise CheckFailed(
            f"{self.name} mode is not in force: {words[-1] if words else 'it said nothing'}"
        )


def _objects(path: Path, pods: Mapping[int, Conditions], check: str) -> dict[str, Any]:
    """A dual-stack Service and its slices."""
    ports = [
        {"name": protocol.lower(), "protocol": protocol, "port": PORT}
        for protocol in ("TCP", "UDP")
    ]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "namespace": "bench",
            "name": "pod",
            "annotations": {"kproxy/health-check": check} if check else {},
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": CLUSTER_IPS[Family.IPV4],
            "clusterIPs": list(CLUSTER_IPS.values()),
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [{**port, "targetPort": PORT} for port in ports],
        },
    }
    slices = [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": "bench",
                "name": f"pod-{family.value}",
                "labels": {"kubernetes.io/service-name": "pod"},
            },
            "addressType": f"IPv{family.value}",
            "ports": ports,
            "endpoints": [
                {
                    "addresses": [path.pod_place(family, number)[0]],
                    "nodeName": "node",
                    "conditions": conditions,
                }
                for number, conditions in pods.items()
            ],
        }
        for family in Family
    ]
    return {"apiVersion": "v1", "kind": "List", "items": [service, *slices]}
