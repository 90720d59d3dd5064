"""Peers and floors, for real: whoever runs here serves both families, and is gone afterwards."""

from __future__ import annotations

import os
import re
import select
import signal
import time
from pathlib import Path as File

import pytest

from kproxy.bench import floors, peers
from kproxy.bench.floors import Ipvsadm, NftDnat
from kproxy.bench.load import Kind, Load
from kproxy.bench.measures.traffic import Traffic
from kproxy.bench.path import Path
from kproxy.bench.peers import HAProxy, Nginx, Subject, await_answer, running
from kproxy.bench.results import Point
from kproxy.bench.subjects import SUBJECTS
from kproxy.core.objects import Family
from kproxy.errors import CheckFailed
from kproxy.kernel import command
from tests.conftest import ROOT

pytestmark = pytest.mark.kernel

FEW = Load(Kind.CRR, connections=4, operations=40, seconds=60, timeout=30)
DATAGRAMS = Load(Kind.UDP, connections=4, operations=40, seconds=60, timeout=30)


@pytest.mark.parametrize(
    "name", ["nft-dnat", "haproxy", "nginx", "ipvsadm", "nftables", "fastpath"]
)
def test_it_serves_or_says_what_is_missing(name: str) -> None:
    """TCP and, where it carries datagrams, UDP, in both families. Not every machine has every tool
    and IPVS: then there is a reason with a remedy."""
    subject = SUBJECTS[name]()
    if reason := subject.absent():
        assert "apt-get install" in reason or "kernel" in reason
        return
    with Path(clients=2) as path, running(subject, path):
        watched = [os.pidfd_open(pid) for pid in subject.pids()]
        for family in Family:
            for load in (FEW, DATAGRAMS)[: 1 + subject.udp]:
                result = path.run(load, subject.place(family))
                assert result.failures == {}
                assert result.completed == load.operations
    assert_ended(watched)


def assert_ended(watched: list[int]) -> None:
    """Processes by their descriptors; a worker whose master was killed may take a moment to go."""
    for fd in watched:
        assert select.select([fd], [], [], 60.0)[0]
        os.close(fd)


@pytest.mark.parametrize("signals", [(signal.SIGSTOP,), (signal.SIGKILL,)])
def test_no_worker_outlives_its_master(
    signals: tuple[signal.Signals, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not end when it is told to is killed with all that it has started, and so is
    what one leaves that was killed by somebody."""
    subject = Nginx()
    if subject.absent():
        assert "apt-get install" in subject.absent()
        return
    monkeypatch.setattr(peers, "_GRACE", 0.2)
    with Path() as path:
        subject.start(path)
        # It listens before it starts them.
        deadline = time.monotonic() + 60
        while len(subject.pids()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        master, *workers = subject.pids()
        watched = [os.pidfd_open(pid) for pid in workers]
        for number in signals:
            os.kill(master, number)
        subject.stop()
        assert_ended(watched)
    assert not File(f"/proc/{master}").exists()


def test_the_floor_is_a_translation_and_nothing_else() -> None:
    """One rule for each family; the pod sees the client's own address."""
    subject = NftDnat()
    with Path() as path, running(subject, path):
        path.run(FEW, subject.place(Family.IPV4))
        said = command.run(["nft", "list", "ruleset"], namespace=path.fd("node")).stdout.decode()
    assert said.count("dnat") == 2
    assert "masquerade" not in said
    assert not subject.pids()


@pytest.mark.parametrize(
    ("kind", "tool"), [(HAProxy, "haproxy"), (Nginx, "nginx"), (NftDnat, "nft"), (Ipvsadm, "")]
)
def test_a_missing_tool_is_named_with_its_package(
    kind: type[Subject], tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peers are no requirement; who wants one is told how to get it."""
    monkeypatch.setattr(command, "find", lambda tool: None)
    assert "apt-get install" in kind().absent()


def test_a_kernel_that_lacks_something_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel does not know is a reason."""
    monkeypatch.setattr(floors, "_RULESET", "table ip x {{ chain y {{ no such statement }} }}")
    assert "needs a kernel with CONFIG_NF_TABLES" in NftDnat().absent()


def test_the_documented_example_is_measured(tmp_path: File) -> None:
    """docs/bench.md's class, from its file, beside direct routing."""
    page = (ROOT / "docs" / "bench.md").read_text()
    example = next(
        code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "OneRule" in code
    )
    file = tmp_path / "one_rule.py"
    file.write_text(example)
    with Traffic([f"{file}:OneRule"], seconds=0.05, measures=["crr", "udp"]) as group:
        assert list(group.subjects) == ["direct", "one-rule"]
        assert set(group.turn("one-rule")) == {Point("crr")}
        assert [(each.subject, each.measure) for each in group.absent] == [("one-rule", "udp")]


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for an answer is told where there is none."""
    monkeypatch.setattr(peers, "_PATIENCE", 0.1)
    with Path() as path, pytest.raises(CheckFailed, match=r"nobody answers at 10\.78\.0\.2 port 9"):
        await_answer(path, (path.pod_place()[0], 9))
