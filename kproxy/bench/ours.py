"""kproxy as a subject: the bare relay, and a whole mode; and how each mode is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path as File
from typing import Any, Self

import msgspec

import kproxy
from kproxy import status
from kproxy.backends import registry
from kproxy.bench import usage
from kproxy.bench.helper import ROOT, Helper
from kproxy.bench.load import Place
from kproxy.bench.path import PORT, Path
from kproxy.bench.peers import Subject
from kproxy.core.objects import Family
from kproxy.errors import CheckFailed, MachineError
from kproxy.kernel import capabilities, command, netns
from kproxy.kernel.netns import entered

#: How a mode is asked for (``--proxy-mode`` and more), by the name that tables have.
MODES: Mapping[str, tuple[str, ...]] = {
    "userspace": ("userspace",),
    "iptables-legacy": ("iptables", "--iptables-variant", "legacy"),
    "iptables-nft": ("iptables", "--iptables-variant", "nft"),
    "nftables": ("nftables",),
    "fastpath": ("fastpath",),
    "ipvs": ("ipvs",),
}

#: An endpoint's conditions, as in an EndpointSlice.
Conditions = Mapping[str, bool]
READY: Conditions = {"ready": True, "serving": True, "terminating": False}
#: Serves what it has, and what nobody who is ready could take.
DRAINING: Conditions = {"ready": False, "serving": True, "terminating": True}

#: The one service of a mode that is measured.
CLUSTER_IPS = {Family.IPV4: "10.96.0.10", Family.IPV6: "fd96::10"}
#: Where pods are, so that the client is none: what it sends is masqueraded as from outside.
_CLUSTER_CIDRS = "10.78.0.0/16,fd78::/64"
#: The same with the client as a pod, as most clients of cluster IPs are: nobody is hidden.
PODS = ("--cluster-cidr", "10.76.0.0/14,fd00::/8")

#: Seconds that a mode may take for its first sync, and between two looks.
_PATIENCE, _LOOK = 20.0, 0.01

#: Open files of a process in a container.
_CONTAINER = 1 << 20


def lacking(name: str) -> str:
    """Why this machine cannot run a mode of :data:`MODES`, by the mode's own probe in a namespace
    of its own; "" when it can."""
    asked = MODES[name]
    choice = registry.named(asked[0], *asked[2:])
    try:
        with netns.fresh():
            registry.create(choice, Family.IPV4).probe()
    except MachineError as lack:
        return str(lack)
    return ""


class BareRelay(Subject):
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


class Mode(Subject):
    """``kproxy run`` in a mode, with one dual-stack service of TCP and UDP ports; clients reach it
    by its cluster IP. ``arguments`` are more of kube-proxy's flags, ``check`` is the service's
    ``kproxy/health-check``, ``name`` what tables call it (the mode). ``descriptors``: it may open
    as many files as in a container, a million, if that is ours to give: a usual limit is too low
    for what it serves.
    ``settings``: a KubeProxyConfiguration, beside which only flags that are kproxy's own count.

    Its CPU and memory are those of the daemon: what rules cost is the kernel's.
    """

    def __init__(
        self,
        mode: str,
        *arguments: str,
        check: str = "",
        name: str = "",
        descriptors: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name or mode
        self._mode = mode
        self._arguments = arguments
        self._check = check
        self._descriptors = descriptors
        self._settings = settings
        self._path: Path | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        #: All that were started: one that was taken over from lives as long as its connections.
        self._processes: list[subprocess.Popen[bytes]] = []

    @classmethod
    def named(cls, name: str, *arguments: str, check: str = "") -> Self:
        """A mode by its name in tables, one of :data:`MODES`."""
        return cls(*MODES[name], *arguments, check=check, name=name)

    def start(self, path: Path) -> None:
        """Every pod is a ready endpoint."""
        everyone = range(len(path.pod_addresses(Family.IPV4)))
        self.start_with(path, dict.fromkeys(everyone, READY))

    def start_with(self, path: Path, pods: Mapping[int, Conditions]) -> None:
        """With these endpoints: number of the pod's address -> its conditions."""
        self.start_serving(path, _objects(path, pods, self._check))

    def start_serving(
        self, path: Path, objects: Mapping[str, Any], *, patience: float = _PATIENCE
    ) -> None:
        """With these Kubernetes objects (a ``List``), in force within ``patience`` seconds."""
        self._path = path
        self._folder = tempfile.TemporaryDirectory(prefix="kproxy-bench-")
        self._write(objects)
        self.begin()
        self.await_in_force(patience)

    def begin(self) -> None:
        """Start a daemon with what is published and known, in place of one that has ended, or
        beside one that it takes over from; :meth:`await_in_force` waits for it."""
        assert self._path is not None
        argv = _with_descriptors() if self._descriptors else []
        argv += [sys.executable, "-m", "kproxy", "run", "-f", str(self._manifests)]
        argv += ["--proxy-mode", self._mode, "--state-dir", str(self.state)]
        argv += ["--hostname-override", "node", "--cluster-cidr", _CLUSTER_CIDRS]
        if self._settings is not None:
            argv += ["--config", str(self._configured(self._settings))]
        log = self._in_folder("log").open("ab")
        with log, entered(self._path.fd("node")):
            self._process = subprocess.Popen(
                [*argv, *self._arguments],
                cwd=ROOT,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stderr=log,
                # Ctrl-C is for who started it, and ends it.
                start_new_session=True,
            )
        self._processes.append(self._process)

    def end(self, number: int) -> None:
        """Send the daemon a signal, and wait until it has ended."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait()

    def environment(self) -> dict[str, str]:
        """Of the daemon, and of tools beside it: a record of sysctls and a lock of the path's
        own."""
        return {
            **os.environ,
            "KPROXY_RECORDS": str(self._in_folder("records")),
            "XTABLES_LOCKFILE": str(self._in_folder("xtables.lock")),
        }

    def set_endpoints(self, pods: Mapping[int, Conditions]) -> None:
        """Others, and wait until they are in force. CheckFailed: it takes too long."""
        assert self._path is not None
        self._write(_objects(self._path, pods, self._check))
        self.await_in_force()

    def await_in_force(self, patience: float = _PATIENCE) -> None:
        """Until what was published is in force by the daemon that was started last. CheckFailed: it
        takes longer than ``patience`` seconds, or the daemon ended."""
        assert self._process is not None
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            known = status.read(self.state)
            # What an earlier daemon has left says nothing about this one.
            ours = known is not None and known.pid == self._process.pid
            if ours and status.in_force(self.state, [self._manifests]):
                return
            time.sleep(_LOOK)
        words = self.words()
        raise CheckFailed(
            f"{self.name} mode is not in force: {words[-1] if words else 'it said nothing'}"
        )

    def await_calm(self) -> None:
        """Until the daemon has nothing left of its start: no load of a node's life meets that.
        CheckFailed: it does not come to rest."""
        usage.await_calm(self.pids(), self.name)

    def place(self, family: Family) -> Place:
        return CLUSTER_IPS[family], PORT

    def pids(self) -> tuple[int, ...]:
        assert self._process is not None
        return (self._process.pid,)

    def version(self) -> str:
        return f"kproxy {kproxy.__version__} {' '.join((self._mode, *self._arguments))}"

    def absent(self) -> str:
        return lacking(self.name) if self.name in MODES else ""

    @property
    def mode(self) -> str:
        """``--proxy-mode``'s value."""
        return self._mode

    @property
    def state(self) -> File:
        """The daemon's state directory."""
        return self._in_folder("state")

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._folder is not None:
            self._folder.cleanup()
        self._processes.clear()
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

    def _configured(self, settings: Mapping[str, Any]) -> File:
        file = self._in_folder("config.json")
        head = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}
        file.write_bytes(msgspec.json.encode({**head, "mode": self._mode, **settings}))
        return file

    def _write(self, objects: Mapping[str, Any]) -> None:
        """In one step: the daemon never reads half a file."""
        fresh = self._in_folder("service.new")
        fresh.write_bytes(msgspec.json.encode(objects))
        fresh.rename(self._manifests)


def _with_descriptors() -> list[str]:
    """What starts a command with the limit of open files that container engines give; nothing where
    root may not raise it."""
    if capabilities.missing("CAP_SYS_RESOURCE"):
        return []
    most = min(_CONTAINER, int(File("/proc/sys/fs/nr_open").read_text()))
    return [command.require("prlimit"), f"--nofile={most}:{most}"]


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
