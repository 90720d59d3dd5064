"""``kproxy lab fault`` as a user meets it: what befalls pods, for how long, and what is said."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from kproxy.core.objects import Protocol
from kproxy.kernel import netns
from kproxy.lab import changes, daemons, lifecycle, state
from kproxy.lab.traffic import Outcome, Probe, Reach, probe_all
from kproxy.lab.undo import UndoLog
from tests.lab.test_lab_commands import completed
from tests.lab.test_lab_commands import kproxy as run

LAB = "ffault"
WEB_0 = "10.244.1.2"


@pytest.fixture(scope="module")
def lab() -> Iterator[str]:
    """A small lab of three pods."""
    lifecycle.down(LAB)
    done = run("lab", "up", "single", "--name", LAB)
    assert done.returncode == 0, done.stderr
    yield LAB
    lifecycle.down(LAB)
    state.forget_allocations(LAB)


@pytest.fixture
def well(lab: str) -> Iterator[str]:
    """The lab, whose pods are healed afterwards."""
    yield lab
    assert run("lab", "fault", "--name", lab, "--all", "heal").returncode == 0


def ask(port: int = 8080, protocol: Protocol = Protocol.TCP, timeout: float = 20.0) -> Outcome:
    """Somebody on the node asks the first pod."""
    fd = netns.open_fd(f"kp-{LAB}-node1")
    try:
        return probe_all([Probe(WEB_0, port, protocol, fd, timeout=timeout)])[0]
    finally:
        os.close(fd)


FAULTS = [
    ("kill", "kill", Reach.REFUSED),
    ("refuse", "refuse", Reach.REFUSED),
    ("hang", "hang", Reach.SILENCE),
    ("loss=100", "loss=100%", Reach.SILENCE),
]


@pytest.mark.kernel
@pytest.mark.parametrize(("word", "told", "reach"), FAULTS)
def test_a_fault_is_in_force_when_the_command_returns(
    well: str, word: str, told: str, reach: Reach
) -> None:
    """And ends when it is healed."""
    assert ask().reach is Reach.REACHED
    done = run("lab", "fault", "--name", well, "web-0", word)
    assert (done.returncode, done.stdout) == (0, f"pod/web-0: {told}\n"), done.stderr
    assert ask(timeout=0.5 if reach is Reach.SILENCE else 20.0).reach is reach
    assert run("lab", "fault", "--name", well).stdout == f"pod/web-0: {told}\n"
    assert run("lab", "fault", "--name", well, "web-0", "heal").stdout == "pod/web-0: no fault\n"
    assert ask(timeout=10.0).reach is Reach.REACHED


@pytest.mark.kernel
def test_several_pods_and_several_faults_at_once(well: str) -> None:
    """In any order; slow and loss come on top of the others."""
    done = run(
        "lab", "fault", "--name", well, "web-0", "slow=700", "web-1", "loss=5%", "-o", "json"
    )
    faults = ["slow=700ms", "loss=5%"]
    assert json.loads(done.stdout) == [
        {"pod": "web-0", "faults": faults},
        {"pod": "web-1", "faults": faults},
    ]
    done = run("lab", "fault", "--name", well, "web-0", "hang")
    assert done.stdout == "pod/web-0: slow=700ms, loss=5%, hang\n"
    run("lab", "fault", "--name", well, "web-0", "heal", "slow=700")
    answer = ask(timeout=20.0)
    assert answer.reach is Reach.REACHED
    assert answer.seconds >= 0.7
    assert run("lab", "fault", "--name", well, "echo-0").stdout == "pod/echo-0: no fault\n"


@pytest.mark.kernel
def test_faults_outlive_changes_of_the_lab_and_its_processes(well: str) -> None:
    """A pod that leaves takes its faults along; the others keep theirs, also when who answers for
    them is started anew."""
    run("lab", "fault", "--name", well, "web-0", "kill")
    changes.scale(LAB, [("web", 3)])
    run("lab", "fault", "--name", well, "web-2", "kill")
    changes.scale(LAB, [("web", 2)])
    assert run("lab", "fault", "--name", well).stdout == "pod/web-0: kill\n"
    pods = next(p for p in UndoLog(LAB).read().processes if p.role == "pods")
    daemons.stop(LAB, [pods])
    assert run("lab", "up", "single", "--name", well).returncode == 0
    assert ask().reach is Reach.REFUSED


WRONG = [
    (("web-9", "hang"), 1, "web-0, web-1, echo-0"),
    (("web-0", "hangs"), 1, "slow=MS"),
    (("web-0", "slow"), 2, "slow=MS"),
    (("web-0", "loss=101"), 2, "loss=PERCENT"),
    (("hang",), 2, "--all"),
]


@pytest.mark.kernel
@pytest.mark.parametrize(("words", "status", "named"), WRONG)
def test_wrong_use_is_one_line(lab: str, words: tuple[str, ...], status: int, named: str) -> None:
    """It names the pods that there are, or how a fault is written; nothing has happened."""
    done = run("lab", "fault", "--name", lab, *words)
    assert (done.returncode, done.stderr.count("\n")) == (status, 1)
    assert named in done.stderr
    assert run("lab", "fault", "--name", lab).stdout == "no pod has a fault\n"


@pytest.mark.kernel
def test_words_are_completed(lab: str) -> None:
    """Pods of the lab and faults, up to where numbers begin."""
    assert completed("kproxy", "lab", "fault", "--name", LAB, "") >= {
        *("web-0", "web-1", "echo-0", "kill", "hang", "refuse", "slow=", "loss=", "flap=", "heal")
    }
    assert completed("kproxy", "lab", "fault", "--name", LAB, "we") == {"web-0", "web-1"}
