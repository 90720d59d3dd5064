"""``kproxy lab`` as a user meets it: what is printed, what is completed, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.backends import registry
from kproxy.lab import catalogue, lifecycle, state

LAB = "fcmd"
KPROXY = [sys.executable, "-m", "kproxy"]


def kproxy(*argv: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*KPROXY, *argv],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
    )


def completed(*words: str) -> set[str]:
    """What bash would offer for the last of ``words``."""
    done = kproxy(
        env={
            "_KPROXY_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
        }
    )
    return {line.partition(",")[2] for line in done.stdout.split()}


@pytest.fixture(scope="module")
def lab() -> Iterator[str]:
    """A small lab; what it printed."""
    lifecycle.down(LAB)
    done = kproxy("lab", "up", "single", "--name", LAB)
    assert done.returncode == 0, done.stderr
    yield done.stdout
    lifecycle.down(LAB)
    state.forget_allocations(LAB)


@pytest.mark.kernel
def test_up_says_what_is_there_and_what_to_try(lab: str) -> None:
    """Pods, services and addresses; and the first command that it proposes works."""
    for word in ("node1", "192.168.100.11", "web-0", "10.244.1.2", "web-outside", "NodePort"):
        assert word in lab
    tried = [line for line in lab.splitlines() if "curl" in line]
    argv = tried[0].split()[1:]
    answer = json.loads(kproxy(*argv).stdout)
    assert answer["name"] in ("web-0", "web-1")


@pytest.mark.kernel
def test_up_again_says_already(lab: str) -> None:
    """The same command twice is fine; another topology is not."""
    assert "is up already" in kproxy("lab", "up", "single", "--name", LAB).stdout
    other = kproxy("lab", "up", "standard", "--name", LAB)
    assert (other.returncode, other.stderr.count("\n")) == (1, 1)
    assert f"kproxy lab down --name {LAB}" in other.stderr


@pytest.mark.kernel
def test_ls_in_every_form(lab: str) -> None:
    """The table, the wide form and JSON tell of the same hosts."""
    plain = kproxy("lab", "ls", "--name", LAB).stdout
    assert [line.split()[1] for line in plain.splitlines()] == [
        "NAME",
        "node1",
        "client",
        "web-0",
        "web-1",
        "echo-0",
    ]
    assert "synced" in plain
    wide = kproxy("lab", "ls", "--name", LAB, "-o", "wide").stdout
    for word in ("mtu 1500", "veth-web-0", "default via 192.168.100.1 dev eth0", "10.244.1.2/32"):
        assert word in wide
    (facts,) = json.loads(kproxy("lab", "ls", "--name", LAB, "-o", "json").stdout)
    assert {host["name"]: host["state"] for host in facts["hosts"]} == {
        "node1": "synced",
        "client": "up",
        "web-0": "ready",
        "web-1": "ready",
        "echo-0": "ready",
    }
    assert kproxy("lab", "ls", "--name", "no-such-lab").returncode == 1


@pytest.mark.kernel
def test_words_are_completed_from_what_is_there(lab: str) -> None:
    """Labs, hosts and topologies, live; nothing of a lab that is not up."""
    assert LAB in completed("kproxy", "lab", "down", "--name", "fc")
    assert completed("kproxy", "lab", "exec", "--name", LAB, "web") == {"web-0", "web-1"}
    assert completed("kproxy", "lab", "exec", "--name", "no-such-lab", "web") == set()
    assert {"single", "standard", "wide"} <= completed("kproxy", "lab", "up", "")
    assert {"up", "down", "tour"} <= completed("kproxy", "lab", "")


@pytest.mark.kernel
def test_a_shell_stands_in_the_host_and_says_where(lab: str, tmp_path: Path) -> None:
    """bash keeps the user's own settings, the prompt names lab and host."""
    (tmp_path / ".bashrc").write_text("MINE=kept\n")
    done = subprocess.run(
        [*KPROXY, "lab", "shell", "--name", LAB, "web-0"],
        input='echo "$MINE $KPROXY_HOST ${PS1%% *}"; ip -o -4 addr show eth0\nexit 3\n',
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SHELL": "/bin/bash", "HOME": str(tmp_path)},
    )
    assert done.returncode == 3
    assert f"kept web-0 [{LAB}:web-0]" in done.stdout
    assert "10.244.1.2/32" in done.stdout


@pytest.mark.kernel
@pytest.mark.parametrize("program", ["", "/no/such/program", "/etc"])
def test_what_is_no_program_is_wrong_use(lab: str, program: str) -> None:
    """One line that names it and the host."""
    done = kproxy("lab", "exec", "--name", LAB, "web-0", program)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"web-0: cannot run {program!r}" in done.stderr


@pytest.mark.kernel
def test_proposed_commands_work_where_the_user_stands(lab: str, tmp_path: Path) -> None:
    """From anywhere, with kproxy in PATH or not; in PATH it goes by its name."""
    bin_dir = Path(sys.prefix) / "bin"
    up = [str(bin_dir / "kproxy"), "lab", "up", "single", "--name", LAB]
    for folder, path in ((tmp_path, os.defpath), (bin_dir.parent, os.defpath)):
        said = _stdout(up, folder, path)
        tried = [line.split() for line in said.splitlines() if line.endswith(f"graph --name {LAB}")]
        assert tried[0][0] != "kproxy"
        assert LAB in _stdout(tried[0], folder, path)
    assert f"\n  kproxy lab graph --name {LAB}" in _stdout(up, tmp_path, f"{bin_dir}:{os.defpath}")


def _stdout(argv: list[str], folder: Path, path: str) -> str:
    return subprocess.run(
        argv,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    """Each shell gets its script; it asks kproxy by the variable that kproxy listens to."""
    assert "_KPROXY_COMPLETE" in kproxy("completion", shell).stdout


@pytest.mark.kernel
@pytest.mark.parametrize("argv", [("up",), ("down",), ("ls",), ("exec", "node1", "true")])
def test_without_root_one_line_and_status_3(argv: tuple[str, ...]) -> None:
    """No traceback, no half of a lab."""
    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--clear-groups", *KPROXY, "lab", *argv],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert "sudo" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_names_what_there_is() -> None:
    """Every topology that comes with kproxy, every mode."""
    up, render = kproxy("lab", "up", "--help").stdout, kproxy("render", "--help").stdout
    assert [name for name in catalogue.names() if name not in up] == []
    assert [name for name in registry.names() if name not in render] == []


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (("up", "no-such-topology"), "single, standard, walk, wide"),
        (("up", "--mode", "no-such-mode"), "iptables-nft"),
        (("up", "--nodes", "0"), "--nodes"),
        (("up", "-f", "/no/such/file.yaml"), "/no/such/file.yaml"),
        (("down", "--name", ".."), "no name for a lab"),
        (("down", "--forget", "--name", "a/b"), "no name for a lab"),
        (("scale", "web=²"), "WORKLOAD=N"),
        (("scale", "web=" + "9" * 5000), "WORKLOAD=N"),
        (("graph", "--file", "lab.jpg"), ".svg"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(argv: tuple[str, ...], word: str) -> None:
    """The line names what is wrong."""
    done = kproxy("lab", *argv)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert word in done.stderr
