"""The path: all of it is there for both families, it is what it says, and nothing of it is left;
what it loses is a failure and no speed."""

from __future__ import annotations

import pytest

from bench import relay_quick
from kproxy.bench import measure
from kproxy.bench.load import Kind, Load
from kproxy.bench.path import Path
from kproxy.bench.peers import HAProxy, running
from kproxy.bench.rounds import Figure, Verdict, compare
from kproxy.bench.subjects import SUBJECTS
from kproxy.core.objects import Family
from kproxy.errors import CheckFailed, MachineError
from kproxy.kernel import command, netns, sysctl
from kproxy.kernel.netns import entered

pytestmark = pytest.mark.kernel

HOSTS = ("client", "node", "pod")

#: Long before its seconds are over.
FEW = Load(Kind.CRR, connections=4, operations=100, seconds=60, timeout=30)
DATAGRAMS = Load(Kind.UDP, connections=4, operations=400, seconds=60, timeout=30)
#: Of which some are lost, and not waited for.
LOSSY = Load(Kind.UDP, connections=4, operations=400, seconds=60, timeout=0.2)


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("name", ["direct", "relay", "iptables"])
@pytest.mark.parametrize("load", [FEW, DATAGRAMS], ids=["tcp", "udp"])
def test_loads_reach_the_pod(name: str, family: Family, load: Load) -> None:
    """Every subject serves both protocols in both families, from every client address."""
    subject = SUBJECTS[name]()
    with Path(clients=3, pods=2) as path, running(subject, path):
        result = path.run(load, subject.place(family))
        counted = path.pod.counters()
    assert result.failures == {}
    assert result.completed == load.operations
    assert counted["requests" if load is FEW else "datagrams_in"] == load.operations
    assert result.latency.total == load.operations


def test_nothing_is_left() -> None:
    """Namespaces and processes go with the path, also when what is measured fails."""
    path = Path()
    with pytest.raises(CheckFailed), path:
        path.client.run(Load(Kind.CRR, connections=0), path.pod_place())
    agents = (path.client, path.pod)
    assert not any(netns.exists(f"kp-{path.lab}-{host}") for host in HOSTS)
    assert all(agent.ended for agent in agents)


@pytest.mark.parametrize(("settings", "expected"), [("stock", "2"), ("tuned", "1")])
def test_settings_are_the_nodes(settings: str, expected: str) -> None:
    """The node is set as asked; the ends are always able to open more than a node can."""
    with Path(settings=settings) as path:
        seen = {}
        for host in HOSTS:
            with entered(path.fd(host)):
                seen[host] = sysctl.read("net/ipv4/tcp_tw_reuse")
    assert seen == {"client": "1", "node": expected, "pod": "1"}


@pytest.mark.parametrize("load", [FEW, LOSSY], ids=["tcp", "udp"])
def test_loss_is_told(load: Load) -> None:
    """Every twentieth packet is dropped at the node: datagrams are lost and make a comparison a
    failed one; TCP sends again, which stands beside the figure."""
    hook = "type filter hook forward priority 0; numgen inc mod 20 0 drop;"
    drop = f"table inet lossy {{ chain forward {{ {hook} }}; }}"
    with Path() as path:
        command.run(["nft", "-f", "-"], stdin=drop.encode(), namespace=path.fd("node"))
        result = path.run(load, path.pod_place())
    if load is FEW:
        assert result.retransmits > 0
        return
    assert result.failures["lost"] > 0
    assert result.failures["lost"] + result.completed == load.operations
    lossy = Figure(result.rate, result.started, result.failed)
    rounds = [{"lossy": lossy, "direct": Figure(result.rate / 2, result.started)}] * 12
    assert compare(rounds, "lossy", "direct").verdict is Verdict.FAILED


def test_streams_up_are_counted_where_they_arrive() -> None:
    """What the pod received is the figure, in bits."""
    with Path() as path:
        result = path.run(
            Load(Kind.STREAM, direction="up", seconds=2.0, warmup=0.1), path.pod_place()
        )
    assert result.bytes_in == 0
    assert result.bits == 8 * result.received > 0


def test_connections_are_held() -> None:
    """So many are open at the pod until they are let go."""
    with Path() as path:
        assert path.client.hold(50, path.pod_place(), sources=path.client_addresses()) == 50
        assert path.pod.counters()["open"] == 50
        path.client.release()
        assert path.client.hold(1, path.pod_place()) == 1


def test_two_clients_at_once() -> None:
    """Loads run side by side, each with its result."""
    with Path() as path:
        other = path.agent("client")
        for client in (path.client, other):
            client.begin(FEW, [path.pod_place()], sources=path.client_addresses())
        results = [client.result() for client in (path.client, other)]
    assert [result.completed for result in results] == [100, 100]


def test_what_the_generator_cannot_do_is_said() -> None:
    """An impossible load is an error with its reason, and the agent lives on."""
    with Path() as path:
        with pytest.raises(CheckFailed, match="connections"):
            path.run(Load(Kind.CRR, connections=0, seconds=1), path.pod_place())
        assert path.run(FEW, path.pod_place()).completed == 100


class Missing(HAProxy):
    tool = "kproxy-no-such-relay"


def test_a_missing_peer_names_its_package() -> None:
    """Peers are no requirement; who measures them is told how to get them."""
    with Path() as path, pytest.raises(MachineError, match="apt-get install haproxy"):
        Missing().start(path)


def test_a_quick_look(capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each measure and subject: figure, CPU, waits."""
    relay_quick.main(["direct", "relay", "--only", "crr1", "--seconds", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["crr1", "direct"], ["crr1", "relay"]]
    assert all("/s" in line and "p50/99/99.9" in line for line in lines)
    assert not any("FAILED" in line for line in lines)


def test_idle_connections_are_counted() -> None:
    """As many as asked for, unless a relay has no descriptors for them."""
    found = measure.held(SUBJECTS["relay"](), 50)
    assert found.connections == 50
    # What it shares with others is less when there are more of them.
    assert found.after.rss >= found.before.rss > 0
    assert found.after.pss > 0
