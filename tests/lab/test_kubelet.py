"""Probed pods of a lab: ready when their probe says so, started again when it says that."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
from watchfiles import watch

from kproxy.core.health.values import Checked
from kproxy.core.objects import Protocol
from kproxy.errors import CheckFailed
from kproxy.kernel import netns
from kproxy.lab import changes, conditions, daemons, inflict, lifecycle, state, workloads
from kproxy.lab.faults import parse
from kproxy.lab.kubelet import Kubelet, Watch
from kproxy.lab.model import LabState, Pod
from kproxy.lab.topology_file import parse as parse_topology
from kproxy.lab.traffic import Probe, Reach, probe_all

pytestmark = pytest.mark.kernel

LAB = "fkubelet"

#: A pod that is dead is out for seconds before it is started again: long enough to be seen.
TOPOLOGY = """
name: t
families: [IPv4]
nodes: [{name: node1}, {name: node2}]
workloads:
- name: web
  replicas: 2
  readinessProbe:
    httpGet: {path: /healthz, port: http}
    periodSeconds: 0.2
    failureThreshold: 2
    timeoutSeconds: 2
  livenessProbe: {tcpSocket: {port: 8080}, periodSeconds: 3, failureThreshold: 2, timeoutSeconds: 2}
- name: never
  replicas: 0
  readinessProbe: {exec: {command: ['false']}, periodSeconds: 0.2}
objects:
- kind: Service
  metadata: {name: web}
  spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
"""

#: Seconds for what takes a second or so on an idle machine.
_PATIENCE = 60.0


def up(said: list[str] | None = None) -> LabState:
    topology = parse_topology(TOPOLOGY, "t")
    say = (said if said is not None else []).append
    return lifecycle.up(LAB, topology, lifecycle.mode_of("iptables-nft"), say=say).lab


@pytest.fixture(autouse=True)
def lab() -> Iterator[LabState]:
    lifecycle.down(LAB)
    yield up()
    lifecycle.down(LAB)
    state.forget_allocations(LAB)


def until(reached: Callable[[], bool], what: str) -> None:
    """Looked at whenever a file of the lab has changed, and a few times a second."""
    deadline = time.monotonic() + _PATIENCE
    folder = state.lab_dir(LAB)
    for _ in watch(folder, debounce=50, rust_timeout=200, yield_on_timeout=True):
        if reached():
            return
        assert time.monotonic() < deadline, what


def pod(name: str) -> Pod:
    found = state.load(LAB).pod(name)
    assert found is not None
    return found


def serving() -> set[str]:
    """Names of the pods that the nodes' proxies may send to."""
    return {
        endpoint["targetRef"]["name"]
        for obj in lifecycle.objects_of(LAB)
        if obj["kind"] == "EndpointSlice"
        for endpoint in obj["endpoints"]
        if endpoint["conditions"]["ready"]
    }


def ask(address: str, port: int, timeout: float = 20.0) -> Reach:
    fd = netns.open_fd(f"kp-{LAB}-node1")
    try:
        return probe_all([Probe(address, port, Protocol.TCP, fd, timeout=timeout)])[0].reach
    finally:
        os.close(fd)


def break_(name: str, *texts: str) -> None:
    inflict.inflict(state.load(LAB), [name], [parse(text) for text in texts])


def test_pods_are_ready_when_up_returns() -> None:
    """Their probes have said so, and the nodes' proxies know it."""
    assert serving() == {"web-0", "web-1"}
    assert [(each.ready, each.restarts) for each in state.load(LAB).pods] == [(True, 0)] * 2


@pytest.mark.parametrize("kind", ["kill", "hang"])
def test_a_pod_that_fails_leaves_and_is_started_again(kind: str) -> None:
    """Readiness takes it out; liveness heals it, counts that, and it is back. A hung pod takes
    connections, and so its tcpSocket probe is content: it stays out."""
    break_("web-0", kind)
    until(lambda: serving() == {"web-1"}, "the pod is out")
    if kind == "hang":
        assert pod("web-0").why.startswith("readinessProbe: no answer in 2s")
        assert not pod("web-0").ready
        break_("web-0", "heal")
        until(lambda: serving() == {"web-0", "web-1"}, "the pod is back")
        assert pod("web-0").restarts == 0
        return
    until(lambda: pod("web-0").restarts == 1, "the pod is started again")
    until(lambda: serving() == {"web-0", "web-1"}, "the pod is back")
    assert pod("web-0").faults == ()
    assert ask(pod("web-0").addresses[0], 8080) is Reach.REACHED


def test_a_restart_does_not_heal_what_is_around_the_pod() -> None:
    """It is started again and again, and refuses."""
    break_("web-0", "refuse")
    until(lambda: pod("web-0").restarts >= 2, "the pod is started again, twice")
    assert [str(fault) for fault in pod("web-0").faults] == ["refuse"]
    until(lambda: serving() == {"web-1"}, "the pod is out")


def test_a_roll_waits_for_the_new_pod() -> None:
    """An old pod goes when the new one is ready; one that never gets ready stops the roll, and the
    old one serves on."""
    assert changes.roll(LAB, "web") == 2
    assert serving() == {"web-2", "web-3"}
    with state.lock(LAB):
        now = state.load(LAB)
        never = workloads.find(now, "never")
        web = workloads.find(now, "web")
        broken = msgspec.structs.replace(web, probes=never.probes)
        lab = msgspec.structs.replace(
            now, workloads=tuple(broken if load is web else load for load in now.workloads)
        )
        state.save(lab)
    with pytest.raises(CheckFailed, match=r"web-4: readinessProbe: exit status 1"):
        changes.roll(LAB, "web")
    assert serving() == {"web-2", "web-3"}


def test_who_does_not_get_ready_is_told_of() -> None:
    """Scaled up, they are there and get nothing; all else goes on."""
    with pytest.raises(CheckFailed, match="never-0: readinessProbe: exit status 1"):
        changes.scale(LAB, [("never", 1)])
    assert not pod("never-0").ready
    changes.scale(LAB, [("never", 0), ("web", 3)])
    assert serving() == {"web-0", "web-1", "web-2"}


def test_a_dead_kubelet_is_mended() -> None:
    """What pods were like stays, and is probed again."""
    break_("web-0", "hang")
    until(lambda: serving() == {"web-1"}, "the pod is out")
    daemons.stop(LAB, [daemons.alive(LAB, daemons.ROLE_KUBELET)[""]])
    break_("web-0", "heal")
    said: list[str] = []
    up(said)
    assert said == ["the process that probes the pods had ended: starting it again"]
    until(lambda: serving() == {"web-0", "web-1"}, "the pod is back")


def test_what_was_found_before_a_start_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the wall clock says: results count from when their checks have begun anew."""
    pod_ = msgspec.structs.replace(pod("web-0"), name="told", node="node1")
    assert pod_.probes.readiness is not None
    its = Kubelet(LAB, lambda: None)
    asked: list[Callable[[], None]] = []

    class Checks:
        def change(
            self, added: object = (), removed: object = (), known: object = None,
            begun: Callable[[], None] | None = None,
        ) -> None:  # fmt: skip
            if begun is not None:
                asked.append(begun)

    monkeypatch.setattr(its, "_checker", lambda node: Checks())
    watch_ = Watch(LAB, pod_, "readinessProbe", pod_.probes.readiness)
    its._pods["told"], its._watches["told"] = pod_, [watch_]

    def told(up: bool) -> bool | None:
        its.told("node1", [Checked(watch_.target, up, "found", 5.0)])
        its.act()
        found = conditions.read(state.lab_dir(LAB)).get("told")
        return found.ready if found else None

    its._start(watch_)
    assert told(True) is None
    asked.pop()()
    assert told(True) is True
    its._stop(watch_)
    its._start(watch_)
    stale = asked.pop()
    its._stop(watch_)
    its._start(watch_)
    assert told(False) is True
    stale()
    assert told(False) is True
    asked.pop()()
    assert told(False) is False
    os.close(its.bell)
