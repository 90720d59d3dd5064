"""``kproxy scenario run --kernel``: on the host, in user-mode Linux, and on both side by side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kproxy.kernel import netns
from kproxy.lab.uml import machine, place
from tests.lab.uml.test_boot import assert_ended

pytestmark = pytest.mark.kernel

SCENARIO = """
- name: good
  node: {name: n1, ips: [192.168.0.2]}
  objects:
  - {apiVersion: v1, kind: Service, metadata: {namespace: a, name: s},
     spec: {clusterIP: 172.30.0.1, ports: [{port: 80, protocol: TCP}]}}
  flows:
  - {name: refused, from: 10.1.0.9, to: 172.30.0.1, port: 80, expect: {verdict: REJECT}}
- name: nothing said
  modes: [nftables]
  flows: [{from: 10.1.0.9, to: 172.30.0.1, port: 80, expect: {verdict: REJECT}}]
"""


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kproxy", "scenario", "run", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def kproxy(*arguments: object) -> tuple[int, str, str]:
    with start(*arguments) as process:
        out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """In a folder with a space in its name."""
    path = tmp_path / "some files" / "scenario.yaml"
    path.parent.mkdir()
    path.write_text(SCENARIO)
    return path


def test_two_kernels_side_by_side(file: Path) -> None:
    """One report of all modes, whatever kernel each ran on, and one exit status."""
    status, out, err = kproxy(file, "--mode", "iptables-nft,ipvs", "-o", "json")
    assert status == 0, err
    results = {(one["scenario"], one["mode"]): one for one in json.loads(out)}
    assert set(results) == {
        (name, mode) for name in ("good", "nothing said") for mode in ("iptables-nft", "ipvs")
    }
    for mode in ("iptables-nft", "ipvs"):
        assert [flow["seen"] for flow in results["good", mode]["flows"]] == ["refused"]
        assert results["nothing said", mode]["skipped"]


def test_only_inside(file: Path) -> None:
    """The table as on the host, a wrong expectation fails it; the host makes no namespace."""
    file.write_text(SCENARIO.replace("REJECT", "DROP"))
    with start(file, "--mode", "iptables", "--kernel", "uml", "--no-explain") as process:
        out, err = process.communicate(timeout=240)
    assert process.returncode == 1, err
    assert "✗ good [iptables-legacy]" in out
    assert "0 of 1 scenarios passed" in out
    # By the process: other runs on this host may make some of their own meanwhile.
    assert [name for name in os.listdir(netns.RUN_DIR) if f"scn-{process.pid}-" in name] == []


def test_a_mode_that_the_machine_cannot_run(file: Path) -> None:
    """Named, it is an error in one line, as on a host; the machine's own words."""
    status, out, err = kproxy(file, "--mode", "iptables-nft", "--kernel", "uml")
    assert status == 3
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("kproxy: in user-mode Linux: iptables (nft")


def test_nothing_can_be_kept_inside(file: Path) -> None:
    """It is said, before anything is booted."""
    status, _, err = kproxy(file, "--mode", "iptables", "--kernel", "uml", "--keep")
    assert status == 2
    assert "--kernel host" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_both(file: Path, number: signal.Signals) -> None:
    """While both kernels run scenarios: labs, processes and the machine are gone."""
    many = file.read_text().splitlines()
    file.write_text(
        "\n".join(
            line.replace("name: good", f"name: good {copy}")
            for copy in range(200)
            for line in many[: many.index("- name: nothing said")]
        )
    )
    with start(file, "--mode", "iptables-nft,ipvs") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("✓") and "[ipvs]" in line:
                break
        process.send_signal(number)
        process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGINT else 143)
    left = [name for name in os.listdir(netns.RUN_DIR) if f"scn-{process.pid}-" in name]
    assert left == []
    assert_ended(process.pid)


def test_all_goes_on_without_the_package(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``all`` runs what this host can, and says why the rest did not run."""
    from kproxy.cli.main import main

    file.write_text(SCENARIO.partition("- name: nothing said")[0])
    monkeypatch.setattr(machine, "KERNEL", "linux.uml-is-not-there")
    monkeypatch.setattr(place, "host_runs", lambda mode: False)
    monkeypatch.setattr(sys, "argv", ["kproxy", "scenario", "run", str(file), "--mode", "all"])
    with pytest.raises(SystemExit) as ended:
        main()
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert "✓ good [iptables-nft]" in out
    assert "apt-get install" in out
