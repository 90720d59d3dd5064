"""``kproxy lab kill``: a crash of one node's kproxy, and the way back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kproxy.lab import daemons, lifecycle, state
from tests.lab.test_lab_commands import kproxy

pytestmark = pytest.mark.kernel

LAB = "fkll"


@pytest.fixture
def lab() -> Iterator[str]:
    lifecycle.down(LAB)
    assert kproxy("lab", "up", "walk", "--name", LAB).returncode == 0
    yield LAB
    lifecycle.down(LAB)
    state.forget_allocations(LAB)


def test_a_crash_and_the_way_back(lab: str) -> None:
    """Only the node that is named loses its kproxy; a second time there is none; `restart` starts
    one where none ran; a node that there is not is named, and nothing is done."""
    before = daemons.alive(lab, daemons.ROLE_PROXY)
    wrong = kproxy("lab", "kill", "--name", lab, "node1", "node9")
    assert (wrong.returncode, "node9" in wrong.stderr) == (1, True)
    assert daemons.alive(lab, daemons.ROLE_PROXY) == before
    killed = kproxy("lab", "kill", "--name", lab, "node1")
    assert killed.stdout == f"node1: process {before['node1'].pid} killed\n"
    assert daemons.alive(lab, daemons.ROLE_PROXY) == {"node2": before["node2"]}
    assert kproxy("lab", "kill", "--name", lab, "node1").stdout == "node1: none ran\n"
    again = kproxy("lab", "restart", "--name", lab, "node1")
    new = daemons.alive(lab, daemons.ROLE_PROXY)["node1"]
    assert again.stdout == f"node1: process {new.pid} where none ran\n"
