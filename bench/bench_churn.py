"""A daemon whose cluster changes all the time; README.md says how to read it.

    python -m pytest bench/bench_churn.py -s [-k legacy]

``KPROXY_CHURN_SECONDS`` (300) of ``KPROXY_CHURN_RATE`` (20) changes a second among
``KPROXY_CHURN_SERVICES`` (1,000) services of four endpoints. Most of them give a service other
endpoints; some open or close the port of an endpoint that is checked, so that verdicts change as
well. In the end another daemon starts on the same files in a network that is made alike, and what
it puts in force from nothing must be what the first one has come to. Writes
``build/bench/churn-MODE.json``.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import pytest

from kproxy import status
from kproxy.bench import report, usage, workload
from kproxy.bench.failover import MODES
from kproxy.bench.helper import ROOT
from kproxy.core.objects import Value
from kproxy.errors import CheckFailed
from kproxy.health.standing import State
from kproxy.kernel import command
from kproxy.kernel.netns import entered
from kproxy.kernel.process import raise_open_files
from kproxy.lab.network import (
    BASE_SYSCTLS,
    FORWARDING_SYSCTLS,
    Address,
    End,
    Host,
    Link,
    Network,
    Route,
    RouteKind,
)
from tests.lab.wired import wired

SECONDS = float(os.environ.get("KPROXY_CHURN_SECONDS", "300"))
RATE = float(os.environ.get("KPROXY_CHURN_RATE", "20"))
SERVICES = int(os.environ.get("KPROXY_CHURN_SERVICES", "1000"))
ENDPOINTS = 4

#: The first services have their endpoints checked: one change in ``FLIP_EVERY`` is about one of
#: these endpoints' ports, at most a half of them is closed.
CHECKED, FLIP_EVERY = 20, 5
CHECK = (
    "{tcp: {}, interval: 500ms, timeout: 300ms, rise: 2, fall: 2, fastInterval: 250ms,"
    " passive: false}"
)
PORT = 8080

#: What may be more at the end than after the first tenth: memory as a share, descriptors by number.
GROWTH, DESCRIPTORS = 0.05, 20

#: Seconds after which memory can be judged: in the first syncs of a kind Python loads and keeps.
WARM = 100.0

#: Seconds until everything is in force, and between two looks.
_PATIENCE, _LOOK = 60.0, 0.05

#: ipvs is churned in bench_ipvs.py, in a kernel that has it.
HERE = [mode for mode in MODES if mode != "ipvs"]


class Sample(Value, frozen=True):
    """What the daemon uses at a moment (seconds since the beginning)."""

    at: float
    pss: int
    descriptors: int
    syncs: int
    failures: int


# --- the cluster -------------------------------------------------------------------------------


class Cluster:
    """Manifests in a folder, a file for each object, and the listeners of endpoints that are
    checked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.changes = {"endpoints": 0, "ports": 0}
        self.closed: set[str] = set()
        self._slices: dict[int, dict[str, Any]] = {}
        self._chance = random.Random(1)
        self._next = SERVICES * ENDPOINTS
        for each in workload.manifests(SERVICES, ENDPOINTS):
            self._write(each)
        for index in range(SERVICES):
            self._slices[index] = workload.endpoint_slice(index, ENDPOINTS)
        for index in range(CHECKED):
            service = workload.service(index)
            service["metadata"]["annotations"] = {"kproxy/health-check": CHECK}
            self._write(service)

    @property
    def checked(self) -> list[str]:
        return [workload.pod_ip(number) for number in range(CHECKED * ENDPOINTS)]

    def change(self, listeners: Listeners) -> None:
        """One change at random."""
        if self._chance.randrange(FLIP_EVERY):
            self.changes["endpoints"] += 1
            self._replace(self._chance.randrange(CHECKED, SERVICES))
        else:
            self.changes["ports"] += 1
            self._flip(listeners)

    def _flip(self, listeners: Listeners) -> None:
        if len(self.closed) >= len(self.checked) // 2 or (
            self.closed and self._chance.randrange(2)
        ):
            address = self._chance.choice(sorted(self.closed))
            self.closed.discard(address)
            listeners.open(address)
        else:
            address = self._chance.choice(sorted(set(self.checked) - self.closed))
            self.closed.add(address)
            listeners.close(address)

    def _replace(self, index: int) -> None:
        """An endpoint turns ready or not, leaves, comes, or is replaced. The cluster as a
        whole does not grow: that would be memory as well."""
        ends = self._slices[index]["endpoints"]
        how = self._chance.choice(["turn", "leave", "replace", "replace"])
        if how == "turn":
            one = self._chance.choice(ends)
            ready = not one["conditions"]["ready"]
            one["conditions"] = {"ready": ready, "serving": ready, "terminating": False}
        else:
            full = len(ends) == ENDPOINTS
            if full:
                ends.pop(self._chance.randrange(len(ends)))
            if how == "replace" or not full:
                self._next += 1
                ends.append(workload.endpoint(self._next))
        self._write(self._slices[index])

    def _write(self, content: dict[str, Any]) -> None:
        meta = content["metadata"]
        name = f"{content['kind']}-{meta.get('namespace', '')}-{meta['name']}"
        fresh = self.folder.parent / f"{name}.new"
        fresh.write_bytes(msgspec.json.encode(content))
        fresh.rename(self.folder / f"{name}.json")


class Listeners:
    """At the addresses of endpoints that are checked, in the pods' namespace."""

    def __init__(self, namespace: int) -> None:
        self._namespace = namespace
        self._open: dict[str, socket.socket] = {}

    def open(self, address: str) -> None:
        with entered(self._namespace):
            self._open[address] = socket.create_server((address, PORT), backlog=512)

    def close(self, address: str) -> None:
        self._open.pop(address).close()

    def end(self) -> None:
        for each in self._open.values():
            each.close()


@contextmanager
def network() -> Iterator[tuple[int, int]]:
    """Descriptors of a node, and of the namespace that has all pods' addresses."""
    made = Network(
        f"r{secrets.token_hex(3)}",
        (
            Host(
                "node",
                (Address("eth0", "192.168.0.2/24"),),
                (Route("10.0.0.0/8", "eth0", via="192.168.0.3"),),
                FORWARDING_SYSCTLS,
            ),
            Host(
                "pods",
                (Address("eth0", "192.168.0.3/24"),),
                (Route("10.0.0.0/8", "lo", kind=RouteKind.LOCAL),),
                BASE_SYSCTLS,
            ),
        ),
        (Link(End("node", "eth0"), End("pods", "eth0")),),
    )
    with wired(made) as builder:
        yield builder.fd("node"), builder.fd("pods")


# --- the daemon --------------------------------------------------------------------------------


class Daemon:
    """``kproxy run`` in a node's namespace."""

    def __init__(self, mode: str, folder: Path, manifests: Path, node: int) -> None:
        self.state = folder / "state"
        self._mode = mode
        self._node = node
        self._log = folder / "log"
        name, *flags = MODES[mode]
        argv = [sys.executable, "-m", "kproxy", "run", "-f", str(manifests), "--proxy-mode", name]
        argv += [*flags, "--state-dir", str(self.state), "--hostname-override", workload.NODE]
        argv += ["--cluster-cidr", "10.0.0.0/8"]
        environment = {
            **os.environ,
            "KPROXY_RECORDS": str(folder / "records"),
            "XTABLES_LOCKFILE": str(folder / "xtables.lock"),
        }
        with self._log.open("wb") as log, entered(node):
            self._process = subprocess.Popen(
                argv, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stderr=log
            )

    def settle(self, cluster: Cluster) -> None:
        """Until everything is in force: each file, and the verdict on each checked endpoint.
        CheckFailed: it takes too long, or the daemon has ended."""
        deadline = time.monotonic() + _PATIENCE
        while lacking := self._lacking(cluster):
            if time.monotonic() > deadline:
                raise CheckFailed(f"after {_PATIENCE:g} s {lacking}")
            time.sleep(_LOOK)

    def _lacking(self, cluster: Cluster) -> str:
        """What is not in force, "" when all is."""
        if self._process.poll() is not None:
            raise CheckFailed(f"the daemon has ended: {self._log.read_text()[-2000:]}")
        known = status.read(self.state)
        if known is None:
            return "there is no status"
        files = list(cluster.folder.iterdir())
        if not status.in_force(self.state, files):
            some = [each.name for each in files if not status.in_force(self.state, [each])][:3]
            return f"not in force: {some} and perhaps others; {known.last_error}"
        down = {
            each.address
            for port in known.health
            for each in port.endpoints
            if each.state is State.DOWN
        }
        differ = down ^ {f"{address}:{PORT}" for address in cluster.closed}
        return f"verdicts differ: {sorted(differ)}, {known.last_error}" if differ else ""

    def sample(self, at: float) -> Sample:
        known, pids = status.read(self.state), (self._process.pid,)
        assert known is not None
        return Sample(
            round(at, 2),
            usage.memory(pids).pss,
            usage.descriptors(pids),
            known.syncs,
            known.failures,
        )

    def held(self) -> Mapping[str, list[str]]:
        """What is in force, so that two can be compared: rules of the kernel, endpoints that the
        data path counts for, and what the status says."""
        known = status.read(self.state)
        assert known is not None
        found = {
            "status": [
                *(
                    f"{each.family} {each.service_ports} {each.endpoints}"
                    for each in known.families
                ),
                *(f"{port.name} {port.family} {port.up}/{port.of}" for port in known.health),
            ]
        }
        with entered(self._node):
            if self._mode.startswith("iptables"):
                variant = self._mode.removeprefix("iptables-")
                for tool in (f"iptables-{variant}-save", f"ip6tables-{variant}-save"):
                    found[tool] = _rules(command.run([tool]).stdout)
            else:
                found["endpoints"] = _endpoints()
        return found

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()


def _rules(saved: bytes) -> list[str]:
    """Of a save, without comments and counters; chains stand in any order, rules in theirs."""
    lines: dict[str, list[str]] = {}
    table = ""
    for line in saved.decode().splitlines():
        if line.startswith("*"):
            table = line
        elif line.startswith(":"):
            lines.setdefault(f"{table} {line.split()[0][1:]}", [])
        elif line.startswith("-A"):
            lines.setdefault(f"{table} {line.split()[1]}", []).append(line)
    return [line for chain in sorted(lines) for line in (chain, *lines[chain])]


#: A sample of the metrics that names an endpoint, and what it says without its value.
_ENDPOINT = re.compile(r"^(kproxy_[a-z_]+_total\{[^}]*endpoint=[^}]*\})", re.MULTILINE)


def _endpoints() -> list[str]:
    """Endpoints that the data path has counters for, by the metrics."""
    with urllib.request.urlopen("http://127.0.0.1:10249/metrics", timeout=30) as said:
        return sorted(set(_ENDPOINT.findall(said.read().decode())))


# --- the measurement ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", HERE)
def bench_churn(mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Changes all the time: state as from a fresh start, memory flat."""
    raise_open_files()
    (tmp_path / "manifests").mkdir()
    cluster = Cluster(tmp_path / "manifests")
    with ExitStack() as stack:
        listeners, daemon = _up(mode, cluster, stack)
        samples = _churn(cluster, listeners, daemon)
        daemon.settle(cluster)
        held = daemon.held()
        _, fresh = _up(mode, cluster, stack)
        wanted = fresh.held()
    report.save(
        f"churn-{mode}",
        {"fingerprint": report.fingerprint(), "changes": cluster.changes, "samples": samples},
    )
    with capsys.disabled():
        sys.stdout.write("\n".join(["", *_table(mode, cluster, samples, held), ""]))
        sys.stdout.flush()
    for part, lines in wanted.items():
        assert lines
        assert held[part] == lines, part
    assert samples[-1].failures == 0
    if SECONDS >= WARM:
        _assert_flat(samples)


def _assert_flat(samples: list[Sample]) -> None:
    tenth = len(samples) // 10
    early, late = samples[tenth : 2 * tenth], samples[-tenth:]
    assert _middle(late, lambda one: one.pss) <= (1 + GROWTH) * _middle(early, lambda one: one.pss)
    assert (
        _middle(late, lambda one: one.descriptors)
        <= _middle(early, lambda one: one.descriptors) + DESCRIPTORS
    )


def _up(mode: str, cluster: Cluster, stack: ExitStack) -> tuple[Listeners, Daemon]:
    """A daemon on the cluster as it is now, in a network of its own, with all in force."""
    node, pods = stack.enter_context(network())
    listeners = Listeners(pods)
    stack.callback(listeners.end)
    for address in cluster.checked:
        if address not in cluster.closed:
            listeners.open(address)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kproxy-churn-")))
    daemon = Daemon(mode, folder, cluster.folder, node)
    stack.callback(daemon.end)
    daemon.settle(cluster)
    return listeners, daemon


def _churn(cluster: Cluster, listeners: Listeners, daemon: Daemon) -> list[Sample]:
    begun, made = time.monotonic(), 0
    samples: list[Sample] = []
    while (now := time.monotonic() - begun) < SECONDS:
        if now >= len(samples):
            samples.append(daemon.sample(now))
        due = made / RATE
        if now < due:
            time.sleep(due - now)
            continue
        cluster.change(listeners)
        made += 1
    return samples


def _middle(samples: list[Sample], of: Callable[[Sample], int]) -> float:
    return median(map(of, samples))


def _table(
    mode: str, cluster: Cluster, samples: list[Sample], held: Mapping[str, list[str]]
) -> list[str]:
    parts = ", ".join(f"{part} {len(lines):,} lines" for part, lines in held.items())
    changes = " and ".join(f"{count} of {what}" for what, count in cluster.changes.items())
    syncs = samples[-1].syncs - samples[0].syncs
    lines = [
        f"{mode}: {SECONDS:g} s, {SERVICES} services, changes: {changes}; {syncs} syncs",
        f"  compared: {parts}",
        "  seconds   memory, MB   descriptors",
    ]
    lines += [
        f"  {sample.at:7.0f}   {sample.pss / 1e6:10.2f}   {sample.descriptors:11}"
        for sample in samples[:: max(1, len(samples) // 10)]
    ]
    return lines
