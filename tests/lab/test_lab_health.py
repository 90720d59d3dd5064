"""A lab whose service asks for checks: what its nodes think of a pod that refuses, and of one that
is well again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kproxy import status
from kproxy.lab import catalogue, daemons, lifecycle, state
from kproxy.lab.survey import HostFacts, survey

pytestmark = pytest.mark.kernel

LAB = "fhealth"
TIMEOUT = 60.0
#: Who is dead here refuses at once; a time-out would only be that of a busy machine.
CHECK = (
    "{tcp: {}, interval: 200ms, fastInterval: 100ms, timeout: 30s, fall: 2, rise: 1,"
    " passive: false}"
)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    lifecycle.down(LAB)
    yield
    lifecycle.down(LAB)
    state.forget_allocations(LAB)


def kproxy(*argv: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "kproxy", "lab", *argv],
        capture_output=True,
        text=True,
        timeout=TIMEOUT * 4,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def nodes() -> list[HostFacts]:
    (lab,) = survey((LAB,))
    return [host for host in lab.hosts if host.kind == "node"]


def ups(node: str) -> set[tuple[int, int]]:
    said = status.read(daemons.proxy_state_dir(LAB, node))
    return {(port.up, port.of) for port in said.health} if said is not None else set()


def test_a_pod_that_refuses_is_down_on_every_node(tmp_path: Path) -> None:
    """``lab ls`` says so with the pod's name and the reason, and no more when it is well."""
    lab = lifecycle.up(LAB, catalogue.load("standard"), lifecycle.mode_of("iptables-nft")).lab
    web = next(
        each
        for each in lifecycle.objects_of(LAB)
        if each["kind"] == "Service" and each["metadata"]["name"] == "web"
    )
    web["metadata"].setdefault("annotations", {})["kproxy/health-check"] = CHECK
    file = tmp_path / "web.yaml"
    file.write_text(yaml.safe_dump(web))
    kproxy("apply", "--name", LAB, "-f", str(file))
    pod = next(each for each in lab.pods if each.workload == "web")
    pods = sum(each.workload == "web" for each in lab.pods)

    def wait(up: int) -> None:
        with status.Notifications(state.lab_dir(LAB) / "notify.sock") as notices:
            notices.until_sync(
                lambda: all(ups(node) == {(up, pods)} for node in lab.nodes), TIMEOUT
            )

    wait(pods)
    kproxy("fault", "--name", LAB, pod.name, "refuse")
    wait(pods - 1)
    for node in nodes():
        ailing = {each for port in node.health for each in port.endpoints}
        assert {each.pod for each in ailing} == {f"default/{pod.name}"}
        assert {each.state for each in ailing} == {"down"}
        assert all("refused" in each.reason for each in ailing)
    row = next(line for line in kproxy("ls", "--name", LAB).splitlines() if f" {pod.name} " in line)
    assert f"down on {', '.join(lab.nodes)}" in row
    kproxy("fault", "--name", LAB, pod.name, "heal")
    wait(pods)
    assert not any(port.endpoints for node in nodes() for port in node.health)
