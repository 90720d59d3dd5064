"""``kproxy scenario run`` as a user meets it: screens, JSON, exit status, clean endings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kproxy.kernel import netns

pytestmark = pytest.mark.kernel

GOOD = """
- name: good
  node: {name: n1, ips: [192.168.0.2]}
  objects:
  - {apiVersion: v1, kind: Service, metadata: {namespace: a, name: s},
     spec: {clusterIP: 172.30.0.1, ports: [{port: 80, protocol: TCP}]}}
  flows:
  - {name: refused, from: 10.1.0.9, to: 172.30.0.1, port: 80, expect: {verdict: REJECT}}
  - {name: left alone, from: 10.1.0.9, to: 172.30.0.2, port: 80,
     expect: {verdict: ACCEPT_UNTRANSLATED}}
  - {name: elsewhere, modes: [nftables], from: 10.1.0.9, to: 172.30.0.2, port: 80,
     expect: {verdict: REJECT}}
"""
WRONG = GOOD.replace("name: good", "name: wrong").replace(
    "REJECT}}\n  - {name: left", "DROP}}\n  - {name: left"
)
BROKEN = "- {name: broken, flowz: []}\n"
NOTHING = """
- name: nothing
  modes: [nftables]
  flows: [{from: 10.1.0.9, to: 172.30.0.1, port: 80, expect: {verdict: REJECT}}]
"""


def kproxy(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kproxy", "scenario", "run", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


#: (content, further arguments, exit status)
STATUS = [
    (GOOD, ["--mode", "iptables-nft"], 0),
    (GOOD, ["--mode", "none"], 1),
    (WRONG, ["--mode", "iptables-nft"], 1),
    (GOOD + BROKEN, ["--mode", "iptables-nft"], 1),
    (NOTHING, ["--mode", "iptables-nft"], 2),
    (GOOD, ["--mode", "iptables-nft", "-k", "no such name"], 2),
    (GOOD, ["--mode", "carrier-pigeon"], 2),
    ("- [", ["--mode", "iptables-nft"], 1),
]


@pytest.mark.parametrize(("content", "arguments", "status"), STATUS)
def test_exit_status(tmp_path: Path, content: str, arguments: list[str], status: int) -> None:
    """0 all passed, 1 something failed, 2 nothing ran or wrong use; no trace of Python."""
    path = tmp_path / "case.yaml"
    path.write_text(content)
    ended = kproxy(path, *arguments)
    assert ended.returncode == status, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


def test_a_missing_file_is_wrong_use(tmp_path: Path) -> None:
    """One line on stderr, exit 2."""
    ended = kproxy(tmp_path / "missing.yaml")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "missing.yaml" in ended.stderr


def test_a_pipe_is_no_scenario_file(tmp_path: Path) -> None:
    """Nobody is waited for who may never write into it."""
    path = tmp_path / "case.yaml"
    os.mkfifo(path)
    ended = kproxy(path, "--mode", "iptables-nft")
    assert ended.returncode == 1
    assert "is no regular file" in ended.stdout + ended.stderr


def test_help_says_what_each_command_does() -> None:
    """In whole sentences: none is cut off."""
    argv = [sys.executable, "-m", "kproxy", "scenario", "--help"]
    text = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    commands = text.partition("Commands:")[2].strip().splitlines()
    assert [line.split()[0] for line in commands] == ["run", "semantics"]
    assert all(line.endswith(".") and not line.endswith("...") for line in commands)


def test_json(tmp_path: Path) -> None:
    """Results of every file of a folder in every mode asked for; what did not run stands apart."""
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yaml").write_text(WRONG)
    ended = kproxy(tmp_path, "--mode", "iptables-nft,none", "-o", "json")
    assert ended.returncode == 1
    results = json.loads(ended.stdout)
    assert [(one["scenario"], one["mode"], one["passed"]) for one in results] == [
        ("good", "iptables-nft", True),
        ("wrong", "iptables-nft", False),
        ("good", "none", False),
        ("wrong", "none", False),
    ]
    assert [flow["name"] for flow in results[0]["flows"]] == ["refused", "left alone"]
    assert [skip["name"] for skip in results[0]["skipped"]] == ["elsewhere"]
    assert "packets of one more try" in results[1]["flows"][0]["detail"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_keep_holds_the_lab_until_told(tmp_path: Path, number: signal.Signals) -> None:
    """The network of the last scenario stays up, the way in is said, a signal takes it down."""
    path = tmp_path / "case.yaml"
    path.write_text(GOOD)
    command = [sys.executable, "-m", "kproxy", "scenario", "run", str(path), "--keep"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        said = [process.stderr.readline()]
        while "Ctrl-C" not in said[-1]:
            assert said[-1], said
            said.append(process.stderr.readline())
        names = [line.split()[3] for line in said if "ip netns exec" in line]
        assert any(name.endswith("-node") for name in names)
        assert all(netns.exists(name) for name in names)
        # As a terminal does it: the whole group gets the signal.
        os.killpg(process.pid, number) if number is signal.SIGINT else process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert not any(netns.exists(name) for name in names)


HELD = """
- name: held
  node: {name: n1, ips: [192.168.0.2]}
  flows: [{from: 10.1.0.9, to: 172.30.0.2, port: 80, expect: {verdict: ACCEPT_UNTRANSLATED}}]
  updates:
  - do: [{exec: [sh, -c, 'echo ready > READY; exec tail -f /dev/null']}]
"""


def test_ctrl_c_takes_everything_down(tmp_path: Path) -> None:
    """Interrupted in the middle of a step, nothing stays behind."""
    path, fifo = tmp_path / "case.yaml", tmp_path / "ready"
    os.mkfifo(fifo)
    path.write_text(HELD.replace("READY", str(fifo)))
    command = [sys.executable, "-m", "kproxy", "scenario", "run", str(path)]
    before = {one.name for one in netns.RUN_DIR.iterdir()}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert fifo.read_text() == "ready\n"  # the step runs now
        during = {one.name for one in netns.RUN_DIR.iterdir()} - before
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    ours = {name for name in during if name.startswith("kp-scn-") and f"-{process.pid}-" in name}
    assert ours
    assert not any(netns.exists(name) for name in ours)
