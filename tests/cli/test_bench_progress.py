"""What is said while it measures: a bar on a terminal, a line for each group in a pipe."""

from __future__ import annotations

import os
import sys
import termios
from contextlib import suppress

import pytest

from kproxy.bench.conductor import Step
from kproxy.cli.bench_progress import progress


def step(kind: str, **more: object) -> Step:
    told = {"group": "traffic", "number": 0, "groups": 3, "rounds": 4, "most": 11, **more}
    return Step(kind=kind, took=31.0, elapsed=35.0, left=75.0, **told)  # type: ignore[arg-type]


def test_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """Groups that ended, and what should be known at once; nothing on standard output."""
    with progress() as told:
        told("host", step("began"))
        told("host", step("turn", subject="direct"))
        told("host", step("note", note="traffic: nginx: it is not installed"))
        told("host", step("ended"))
        told("uml", step("ended", rounds=1, number=1))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "kproxy: traffic: nginx: it is not installed",
        "traffic: 4 rounds in 31 s; 1 of 3 groups, 1 min 15 s left",
        "traffic (user-mode Linux): 1 round in 31 s; 2 of 3 groups, 1 min 15 s left",
    ]


def _all_of(terminal: int) -> str:
    """What was written to a terminal that is closed; the kernel hands it over in pieces."""
    pieces: list[bytes] = []
    with open(terminal, "rb", buffering=0) as file, suppress(OSError):  # EIO: that was all
        while piece := file.read(1 << 16):
            pieces.append(piece)
    return b"".join(pieces).decode()


def test_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is measured, in which round, and how much is left; gone in the end but for notes."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", terminal)
        with progress() as told:
            told("host", step("turn", subject="iptables-nft"))
            told("uml", step("note", note="ipvs: it ended"))
    shown = _all_of(ours)
    assert "traffic, round 5: iptables-nft" in shown
    assert "about 1 min 15 s left" in shown
    assert "kproxy: ipvs: it ended" in shown
