"""Records of labs: what is written is read again, and a record of one thing names no other."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kproxy.errors import LabError, UsageError
from kproxy.lab import catalogue, state, wiring
from kproxy.lab.model import Allocations, LabState
from kproxy.lab.network import Network
from kproxy.lab.undo import Process, Undo, UndoLog, start_time


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records in a folder of the test's own."""
    monkeypatch.setattr(state, "RUN_DIR", tmp_path / "run")
    monkeypatch.setattr(state, "KEPT_DIR", tmp_path / "kept")
    return tmp_path


def some_lab(name: str = "t") -> LabState:
    topology = catalogue.load("standard")
    lab = LabState(
        name,
        topology,
        "iptables",
        "nft",
        Network(name),
        workloads=topology.workloads,
        manifests=({"kind": "Service", "metadata": {"name": "s", "labels": {"a": "b"}}},),
    )
    return wiring.place(lab)


def test_a_state_is_read_as_it_was_written() -> None:
    """Every field survives the file, raw manifests too."""
    state.save(some_lab())
    assert state.load("t") == some_lab()


def test_files_and_folders_are_roots_alone(records: Path) -> None:
    """0700 and 0600, whatever the umask is."""
    before = os.umask(0)
    try:
        state.save(some_lab())
        state.save_allocations("t", Allocations())
        UndoLog("t").begin()
        with state.lock("t"):
            pass
    finally:
        os.umask(before)
    modes = {
        str(path.relative_to(records)): path.stat().st_mode & 0o777
        for path in sorted(records.rglob("*"))
    }
    folders = {"run", "run/t", "kept", "kept/t"}
    assert folders <= modes.keys()
    assert modes == {name: 0o700 if name in folders else 0o600 for name in modes}


@pytest.mark.parametrize(
    ("there", "hint"),
    [((), "kproxy lab up"), (("other",), "other"), (("t",), "kproxy lab down --name t")],
)
def test_a_lab_that_is_not_up_is_an_error_with_advice(there: tuple[str, ...], hint: str) -> None:
    """Nothing there, another one there, or this one half made: each has its next step."""
    for name in there:
        UndoLog(name).begin()
    assert state.find("t") is None
    with pytest.raises(LabError) as caught:
        state.load("t")
    assert hint in caught.value.hint


def test_a_record_of_another_version_says_how_to_go_on() -> None:
    """A file that does not decode is no traceback."""
    UndoLog("t").begin()
    (state.lab_dir("t") / "state.json").write_text('{"name": 5}')
    with pytest.raises(LabError, match="lab down --name t"):
        state.load("t")


def test_undo_log_gives_back_what_is_there_in_order() -> None:
    """Made and gone cancel out; the rest stands in the order in which it was made."""
    log = UndoLog("t")
    log.begin()
    one, two = Process(1, 10, "kproxy", "node1"), Process(2, 20, "pods")
    log.namespace("kp-t-a")
    log.process(one)
    log.namespace("kp-t-b")
    log.process(two)
    log.namespace_gone("kp-t-a")
    log.process_gone(one)
    log.namespace("kp-t-a")
    assert log.read() == Undo(("kp-t-b", "kp-t-a"), (two,))


def test_a_line_cut_short_by_a_crash_counts_as_absent() -> None:
    """The log is readable at every byte."""
    log = UndoLog("t")
    log.begin()
    log.namespace("kp-t-a")
    whole = (state.lab_dir("t") / "undo.jsonl").read_bytes()
    log.namespace("kp-t-b")
    text = (state.lab_dir("t") / "undo.jsonl").read_bytes()
    for end in range(len(whole), len(text)):
        (state.lab_dir("t") / "undo.jsonl").write_bytes(text[:end])
        assert log.read() == Undo(("kp-t-a",))


def test_a_log_is_begun_once() -> None:
    """Two makers of one lab cannot both believe that they were first."""
    UndoLog("t").begin()
    with pytest.raises(LabError, match="already"):
        UndoLog("t").begin()
    assert UndoLog("u").read() == Undo()


def test_forgetting_a_lab_keeps_its_allocations() -> None:
    """Cluster IPs and node ports outlive the lab until they are forgotten by name."""
    given = Allocations(
        {"default/web": ("10.96.0.9", "fd00:10:96::9")}, {"default/web/80/TCP": 30123}
    )
    state.save_allocations("t", given)
    state.save(some_lab())
    assert state.list_labs() == ("t",)
    state.forget("t")
    assert state.list_labs() == ()
    assert state.load_allocations("t") == given
    assert state.list_allocations() == ("t",)
    state.forget_allocations("t")
    assert state.load_allocations("t") == Allocations()


def test_a_process_is_known_by_its_start_time() -> None:
    """The same pid with another start time is another process; a zombie has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = start_time(child.pid)
        assert started is not None
        assert Process(child.pid, started, "pods").alive()
        assert not Process(child.pid, started + 1, "pods").alive()
        assert child.stdin is not None
        child.stdin.close()
        # Waits for the end and leaves the zombie.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not Process(child.pid, started, "pods").alive()
    assert start_time(child.pid) is None


def test_the_lock_lets_one_in_at_a_time() -> None:
    """The second one enters after the first has left."""
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        waiting.set()
        with state.lock("t"):
            order.append("second")

    thread = threading.Thread(target=second)
    with state.lock("t"):
        thread.start()
        waiting.wait()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_draft_elsewhere_leaves_nothing_beside_the_file(tmp_path: Path) -> None:
    """A watched folder never holds a half-written file."""
    target = tmp_path / "watched" / "x.json"
    state.write_atomically(target, b"one", draft=tmp_path / "draft")
    state.write_atomically(target, b"two", draft=tmp_path / "draft")
    assert [path.name for path in target.parent.iterdir()] == ["x.json"]
    assert target.read_bytes() == b"two"


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "../kept", "A", "a" * 25, "x\ny", "a.b"])
def test_only_a_lab_s_name_becomes_a_path(records: Path, name: str) -> None:
    """A word that is no name is refused before it names a folder; nothing is read or removed."""
    state.save_allocations("t", Allocations())
    state.save(some_lab())
    before = sorted(records.rglob("*"))
    with pytest.raises(UsageError, match="no name for a lab"):
        state.find(name)
    with pytest.raises(UsageError, match="no name for a lab"):
        state.forget_allocations(name)
    with pytest.raises(UsageError, match="no name for a lab"), state.lock(name):
        pass
    assert sorted(records.rglob("*")) == before


def test_the_lock_s_file_goes_with_the_lab() -> None:
    """It stays while the lab has a folder; one who waited for it holds a lock that counts."""
    path = state.RUN_DIR / ".t.lock"
    with state.lock("t"):
        state.save(some_lab())
    assert path.exists()
    inside: list[str] = []
    started = threading.Event()

    def waiter() -> None:
        started.set()
        with state.lock("t"):
            inside.append("waiter")
            assert path.exists()

    with state.lock("t"):
        thread = threading.Thread(target=waiter)
        thread.start()
        started.wait()
        state.forget("t")
        assert inside == []
    thread.join(timeout=60)
    assert inside == ["waiter"]
    assert not path.exists()
