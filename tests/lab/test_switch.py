"""``kproxy lab switch``: another mode on nodes while traffic flows."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Self

import pytest

from kproxy import occupancy
from kproxy.backends.fastpath import steer
from kproxy.backends.nftables import rules as nftables_rules
from kproxy.bench.held import Held
from kproxy.errors import LabError, MachineError
from kproxy.kernel import netns
from kproxy.lab import catalogue, changes, daemons, lifecycle, state, switching
from kproxy.lab.manifests import Raw
from kproxy.lab.model import LabState
from tests.lab import recorders
from tests.lab.recorders import Calls, Recorders
from tests.lab.test_lab_commands import kproxy
from tests.lab.test_restart import asked

pytestmark = pytest.mark.kernel

#: Tables of nftables that are a mode's own.
NFT_TABLES = {"nftables": nftables_rules.TABLE, "fastpath": steer.TABLE}

LAB, IPVS_LAB = "fswt", "fswi"
NODE = "node1"

#: The modes of this kernel but ipvs, which it may have or not.
MODES = ("iptables-nft", "iptables-legacy", "userspace", "fastpath", "nftables")
#: Every ordered pair once, each beginning where the last one ended.
WALK = (0, 1, 0, 2, 0, 3, 0, 4, 1, 2, 1, 3, 1, 4, 2, 3, 2, 4, 3, 4, 0)
PAIRS = [(MODES[one], MODES[other]) for one, other in pairwise(WALK)]


@pytest.fixture(scope="module")
def lab() -> Iterator[LabState]:
    yield from up(LAB, MODES[0])


def up(name: str, mode: str) -> Iterator[LabState]:
    """A lab of one node, and its end."""
    lifecycle.down(name)
    made = lifecycle.up(name, catalogue.load("single"), lifecycle.mode_of(mode)).lab
    yield made
    lifecycle.down(name)
    state.forget_allocations(name)


def in_mode(name: str) -> None:
    switching.switch(LAB, lifecycle.mode_of(name))


def namespace(lab: LabState, host: str = NODE) -> str:
    return lab.network.namespace(host)


def run(lab: LabState, *argv: str) -> str:
    with netns.entered(namespace(lab)):
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def traces(lab: LabState, mode: str) -> list[str]:
    """What is there of a mode in the node's namespace, by what only this mode has."""
    found: list[str] = []
    with netns.entered(namespace(lab)):
        for variant in ("nft", "legacy"):
            for tool in ("iptables", "ip6tables"):
                text = run_here(f"{tool}-{variant}-save")
                found += [line for line in text.splitlines() if is_of(line, mode, variant)]
    if mode in NFT_TABLES:
        tables = run(lab, "nft", "list", "tables").splitlines()
        found += [line for line in tables if line.split()[-1] == NFT_TABLES[mode]]
    if mode == "fastpath":
        found += [line for line in run(lab, "ip", "rule").splitlines() if "102" in line]
        links = run(lab, "ip", "-o", "link").splitlines()
        found += [line for line in links if ": kp4" in line or ": kp6" in line]
    return found


def run_here(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def is_of(line: str, mode: str, variant: str) -> bool:
    if not line.startswith(("-A", ":K")):
        return False
    if mode == f"iptables-{variant}":
        return any(name in line for name in ("KUBE-SVC", "KUBE-SERVICES", "KUBE-SEP", "KUBE-PROXY"))
    if mode == "userspace":
        return any(name in line for name in ("KUBE-PORTALS", "KUBE-RELAY", "KUBE-NODEPORT-C"))
    return mode == "fastpath" and "KPROXY-HEALTH" in line


def answered(client: socket.socket) -> str:
    """As :func:`asked`; ConnectionError where there is no answer."""
    try:
        return asked(client)
    except (AssertionError, ValueError) as nothing:
        raise ConnectionError("no answer") from nothing


class Clients:
    """Opens one connection after the other and asks once on each; what failed is kept."""

    def __init__(self, lab: LabState) -> None:
        self._namespace = namespace(lab, "echo-0")
        self._place = (cluster_ip_of(lab.name), 80)
        self._ending = threading.Event()
        self.failures: list[str] = []
        self.count = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        with netns.entered(self._namespace):
            while not self._ending.is_set():
                self.count += 1
                try:
                    with socket.create_connection(self._place, timeout=10) as made:
                        asked(made)
                except (OSError, AssertionError, ValueError) as failed:
                    self.failures.append(repr(failed))


def cluster_ip_of(name: str = LAB, service: str = "web") -> str:
    (found,) = [
        obj["spec"]["clusterIP"]
        for obj in lifecycle.objects_of(name)
        if (obj["kind"], obj["metadata"]["name"]) == ("Service", service)
    ]
    return str(found)


@pytest.fixture(scope="module")
def recorded(lab: LabState) -> Iterator[Recorders]:
    """A service whose pods write down who comes."""
    changes.apply(LAB, [Raw(recorders.SERVICE, "the test")])
    pods = [pod.name for pod in lab.pods if pod.workload.endswith("web")]
    assert len(pods) > 1
    with Recorders(lab, pods) as found:
        yield found


def node_addresses(lab: LabState) -> set[str]:
    links = json.loads(run(lab, "ip", "-j", "-4", "addr"))
    return {each["local"] for link in links for each in link["addr_info"]}


@pytest.mark.parametrize(("old", "new"), PAIRS, ids=[f"{old}-{new}" for old, new in PAIRS])
def test_no_connection_is_lost_and_nothing_is_left(
    lab: LabState, recorded: Recorders, old: str, new: str
) -> None:
    """Established connections answer on, new ones are served throughout, and of the old mode there
    is no trace when the command returns. While the rules of both stand, for as long as is told,
    none is translated twice: each comes to one pod, once, and from the client's own address (from
    the node's where a relay is in between)."""
    in_mode(old)
    assert traces(lab, old)
    client = namespace(lab, "echo-0")
    place = (cluster_ip_of(), 80)
    to_recorders = (cluster_ip_of(service="recorded"), recorders.PORT)
    with (
        Clients(lab) as clients,
        Calls(client, to_recorders) as calls,
        Held(client, place, 4, answered) as held,
    ):
        (done,) = switching.switch(LAB, lifecycle.mode_of(new))
        outcome = held.end()
    assert (done.before, done.now) == (old, new)
    assert done.both is not None
    assert 0 < done.both < done.seconds
    assert calls.failures == {}
    assert len(calls.made) > recorders.CALLERS
    assert {number: len(recorded.visits[number]) for number in calls.made} == dict.fromkeys(
        calls.made, 1
    )
    relayed = node_addresses(lab) if "userspace" in (old, new) else set()
    wrong = {
        number: (own, recorded.visits[number])
        for number, own in calls.made.items()
        if recorded.visits[number][0].peer not in {own, *relayed}
    }
    assert wrong == {}
    assert outcome.survived == outcome.connections
    assert clients.count
    assert clients.failures == []
    assert traces(lab, new)
    assert traces(lab, old) == []
    assert state.load(LAB).mode_of(NODE) == (str(new).partition("-")[0], variant_of(new))


def variant_of(name: str) -> str:
    return lifecycle.mode_of(name).variant


@pytest.fixture(scope="module")
def ipvs_lab() -> Iterator[LabState]:
    yield from up(IPVS_LAB, "ipvs")


def ipvs_traces(lab: LabState) -> list[str]:
    """What only this mode has: virtual servers, its device, its sets."""
    found = [line for line in run(lab, "ipvsadm", "-Sn").splitlines() if line.startswith("-A")]
    found += [line for line in run(lab, "ip", "-o", "link").splitlines() if "kube-ipvs" in line]
    sets = run(lab, "ipset", "list", "-n").splitlines()
    return found + [name for name in sets if "KUBE-" in name]


@pytest.mark.ipvs
@pytest.mark.parametrize("other", ["iptables"])
def test_to_and_from_ipvs(ipvs_lab: LabState, other: str) -> None:
    """As between the others: virtual servers come beside rules and go without a trace, and no
    connection of either kind ends with them."""
    name = str(lifecycle.mode_of(other))
    place = (cluster_ip_of(IPVS_LAB), 80)
    for old, new in (("ipvs", name), (name, "ipvs")):
        with (
            Clients(ipvs_lab) as clients,
            Held(namespace(ipvs_lab, "echo-0"), place, 4, answered) as held,
        ):
            (done,) = switching.switch(IPVS_LAB, lifecycle.mode_of(new))
            outcome = held.end()
        assert (done.before, done.now) == (old, new)
        assert outcome.survived == outcome.connections
        assert clients.count
        log = daemons.proxy_log(IPVS_LAB, NODE).read_text()
        assert clients.failures == [], f"{old} to {new}: {log[-2000:]}"
        assert bool(ipvs_traces(ipvs_lab)) == (new == "ipvs")
        assert state.load(IPVS_LAB).mode_of(NODE)[0] == new.partition("-")[0]


def test_a_mode_that_this_kernel_lacks_stops_nothing(
    lab: LabState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before anything is touched: the daemon is the same process as before."""

    def lacking(self: object) -> None:
        raise MachineError("no engine in this kernel")

    from kproxy.backends.fastpath.apply import FastpathBackend

    monkeypatch.setattr(FastpathBackend, "probe", lacking)
    in_mode(MODES[0])
    before = daemons.alive(LAB, daemons.ROLE_PROXY)
    with pytest.raises(MachineError, match="cannot run fastpath: no engine"):
        in_mode("fastpath")
    assert daemons.alive(LAB, daemons.ROLE_PROXY) == before
    assert state.load(LAB).mode == "iptables"


@pytest.mark.parametrize("old", ["fastpath", "userspace", "iptables-nft"])
def test_one_that_ends_leaves_the_old_mode(
    lab: LabState, old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new daemon that is killed: the old one serves on, alone; connections live. The lab's books
    say so."""
    in_mode(old)
    new = "iptables-legacy"
    before = daemons.alive(LAB, daemons.ROLE_PROXY)[NODE]
    start = daemons.start_successor

    def killed(lab: LabState, node: str) -> daemons.Process:
        started = start(lab, node)
        os.kill(started.pid, signal.SIGKILL)
        return started

    monkeypatch.setattr(daemons, "start_successor", killed)
    place = (cluster_ip_of(), 80)
    with Held(namespace(lab, "echo-0"), place, 4, answered) as held:
        with pytest.raises(LabError, match=f"kproxy on {NODE} has ended"):
            in_mode(new)
        outcome = held.end()
    assert outcome.survived == outcome.connections
    assert daemons.alive(LAB, daemons.ROLE_PROXY) == {NODE: before}
    assert state.load(LAB).mode_of(NODE)[0] == old.partition("-")[0]
    assert traces(lab, new) == []
    assert traces(lab, old)


def taken(lab: LabState, pid: int) -> bool:
    with netns.entered(namespace(lab)):
        here = occupancy.occupant()
    return here is not None and here.pid == pid


def test_the_command(lab: LabState) -> None:
    """It says what it did with each node, and that there is nothing to do the second time."""
    in_mode("iptables-nft")
    done = kproxy("lab", "switch", "--name", LAB, "--mode", "userspace", "--node", NODE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{NODE}: userspace in place of iptables-nft, ")
    assert re.search(r" s; rules of both for \d+\.\d{3} s\n$", done.stdout)
    again = kproxy("lab", "switch", "--name", LAB, "--mode", "userspace")
    assert again.stdout == f"{NODE}: in userspace mode already\n"
    back = kproxy("lab", "switch", "--name", LAB, "--mode", "iptables-nft", "-o", "json")
    (told,) = json.loads(back.stdout)
    assert (told["node"], told["before"], told["now"]) == (NODE, "userspace", "iptables-nft")
    assert 0 < told["both"] < told["seconds"]
    wrong = kproxy("lab", "switch", "--name", LAB, "--mode", "userspace", "--node", "nowhere")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert "no node nowhere" in wrong.stderr


def test_ctrl_c_leaves_one_mode(lab: LabState, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted when the new daemon is on its way: the old one serves, alone."""
    in_mode("iptables-nft")
    before = daemons.alive(LAB, daemons.ROLE_PROXY)[NODE]
    start = daemons.start_successor

    def interrupted(lab: LabState, node: str) -> daemons.Process:
        monkeypatch.setattr(daemons, "start_successor", start)
        started = start(lab, node)
        # In this thread, so at this moment: a late one would interrupt all tests.
        signal.raise_signal(signal.SIGINT)
        return started

    monkeypatch.setattr(daemons, "start_successor", interrupted)
    with pytest.raises(KeyboardInterrupt):
        switching.switch(LAB, lifecycle.mode_of("fastpath"))
    assert daemons.alive(LAB, daemons.ROLE_PROXY) == {NODE: before}
    assert taken(lab, before.pid)
    assert traces(lab, "fastpath") == []
