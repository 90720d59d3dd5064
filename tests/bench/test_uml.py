"""The section of user-mode Linux: measured in one machine by the same conductor, and whatever
happens on the way, no machine is left and the reason is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from kproxy.bench import uml
from kproxy.bench.conductor import Step
from kproxy.bench.inside import Line
from kproxy.bench.profiles import Asked
from kproxy.bench.results import Section
from kproxy.bench.subjects import AGAIN, DIRECT
from kproxy.errors import CheckFailed, LabError, MachineError
from kproxy.lab.uml import homes, machine
from tests.conftest import ROOT

#: Nothing in it fails because the machine is busy.
SHORT = Asked(
    profile="quick",
    subjects=("iptables-nft", "iptables-legacy", "ipvs"),
    measures=("cold-sync", "one-change"),
    rounds=1,
)

STEP = Step(
    kind="turn",
    group="traffic",
    number=1,
    groups=1,
    rounds=0,
    most=2,
    took=0.5,
    elapsed=0.5,
    left=9.0,
    subject="ipvs",
)
SECTION = Section("uml", "6.1", {"ipvs": "kproxy"}, (), ())


@pytest.mark.parametrize(
    ("wanted", "measured"),
    [
        ((DIRECT, AGAIN, "fastpath", "ipvs", "ipvsadm"), (DIRECT, AGAIN, "ipvs", "ipvsadm")),
        (("ipvs", "iptables-legacy"), (DIRECT, AGAIN, "iptables-legacy", "ipvs")),
        ((DIRECT, AGAIN, "userspace", "nftables"), ()),
        ((), ()),
    ],
)
def test_only_what_its_kernel_does_is_measured(
    wanted: tuple[str, ...], measured: tuple[str, ...]
) -> None:
    """Always with the floor and the noise; with nobody but these there is nothing to do."""
    assert uml.subjects(wanted) == measured


@pytest.mark.parametrize(
    ("readings", "right"),
    [
        ([(100.0, 3.0), (160.0, 63.0)], True),
        ([(100.0, 3.0), (160.0, 62.5)], True),
        ([(100.0, 3.0), (160.0, 61.0)], False),
        ([(100.0, 3.0), (160.0, 65.0)], False),
        ([(100.0, 3.0), (100.2, 3.0)], True),
        ([(100.0, 3.0)], True),
        ([], True),
    ],
)
def test_a_clock_that_is_wrong_is_noticed(readings: list[tuple[float, float]], right: bool) -> None:
    """By more than a hundredth of the time and what a line may take on its way, either way."""
    clocks = uml.Clocks()
    for here, there in readings:
        clocks.read(here, there)
    if right:
        clocks.check()
        return
    with pytest.raises(CheckFailed, match="figures mean nothing"):
        clocks.check()


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_lines_come_in_pieces(size: int) -> None:
    """However the bytes are cut, each line is heard once and in its turn; standard error is kept
    apart."""
    heard: list[Step | Section] = []
    listener = uml.Listener(heard.append, heard.append)
    noted = msgspec.structs.replace(SECTION, notes=("Something was taken anew.",))
    lines = (Line(1.0), Line(1.1, STEP), Line(section=SECTION), Line(section=noted, whole=True))
    data = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    for at in range(0, len(data), size):
        assert not listener.whole
        listener.take(1, data[at : at + size])
        listener.take(2, b"w")
    assert [type(each) for each in heard] == [Step, Section, Section]
    assert heard[0] == STEP
    assert listener.whole
    assert listener.section is not None
    assert listener.section.notes == (*uml.NOTES, "Something was taken anew.")
    assert set(listener.words) == {ord("w")}


@pytest.mark.parametrize(
    ("seconds", "booted", "left"),
    [(25.0, 4.0, 25.0), (25.0, 15.0, 15.0), (25.0, 60.0, 1.0), (None, 60.0, None)],
)
def test_a_machine_that_boots_slowly_measures_less(
    seconds: float | None, booted: float, left: float | None
) -> None:
    """What it took beyond the usual is taken from the section's time."""
    assert uml._late(Asked("quick", (), seconds=seconds), booted).seconds == left


def test_figures_of_a_wrong_clock_are_not_kept() -> None:
    """Neither at the end nor on the way."""
    kept: list[Section] = []
    listener = uml.Listener(lambda step: None, kept.append)
    listener.take(1, msgspec.json.encode(Line(1.0)) + b"\n")
    listener.take(1, msgspec.json.encode(Line(100.0)) + b"\n")
    with pytest.raises(CheckFailed):
        listener.take(1, msgspec.json.encode(Line(section=SECTION)) + b"\n")
    assert [each.rows for each in kept] == [()]


def end_after(over: threading.Event) -> None:
    """What waiting for a machine does that is given up."""
    assert over.wait(60)
    raise LabError("it ended")


def test_a_machine_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason; one that ended by itself has another, and who speaks is left alone."""
    heard, over = threading.Event(), threading.Event()
    monkeypatch.setattr(uml, "PATIENCE", 0.05)
    with (
        pytest.raises(LabError, match=r"has said nothing for 0\.05 s"),
        uml.watched(heard, over.set),
    ):
        end_after(over)
    monkeypatch.setattr(uml, "PATIENCE", 60.0)
    with pytest.raises(LabError, match="it ended"), uml.watched(heard, pytest.fail):
        end_after(over)
    with uml.watched(heard, pytest.fail):
        heard.set()


def test_without_a_machine_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what to do about it."""
    monkeypatch.setattr(machine, "KERNEL", "linux.uml-is-not-there")
    with pytest.raises(MachineError, match="apt-get install user-mode-linux"):
        uml.section(SHORT)


@contextmanager
def no_machine_is_left() -> Iterator[set[int]]:
    """Homes of machines are gone as they came; a home that is in use holds its machine. They are
    named by the processes that had them booted: this one, and those that the block adds."""
    root = homes.private_root()
    before = set(root.iterdir())
    processes = {os.getpid()}
    yield processes
    ours = {each for pid in processes for each in root.glob(f"{pid}-*")}
    assert ours <= before


@pytest.mark.kernel
def test_a_section_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPVS and its base, in a kernel that is not this one, turn by turn; by a clock that is right,
    or there would be no section."""
    # On a busy machine a line is on its way for longer; clocks that tick wrongly are apart by more.
    monkeypatch.setattr(uml, "_DELAY", 3.0)
    steps: list[Step] = []
    kept: list[Section] = []
    with no_machine_is_left():
        found = uml.section(SHORT, told=steps.append, kept=kept.append)
    assert found.name == "uml"
    assert found.kernel != os.uname().release
    assert found.notes == uml.NOTES
    assert found.subjects.keys() == {DIRECT, AGAIN, "iptables-legacy", "ipvs"}
    assert kept[-1] == found
    assert {step.subject for step in steps if step.kind == "turn"} == {"iptables-legacy", "ipvs"}
    assert {row.point.measure for row in found.rows} == set(SHORT.measures)
    for row in found.rows:
        assert row.base == "iptables-legacy"
        (taken,) = row.rounds
        assert taken.keys() == {"iptables-legacy", "ipvs"}
        assert all(figure.value > 0 and not figure.failures for figure in taken.values())


INTERRUPTED = """
import sys
import msgspec
from kproxy.bench import uml
from kproxy.bench.profiles import Asked

try:
    uml.section(
        msgspec.json.decode(sys.argv[1], type=Asked), told=lambda step: print(step.kind, flush=True)
    )
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.kernel
def test_it_can_be_interrupted() -> None:
    """Ctrl-C in the middle of a turn ends the machine as well."""
    long = msgspec.structs.replace(SHORT, rounds=1000, seconds=1000.0)
    argv = [sys.executable, "-c", INTERRUPTED, msgspec.json.encode(long).decode()]
    with (
        no_machine_is_left() as processes,
        subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process,
    ):
        processes.add(process.pid)
        assert process.stdout is not None
        for line in process.stdout:
            if line == "turn\n":
                process.send_signal(signal.SIGINT)
                break
        assert process.stdout.read().splitlines()[-1] == "interrupted"
        assert process.wait() == 0
    # Its processes were killed and waited for, but those that traced them end by themselves.
    deadline = time.monotonic() + 60
    while _machines_of(process.pid):
        assert time.monotonic() < deadline, "a machine runs on"
        time.sleep(0.01)


def _machines_of(pid: int) -> list[str]:
    """Processes of user-mode Linux whose home is in a folder of that process."""
    home = f"{homes.private_root()}/{pid}-".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if home in path.read_bytes():
                found.append(path.parent.name)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
    return found
