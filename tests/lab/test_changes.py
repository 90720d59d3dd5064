"""Applying, deleting, scaling and rolling: on values, and on a lab while traffic flows."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

import msgspec
import pytest

from kproxy.backends.registry import Choice
from kproxy.errors import LabError, UsageError
from kproxy.kernel import netns
from kproxy.lab import catalogue, changes, edits, lifecycle, manifests, state, wiring
from kproxy.lab.controllers import fill
from kproxy.lab.edits import Edit
from kproxy.lab.manifests import Raw
from kproxy.lab.network import Network
from kproxy.lab.state import Allocations, LabState
from kproxy.lab.traffic import Outcome, Probe, Reach, probe_all

LAB = "fchange"
NOW = "2026-01-02T03:04:05Z"


def standard() -> LabState:
    """The standard lab as a value; nothing of it is built."""
    topology = catalogue.load("standard")
    bare = LabState(LAB, topology, "iptables", "nft", Network(LAB), workloads=topology.workloads)
    return wiring.place(bare)


def raws(text: str) -> tuple[Raw, ...]:
    return manifests.read_text(text.encode(), "test.yaml").objects


def take(text: str, lab: LabState | None = None) -> Edit:
    return edits.take(lab or standard(), raws(text), Allocations(), now=NOW)


SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: %s}
spec: {selector: {app: web}, ports: [{port: %s}]}
---
"""

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: api}
spec:
  replicas: %s
  selector: {matchLabels: {app: api}}
  template:
    metadata: {labels: {app: api}}
    spec: {containers: [{name: c, ports: [{name: web, containerPort: %s}]}]}
---
"""


# --- values -----------------------------------------------------------------------------------


def test_take_says_what_became_of_each_object() -> None:
    """Created, unchanged, configured: as kubectl tells them apart."""
    first = take(SERVICE % ("a", 80) + SERVICE % ("b", 80))
    assert [str(outcome) for outcome in first.outcomes] == [
        "service/a created",
        "service/b created",
    ]
    again = take(SERVICE % ("a", 80) + SERVICE % ("b", 81), first.state)
    assert [str(outcome) for outcome in again.outcomes] == [
        "service/a unchanged",
        "service/b configured",
    ]
    stamps = {obj["metadata"]["creationTimestamp"] for obj in again.state.manifests}
    assert stamps == {NOW}


def test_refused_object_leaves_its_last_good_version() -> None:
    """A bad change changes nothing; the good ones beside it are taken."""
    first = take(SERVICE % ("a", 80))
    second = take(SERVICE % ("a", 0) + SERVICE % ("b", 80), first.state)
    assert [str(outcome) for outcome in second.outcomes] == ["service/b created"]
    (refusal,) = second.refusals
    assert (refusal.file, refusal.line, refusal.field) == ("test.yaml", 2, "spec.ports[0].port")
    kept = next(obj for obj in second.state.manifests if obj["metadata"]["name"] == "a")
    assert kept["spec"]["ports"] == [{"port": 80}]


@pytest.mark.parametrize(
    "meta", ["{name: x, namespace: [a]}", "{name: [1]}", "5", "{name: {a: b}}"]
)
def test_metadata_of_the_wrong_type_is_refused_alone(meta: str) -> None:
    """It can be no key of anything; the object beside it is taken."""
    done = take(f"kind: Service\nmetadata: {meta}\n---" + SERVICE % ("good", 80))
    assert [str(outcome) for outcome in done.outcomes] == ["service/good created"]
    assert {refusal.line for refusal in done.refusals} == {1}


def test_skipped_kinds_and_broken_documents() -> None:
    """Another kind is a notice, a broken document a refusal with its line."""
    edit = take("kind: ConfigMap\nmetadata: {name: x}\n---\n" + SERVICE % ("a", 80))
    assert len(edit.outcomes) == 1
    assert "ConfigMap" in edit.notices[0]
    read = manifests.read_text((SERVICE % ("a", 80) + "x: [\n").encode(), "test.yaml")
    assert len(read.objects) == 1
    assert [(refusal.file, refusal.line) for refusal in read.refusals] == [("test.yaml", 8)]


def test_lists_and_folders(tmp_path: Any) -> None:
    """Lists are taken apart; a folder is its YAML and JSON files."""
    (tmp_path / "a.yaml").write_text("kind: List\nitems:\n- {kind: Service}\n- {kind: Pod}\n")
    (tmp_path / "b.json").write_text('{"kind": "Endpoints"}')
    (tmp_path / "c.txt").write_text("kind: Secret")
    read = manifests.read_paths([str(tmp_path)])
    assert [raw.obj["kind"] for raw in read.objects] == ["Service", "Pod", "Endpoints"]
    with pytest.raises(UsageError, match=r"nowhere"):
        manifests.read_paths([str(tmp_path / "nowhere")])


def test_deployment_becomes_a_workload() -> None:
    """Name, replicas, labels and ports count; endpoints of the same file may name its pods."""
    by_name = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: mine, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
endpoints: [{addresses: [api-1]}]
"""
    edit = take(DEPLOYMENT % (2, 9000) + by_name)
    assert [str(outcome) for outcome in edit.outcomes] == [
        "workload/api created",
        "endpointslice/mine created",
    ]
    load = edit.state.workloads[-1]
    assert (load.name, load.replicas, load.labels) == ("api", 2, (("app", "api"),))
    assert [(port.name, port.port) for port in load.ports] == [("web", 9000)]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("replicas: 2", "replicas: -1"), "spec.replicas"),
        (("labels: {app: api}", "labels: {app: other}"), "spec.template.metadata.labels"),
        (
            ("containerPort: 9000", "containerPort: 0"),
            "spec.template.spec.containers[0].ports[0].containerPort",
        ),
        (("name: api}", "name: Api}"), "metadata.name"),
        (
            ("spec: {containers", "spec: {nodeSelector: {kubernetes.io/hostname: x}, containers"),
            "spec.template.spec.nodeSelector.kubernetes.io/hostname",
        ),
    ],
)
def test_bad_deployment_is_refused(change: tuple[str, str], field: str) -> None:
    """A Deployment that no lab can run is refused by its field."""
    edit = take((DEPLOYMENT % (2, 9000)).replace(*change))
    assert edit.outcomes == ()
    assert [refusal.field for refusal in edit.refusals] == [field]
    assert edit.state.workloads == standard().workloads


def test_endpoint_of_a_pod_that_left_is_left_out_alone() -> None:
    """The other endpoints of the slice stay, when a pod that one of them names is gone."""
    text = """
kind: EndpointSlice
metadata: {name: mine}
addressType: IPv4
endpoints: [{addresses: [web-0]}, {addresses: [web-1]}]
"""
    lab = take(text).state
    lab = msgspec.structs.replace(lab, pods=tuple(p for p in lab.pods if p.name != "web-0"))
    done = fill(lab, Allocations())
    (obj,) = done.of("EndpointSlice")
    assert [entry["targetRef"]["name"] for entry in obj["endpoints"]] == ["web-1"]
    assert [refusal.whole for refusal in done.refusals] == [False]


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["svc", "a", "b"], [("Service", "ns", "a"), ("Service", "ns", "b")]),
        (["svc/a", "pod/web-0"], [("Service", "ns", "a"), ("Pod", "ns", "web-0")]),
        (["deploy/web"], [("Deployment", "ns", "web")]),
    ],
)
def test_names_as_kubectl_reads_them(words: list[str], keys: list[edits.Key]) -> None:
    """KIND NAME… and KIND/NAME… name the same."""
    assert list(edits.parse_names(words, "ns")) == keys


@pytest.mark.parametrize("words", [["svc"], ["svc/a", "b"], ["secret", "x"], ["node", "node1"]])
def test_names_that_name_nothing(words: list[str]) -> None:
    """What cannot be told apart or deleted is a usage error."""
    with pytest.raises(UsageError):
        edits.parse_names(words, "ns")


def test_drop() -> None:
    """Deleted is deleted; what is not there is a refusal, or nothing if so wished."""
    lab = take(SERVICE % ("a", 80)).state
    keys = [("Service", "default", "a"), ("Service", "default", "b")]
    edit = edits.drop(lab, keys)
    assert [str(outcome) for outcome in edit.outcomes] == ["service/a deleted"]
    assert edit.gone == ("default/a",)
    assert [refusal.key for refusal in edit.refusals] == ["default/b"]
    assert edit.state.manifests == ()
    assert edits.drop(lab, keys, ignore_missing=True).refusals == ()


def test_scaled() -> None:
    """A workload is found by its name; others are named when it is not."""
    lab, outcome = edits.scaled(standard(), "default/web", 0)
    assert str(outcome) == "workload/web scaled to 0"
    assert [load.replicas for load in lab.workloads if load.name == "web"] == [0]
    with pytest.raises(LabError, match="echo"):
        edits.scaled(standard(), "nope", 1)


# --- a lab ------------------------------------------------------------------------------------


@pytest.fixture
def lab() -> Iterator[LabState]:
    """The standard lab, up."""
    lifecycle.down(LAB)
    yield lifecycle.up(LAB, catalogue.load("standard"), lifecycle.mode_of("iptables")).lab
    lifecycle.down(LAB)
    state.forget_allocations(LAB)


class Traffic:
    """Connections to one service, one batch after the other, while the block runs."""

    def __init__(self, lab: LabState, name: str) -> None:
        done = fill(lab, state.load_allocations(LAB))
        service = next(o for o in done.of("Service") if o["metadata"]["name"] == name)
        self._addresses = service["spec"]["clusterIPs"]
        self._port = service["spec"]["ports"][0]["port"]
        self._senders = [*lab.nodes, "echo-0"]
        self._lab = lab
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.outcomes: list[Outcome] = []

    def _run(self) -> None:
        fds = [netns.open_fd(self._lab.network.namespace(name)) for name in self._senders]
        probes = [
            Probe(to, self._port, namespace=fd, timeout=PATIENCE)
            for fd in fds
            for to in self._addresses
        ]
        while not self._over.is_set():
            self.outcomes += probe_all(probes)
        for fd in fds:
            os.close(fd)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def failed(self) -> list[str]:
        return [str(o) for o in self.outcomes if o.reach is not Reach.REACHED]

    @property
    def answered(self) -> set[str]:
        return {o.endpoint for o in self.outcomes}


#: Seconds for a connection that has begun to be answered: on a busy machine each of those who take
#: part in it waits for its turn.
GRACE = 2.0

#: Seconds until a connection counts as lost.
PATIENCE = 20.0


def _roll() -> None:
    assert changes.roll(LAB, "web", grace=GRACE) == 2


def _scale() -> None:
    for number in (5, 1, 3):
        changes.scale(LAB, [("web", number)], grace=GRACE)


def _delete_pod() -> None:
    changes.delete(LAB, [("Pod", "default", "web-0")], grace=GRACE)


def _apply() -> None:
    for number in (80, 81):
        changes.apply(LAB, raws(SERVICE % ("another", number)), grace=GRACE)
    changes.delete(LAB, [("Service", "default", "another")], grace=GRACE)


@pytest.mark.kernel
@pytest.mark.parametrize("change", [_roll, _scale, _delete_pod, _apply])
def test_no_connection_is_lost(lab: LabState, change: Callable[[], None]) -> None:
    """A change while traffic flows costs no connection, from pods and nodes, in both families."""
    with Traffic(lab, "web") as traffic:
        change()
    assert traffic.failed == []
    assert len(traffic.outcomes) > 0
    now = state.load(LAB)
    web = [pod.name for pod in now.pods if pod.workload == "web"]
    assert len(web) == next(load.replicas for load in now.workloads if load.name == "web")
    # The last thing that was built answers: all of them, and nobody else.
    with Traffic(now, "web") as after:
        while not set(web) <= after.answered:
            assert after._thread.is_alive()
    assert after.answered == set(web)
    assert after.failed == []


@pytest.mark.kernel
def test_rolled_pods_have_new_names_and_addresses(lab: LabState) -> None:
    """Nothing of an old pod is used again at once."""
    before = {pod.name: pod for pod in lab.pods if pod.workload == "web"}
    said: list[changes.Roll] = []
    changes.roll(LAB, "web", say=said.append)
    after = {pod.name: pod for pod in state.load(LAB).pods if pod.workload == "web"}
    assert [step.old for step in said] == list(before)
    assert {step.new for step in said} == set(after)
    old, new = ({a for pod in pods.values() for a in pod.addresses} for pods in (before, after))
    assert not old & new
    assert [pod.node for pod in before.values()] == [pod.node for pod in after.values()]


@pytest.mark.kernel
def test_scaled_to_nothing_refuses(lab: LabState) -> None:
    """Without pods the service refuses; with one again it answers."""
    changes.scale(LAB, [("web", 0)])
    with Traffic(state.load(LAB), "web") as none:
        while not none.outcomes:
            assert none._thread.is_alive()
    assert {outcome.reach for outcome in none.outcomes} == {Reach.REFUSED}
    changes.scale(LAB, [("web", 1)])
    with Traffic(state.load(LAB), "web") as one:
        while not one.outcomes:
            assert one._thread.is_alive()
    assert one.failed == []


@pytest.mark.kernel
def test_applied_object_is_in_force_when_apply_returns(lab: LabState) -> None:
    """A Service and its workload out of one file answer at once; deleted, they are gone."""
    service = (
        (SERVICE % ("api", 80))
        .replace("app: web", "app: api")
        .replace("port: 80", "port: 80, targetPort: web")
    )
    edit = changes.apply(LAB, raws(DEPLOYMENT % (2, 9000) + service + SERVICE % ("bad", 0)))
    assert [str(outcome) for outcome in edit.outcomes] == [
        "workload/api created",
        "service/api created",
    ]
    assert [refusal.key for refusal in edit.refusals] == ["default/bad"]
    with Traffic(state.load(LAB), "api") as traffic:
        while not {"api-0", "api-1"} <= traffic.answered:
            assert traffic._thread.is_alive()
    assert traffic.failed == []
    changes.apply(LAB, raws(DEPLOYMENT % (2, 9001)))
    ports = {
        port.port for pod in state.load(LAB).pods if pod.workload == "api" for port in pod.ports
    }
    assert ports == {9001}
    changes.delete(LAB, edits.keys_of(raws(DEPLOYMENT % (2, 9000) + service)))
    left = state.load(LAB)
    assert all(pod.workload != "api" for pod in left.pods)
    assert "default/api" not in state.load_allocations(LAB).cluster_ips


def _namespaces() -> set[str]:
    return {name for name in os.listdir(netns.RUN_DIR) if name.startswith(f"kp-{LAB}-")}


@pytest.mark.kernel
@pytest.mark.parametrize("mend", [lambda: changes.scale(LAB, [("web", 4)]), lambda: up_again()])
def test_a_change_that_was_cut_short_is_cleared_by_the_next(
    lab: LabState, mend: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """New pods were built, and then their maker died: nothing of them stands in a later one's way,
    and nothing of them is left."""

    def dies(*ignored: object, **also: object) -> None:
        raise LabError("died")

    with monkeypatch.context() as patched:
        patched.setattr(lifecycle.pods, "tell", dies)
        with pytest.raises(LabError, match="died"):
            changes.scale(LAB, [("web", 3)])
    assert len(_namespaces()) > len(lab.network.hosts)
    mend()
    now = state.load(LAB)
    assert _namespaces() == {now.network.namespace(host.name) for host in now.network.hosts}
    assert all(_answers(now, pod.name) for pod in now.pods)


@pytest.mark.kernel
def test_pods_that_a_cut_short_change_took_away_come_back(
    lab: LabState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their number is the workload's again after ``up``, under new names."""

    def dies(*ignored: object, **also: object) -> None:
        raise LabError("died")

    with monkeypatch.context() as patched:
        patched.setattr(lifecycle, "Builder", dies)
        fewer = msgspec.structs.replace(lab, pods=lab.pods[1:])
        with state.lock(LAB), pytest.raises(LabError, match="died"):
            lifecycle.change(lab, fewer)
    assert state.load(LAB).pod(lab.pods[0].name) is None
    up_again()
    now = state.load(LAB)
    assert len(now.pods) == len(lab.pods)
    assert now.pod(lab.pods[0].name) is None
    assert _namespaces() == {now.network.namespace(host.name) for host in now.network.hosts}


def up_again() -> None:
    """What a person does first when something went wrong."""
    there = state.load(LAB)
    lifecycle.up(LAB, there.topology, Choice(there.mode, there.variant))


def _answers(lab: LabState, name: str) -> bool:
    pod = lab.pod(name)
    assert pod is not None
    fd = netns.open_fd(lab.network.namespace(lab.nodes[0]))
    try:
        asked = Probe(pod.addresses[0], pod.ports[0].port, namespace=fd, timeout=PATIENCE)
        (seen,) = probe_all([asked])
    finally:
        os.close(fd)
    return seen.endpoint == name
