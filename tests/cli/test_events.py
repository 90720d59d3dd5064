"""``kproxy events`` as a process: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kproxy.core.objects import Family, PortName, Protocol
from kproxy.health.journal import FILE, Event, Journal, Kind

TIMEOUT = 60


def event(kind: Kind = Kind.DOWN, *, node: str = "node1", at: float = 0.0, **fields: Any) -> Event:
    given = {
        "name": PortName("shop", "web", "http", Protocol.TCP),
        "family": Family.IPV4,
        "reason": "connection refused",
        "endpoint": "10.180.0.1:8080",
    }
    return Event.of(kind, node=node, at=1_700_000_000.5 + at, **given | fields)


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "kproxy", "events", *argv]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "KPROXY_LAB"}
    return {**kept, "TZ": "UTC", **more}


def run(*argv: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*argv),
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env=environment(**more),
    )


@contextmanager
def watching(*argv: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command("-w", *argv),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def test_a_table(tmp_path: Path) -> None:
    """One row an event, oldest first; what has no endpoint is about all of a family."""
    journal = Journal(tmp_path)
    journal.add([event(at=3.0), event(Kind.UP, at=1.0, reason="200 OK")])
    journal.add([
        event(Kind.PANIC, at=5.0, endpoint="", family=Family.IPV6, reason="0 of 2 endpoints up"),
        event(at=6.0, name=PortName("kube-system", "dns", "", Protocol.UDP)),
    ])  # fmt: skip
    done = run("--state-dir", str(tmp_path))
    assert done.returncode == 0
    rows = [line.split("   ") for line in done.stdout.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells == [
        ["TIME", "NODE", "SERVICE", "ENDPOINT", "WHAT", "REASON"],
        ["2023-11-14 22:13:21.500", "node1", "shop/web:http", "10.180.0.1:8080", "up", "200 OK"],
        ["2023-11-14 22:13:23.500", "node1", "shop/web:http", "10.180.0.1:8080", "down",
         "connection refused"],
        ["2023-11-14 22:13:25.500", "node1", "shop/web:http", "all (IPv6)", "panic",
         "0 of 2 endpoints up"],
        ["2023-11-14 22:13:26.500", "node1", "kube-system/dns/UDP", "10.180.0.1:8080", "down",
         "connection refused"],
    ]  # fmt: skip


def test_json_is_an_object_a_line(tmp_path: Path) -> None:
    """What scripts read; a reason that would steer a terminal is spelled in ASCII."""
    Journal(tmp_path).add([event(reason="\x1b[31m\x9b31m é"), event(Kind.UP, at=1.0)])
    done = run("--state-dir", str(tmp_path), "-o", "json")
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["reason"] == "\x1b[31m\x9b31m é"
    assert (second["kind"], second["time"]) == ("up", "2023-11-14T22:13:21.500000Z")
    shown = run("--state-dir", str(tmp_path)).stdout
    assert "\x1b" not in shown
    assert "\x9b" not in shown


def test_one_node_only(tmp_path: Path) -> None:
    """--node leaves the others out."""
    Journal(tmp_path).add([event(node="one"), event(node="two", endpoint="10.180.0.2:80")])
    assert "10.180.0.2" not in run("--state-dir", str(tmp_path), "--node", "one").stdout
    assert "10.180.0.2" in run("--state-dir", str(tmp_path), "--node", "two").stdout


def test_nothing_yet(tmp_path: Path) -> None:
    """That is no fault; nothing at all for a script."""
    assert run("--state-dir", str(tmp_path)).stdout == "no events yet\n"
    done = run("--state-dir", str(tmp_path), "-o", "json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("argv", "status", "told"),
    [
        (["--state-dir", "/nowhere/at/all"], 2, "/nowhere/at/all: no kproxy has run"),
        (["--state-dir", "/tmp", "--name", "lab"], 2, "--name and --state-dir name two things"),
        (["--name", "no-such-lab"], 1, "lab no-such-lab is not up"),
        (["-o", "yaml"], 2, "yaml"),
    ],
)
def test_wrong_use(argv: list[str], status: int, told: str) -> None:
    """One line on stderr says what was wrong."""
    done = run(*argv)
    assert done.returncode == status
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_lab_of_the_environment_gives_way(tmp_path: Path) -> None:
    """In a shell of a lab's node $KPROXY_LAB is set; a state directory that is named counts."""
    Journal(tmp_path).add([event()])
    assert "10.180.0.1" in run("--state-dir", str(tmp_path), KPROXY_LAB="no-such-lab").stdout


def test_watching(tmp_path: Path) -> None:
    """What is there, then what comes, through a rotation; Ctrl-C ends it without a fault."""
    journal = Journal(tmp_path, limit=2000)
    journal.add([event()])
    with watching("--state-dir", str(tmp_path)) as process:
        assert line_of(process).split() == ["TIME", "NODE", "SERVICE", "ENDPOINT", "WHAT", "REASON"]
        assert "10.180.0.1:8080" in line_of(process)
        for number in range(30):
            journal.add([event(Kind.UP, at=1.0 + number, endpoint=f"10.180.1.{number}:80")])
            assert f" 10.180.1.{number}:80 " in line_of(process)
        assert (tmp_path / f"{FILE}.1").exists()
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, out, errors) == (0, "", "\n")


def test_watching_begins_before_there_is_a_journal(tmp_path: Path) -> None:
    """A daemon that has had nothing to tell has no file yet; SIGTERM ends it as Ctrl-C does."""
    with watching("--state-dir", str(tmp_path), "-o", "json") as process:
        Journal(tmp_path).add([event()])
        assert json.loads(line_of(process))["endpoint"] == "10.180.0.1:8080"
        process.terminate()
        assert process.wait(TIMEOUT) == 0


def test_a_reader_that_has_had_enough(tmp_path: Path) -> None:
    """``kproxy events -w | head -1``: it ends though nothing more happens, without a word."""
    Journal(tmp_path).add([event()])
    with watching("--state-dir", str(tmp_path), "-o", "json") as process:
        line_of(process)
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(TIMEOUT) in (0, -signal.SIGPIPE)
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_what_is_watched_goes(tmp_path: Path) -> None:
    """A lab that is taken down: nothing would ever come any more."""
    folder = tmp_path / "state"
    folder.mkdir()
    with watching("--state-dir", str(folder)) as process:
        line_of(process)
        folder.rmdir()
        _, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 1
        assert errors == f"kproxy: {folder}: what was watched is gone\n"
