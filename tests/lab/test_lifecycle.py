"""Labs on the kernel: up, changed, down; and what a crash, a stranger or a dead daemon leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kproxy import doctor, status
from kproxy.backends import registry
from kproxy.core.objects import Family, Protocol
from kproxy.errors import LabError, MachineError, UsageError
from kproxy.kernel import netns
from kproxy.lab import catalogue, daemons, lifecycle, state, wiring
from kproxy.lab.apply import Builder
from kproxy.lab.lifecycle import Made
from kproxy.lab.model import LabState
from kproxy.lab.network import End, Host, Link, Network
from kproxy.lab.plan import plan
from kproxy.lab.survey import survey
from kproxy.lab.topology import Topology
from kproxy.lab.topology_file import parse
from kproxy.lab.traffic import Outcome, Probe, Reach, probe_all
from kproxy.lab.undo import Process, UndoLog, start_time

pytestmark = pytest.mark.kernel

LAB = "flife"


@pytest.fixture(scope="module")
def netem() -> bool:
    """Whether this kernel can delay packets, as doctor finds it by trying."""
    return next(found.ok for found in doctor.examine().features if found.name == "netem")


KPROXY = [sys.executable, "-m", "kproxy"]


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """No lab of these tests before or after; what is there came from an interrupted run."""
    lifecycle.down(LAB)
    yield
    lifecycle.down(LAB)
    state.forget_allocations(LAB)


def up(topology: Topology | str = "standard", mode: str = "iptables-nft", **more: object) -> Made:
    wanted = catalogue.load(topology) if isinstance(topology, str) else topology
    return lifecycle.up(LAB, wanted, lifecycle.mode_of(mode), **more)  # type: ignore[arg-type]


def namespaces() -> set[str]:
    return {name for name in os.listdir(netns.RUN_DIR) if name.startswith(f"kp-{LAB}-")}


def service(name: str) -> dict[str, dict[str, list[str]]]:
    return next(obj for obj in lifecycle.objects_of(LAB) if obj["metadata"]["name"] == name)


def ask(lab: LabState, host: str, to: str, port: int, *, times: int = 1) -> list[Outcome]:
    fd = netns.open_fd(lab.network.namespace(host))
    try:
        return probe_all([Probe(to, port, Protocol.TCP, namespace=fd, timeout=20.0)] * times)
    finally:
        os.close(fd)


@pytest.mark.parametrize("mode", ["iptables-legacy", "iptables-nft"])
def test_up_carries_traffic_and_down_leaves_nothing(mode: str) -> None:
    """After up every address answers through the service; after down nothing of it is there."""
    lab = up(mode=mode).lab
    assert namespaces() == {f"kp-{LAB}-{host.name}" for host in lab.network.hosts}
    for address in service("web")["spec"]["clusterIPs"]:
        for host in ("web-0", "echo-1", "node2"):
            (outcome,) = ask(lab, host, address, 80)
            assert outcome.endpoint in ("web-0", "web-1"), outcome
    processes = UndoLog(LAB).read().processes
    assert len(processes) == 3
    assert lifecycle.down(LAB)
    assert namespaces() == set()
    assert not any(process.alive() for process in processes)
    assert not state.lab_dir(LAB).exists()
    assert not lifecycle.down(LAB)


def test_up_again_is_no_work_and_another_one_is_refused() -> None:
    """The same lab is left alone, with its changes; a different one under that name is not made."""
    first = up()
    before = UndoLog(LAB).read()
    again = up()
    assert again.edit is None
    assert again.lab == first.lab
    assert UndoLog(LAB).read() == before
    with pytest.raises(LabError, match="another topology"):
        up("single")
    with pytest.raises(LabError, match="another variant"):
        up(mode="iptables-legacy")


def test_allocations_outlive_the_lab() -> None:
    """Cluster IPs and node ports are the same after down and up."""
    up()
    before = service("echo")["spec"]
    lifecycle.down(LAB)
    up()
    assert service("echo")["spec"] == before


def test_labs_live_side_by_side() -> None:
    """Two labs have equal addresses and never meet."""
    other = f"{LAB}-two"
    lifecycle.down(other)
    try:
        one = up("single").lab
        two = lifecycle.up(other, catalogue.load("single"), registry.parse("iptables-nft")).lab
        assert one.pods == two.pods
        lifecycle.down(other)
        (outcome,) = ask(one, "client", "10.244.1.2", 8080)
        assert outcome.reach is Reach.REACHED
    finally:
        lifecycle.down(other)
        state.forget_allocations(other)


def test_change_adds_and_takes_away_pods_while_the_rest_goes_on() -> None:
    """New pods answer when change returns; publish puts them in the rules; gone ones are gone."""
    old = up().lab
    with state.lock(LAB):
        loads = tuple(msgspec.structs.replace(load, replicas=3) for load in old.workloads)
        wanted = wiring.place(msgspec.structs.replace(old, workloads=loads))
        wider = lifecycle.change(old, wanted)
        lifecycle.publish(wider)
    assert state.load(LAB) == wider
    to = service("web")["spec"]["clusterIPs"][0]
    assert {o.endpoint for o in ask(wider, "node1", to, 80, times=60)} == {
        "web-0",
        "web-1",
        "web-2",
    }
    with state.lock(LAB):
        loads = tuple(msgspec.structs.replace(load, replicas=0) for load in wider.workloads)
        empty = wiring.place(msgspec.structs.replace(wider, workloads=loads))
        empty = lifecycle.change(wider, empty)
        lifecycle.publish(empty)
    assert namespaces() == {f"kp-{LAB}-{name}" for name in ("underlay", "node1", "node2", "client")}
    assert [o.reach for o in ask(empty, "node1", to, 80)] == [Reach.REFUSED]


def half_made() -> Process:
    """What a lab leaves whose maker was killed: some namespaces, a process, no state."""
    log = UndoLog(LAB)
    log.begin()
    hosts = (Host("node1"), Host("node2"))
    network = Network(LAB, hosts, (Link(End("node1", "eth0"), End("node2", "eth0")),))
    with Builder(LAB, on_namespace=log.namespace) as builder:
        builder.apply(plan(None, network))
    log.namespace(f"kp-{LAB}-recorded-but-never-made")
    return daemons.start_responder(LAB)


def test_down_cleans_a_half_made_lab() -> None:
    """The undo record is enough."""
    process = half_made()
    assert survey([LAB])[0].hosts == ()
    assert lifecycle.down(LAB)
    assert namespaces() == set()
    assert not process.alive()


def test_up_cleans_a_half_made_lab_first_and_says_so() -> None:
    """A crashed up is followed by a good one."""
    process = half_made()
    said: list[str] = []
    up(say=said.append)
    assert any("half made" in line for line in said)
    assert not process.alive()
    assert {host.state for host in survey([LAB])[0].hosts} == {"synced", "up", "ready"}


def test_a_killed_up_is_cleaned_by_the_next() -> None:
    """SIGKILL at the moment when the first daemon is on record."""
    maker = subprocess.Popen(
        [*KPROXY, "lab", "up", "--name", LAB], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not UndoLog(LAB).read().processes:
        assert maker.poll() is None
    maker.kill()
    maker.wait()
    assert state.list_labs().count(LAB) == 1
    lab = up().lab
    assert namespaces() == {f"kp-{LAB}-{host.name}" for host in lab.network.hosts}


def test_ctrl_c_takes_down_what_is_there() -> None:
    """SIGINT while namespaces are being made: exit 130 and nothing left."""
    maker = subprocess.Popen(
        [*KPROXY, "lab", "up", "--name", LAB], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while not UndoLog(LAB).read().namespaces:
        assert maker.poll() is None
    maker.send_signal(signal.SIGINT)
    _, said = maker.communicate()
    assert maker.returncode == 130, said
    assert namespaces() == set()
    assert LAB not in state.list_labs()


def test_a_foreign_namespace_is_an_error_and_stays() -> None:
    """Only recorded names are removed."""
    stranger = f"kp-{LAB}-node2"
    netns.create(stranger)
    try:
        with pytest.raises(LabError, match="not of this lab"):
            up()
        assert namespaces() == {stranger}
        assert not lifecycle.down(LAB)
        assert netns.exists(stranger)
    finally:
        netns.remove(stranger)


def test_a_recycled_pid_is_not_killed() -> None:
    """A record with this very process's pid but another start time ends nobody."""
    log = UndoLog(LAB)
    log.begin()
    started = start_time(os.getpid())
    assert started is not None
    log.process(Process(os.getpid(), started - 1, daemons.ROLE_PROXY, "node1"))
    assert lifecycle.down(LAB)


def test_a_dead_daemon_is_seen_and_mended() -> None:
    """publish names the log of a node whose kproxy has ended; up starts it again."""
    lab = up().lab
    proxy = daemons.alive(LAB, daemons.ROLE_PROXY)["node1"]
    daemons.stop(LAB, [proxy])
    assert {host.name: host.state for host in survey([LAB])[0].hosts}["node1"] == "down"
    with state.lock(LAB), pytest.raises(LabError, match="node1 has ended") as caught:
        lifecycle.publish(lab)
    assert caught.value.where == str(daemons.proxy_log(LAB, "node1"))
    said: list[str] = []
    up(say=said.append)
    assert said == ["kproxy had ended on node1: starting it again"]
    assert {host.name: host.state for host in survey([LAB])[0].hosts}["node1"] == "synced"


def test_a_dead_responder_is_seen_and_mended() -> None:
    """Pods are shown as down while nothing answers for them."""
    lab = up("single").lab
    daemons.stop(LAB, [daemons.alive(LAB, daemons.ROLE_PODS)[""]])
    assert {h.state for h in survey([LAB])[0].hosts if h.kind == "pod"} == {"down"}
    assert [o.reach for o in ask(lab, "client", "10.244.1.2", 8080)] == [Reach.REFUSED]
    up("single")
    assert [o.reach for o in ask(lab, "client", "10.244.1.2", 8080)] == [Reach.REACHED]


def test_a_daemon_that_cannot_start_ends_up_with_its_words() -> None:
    """The lab is taken down and the error carries the daemon's last line."""
    topology = parse("name: t\nnodes: [{name: node1}]", "t")
    blocked = state.host_dir(LAB, "node1") / "state"
    state.private_dir(blocked)
    blocked.chmod(0o777)
    with pytest.raises(LabError, match=r"kproxy on node1 has ended: .*may be written by others"):
        up(topology)
    assert namespaces() == set()
    assert LAB not in state.list_labs()


def test_a_bad_object_is_refused_and_stops_no_other() -> None:
    """up takes what is good and tells of the rest."""
    text = """
name: t
nodes: [{name: node1}]
objects:
- {kind: Service, metadata: {name: bad}, spec: {ports: [{port: 0}]}}
- {kind: Service, metadata: {name: good}, spec: {selector: {a: b}, ports: [{port: 80}]}}
"""
    made = up(parse(text, "t"))
    assert made.edit is not None
    assert {refusal.key for refusal in made.edit.refusals} == {"default/bad"}
    names = [o["metadata"]["name"] for o in lifecycle.objects_of(LAB) if o["kind"] == "Service"]
    assert names == ["good"]


@pytest.mark.parametrize("family", list(Family))
def test_a_single_stack_lab_works(family: Family) -> None:
    """A lab of one family serves it and has no address of the other."""
    topology = msgspec.structs.replace(catalogue.load("single"), families=(family,))
    lab = up(topology).lab
    (address,) = service("web")["spec"]["clusterIPs"]
    (outcome,) = ask(lab, "node1", address, 80)
    assert outcome.reach is Reach.REACHED


def test_a_shape_that_this_kernel_lacks_is_found_before_anything_is_built(netem: bool) -> None:
    """Delay works end to end, or is a MachineError that leaves no namespace."""
    text = "name: t\nnodes: [{name: node1, link: {delay: 1ms}}]\nclients: [{name: client}]"
    topology = parse(text, "t")
    if not netem:
        with pytest.raises(MachineError, match=r"node1:eth0.*netem"):
            up(topology)
        assert namespaces() == set()
        return
    lab = up(topology).lab
    (outcome,) = ask(lab, "client", "192.168.100.11", 9)
    assert outcome.reach is Reach.REFUSED
    assert outcome.seconds >= 0.002


@pytest.mark.parametrize("name", ["", "Lab", "a_b", "../x", "-a", "x" * 25])
def test_names_that_are_none(name: str) -> None:
    """A lab's name becomes part of paths and namespaces."""
    with pytest.raises(UsageError, match="--name"):
        lifecycle.up(name, catalogue.load("single"), registry.parse("iptables-nft"))


def test_the_status_of_an_earlier_daemon_counts_for_nothing(tmp_path: Path) -> None:
    """A status file says in force, but its pid is not the daemon that runs."""
    lab = up("single").lab
    files = [lifecycle.cluster_file(LAB)]
    directory = daemons.proxy_state_dir(LAB, "node1")
    assert status.in_force(directory, files)
    daemons.stop(LAB, daemons.alive(LAB, daemons.ROLE_PROXY).values())
    assert status.in_force(directory, files)
    with state.lock(LAB), daemons.Watch(lab) as watch, pytest.raises(LabError, match="ended"):
        watch.until_in_force(files)


def test_exec_passes_status_and_knows_names() -> None:
    """The command's exit status is ours; the lab's names are in its /etc/hosts, not in ours."""
    up("single")
    before = Path("/etc/hosts").read_bytes()

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*KPROXY, "lab", "exec", "--name", LAB, *argv],
            capture_output=True,
            text=True,
            check=False,
        )

    assert run("node1", "sh", "-c", "exit 7").returncode == 7
    assert run("web-0", "getent", "ahostsv4", "web").stdout.startswith("10.96.")
    assert run("client", "getent", "ahostsv6", "node1").stdout.startswith("fd00:192:168:100::11")
    assert run("node1", "ls", "/sys/class/net").stdout.split()[:2] == ["eth0", "lo"]
    assert "XTABLES_LOCKFILE" in run("node1", "env").stdout
    missing = run("web-7", "true")
    assert missing.returncode == 1
    assert "close: web-" in missing.stderr
    assert run("node1", "no-such-program").returncode == 2
    assert Path("/etc/hosts").read_bytes() == before
