"""What was measured is kept: after each group, in place of what was there before."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from kproxy.bench import store
from kproxy.bench.keeper import Keeper
from tests.bench.machines import results, row, section, simulated

RESULT = results([section(row(simulated("normal", 1, 3, {"direct": 9.0, "ours": 6.0})))])
LESS = results([section()])


def test_the_last_result_stays(tmp_path: Path) -> None:
    """What was kept by the way is no other's, and is replaced."""
    said: list[str] = []
    keeper = Keeper(tmp_path / "out", ["report.html"], said.append)
    assert keeper.folder is None
    assert keeper.keep(LESS) == keeper.keep(RESULT) == keeper.folder == tmp_path / "out"
    assert store.read(tmp_path / "out") == RESULT
    assert [each.name for each in (tmp_path / "out").iterdir()] == [store.NAME]
    assert said == []


def test_somebody_else_was_faster(tmp_path: Path) -> None:
    """Theirs is left alone, ours goes beside it."""
    said: list[str] = []
    keeper = Keeper(tmp_path / "out", ["report.html"], said.append)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("theirs")
    assert keeper.keep(RESULT) == tmp_path / "out-2"
    assert store.read(tmp_path / "out-2") == RESULT
    assert len(said) == 1
    assert said[0].endswith(f"writing to {tmp_path / 'out-2'}")


def test_this_folder_has_one_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "." has no name to put a number to, but the folder has."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / store.NAME).write_text("theirs")
    monkeypatch.chdir(tmp_path / "here")
    assert Keeper(Path("."), (), lambda said: None).keep(RESULT) == tmp_path / "here-2"


def test_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where something stands in its place by now, the result goes to the temporary files; nobody
    has to be there to be told."""
    other = tmp_path / "tmp"
    other.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(other))

    def gone(sentence: str) -> None:
        raise BrokenPipeError

    keeper = Keeper(tmp_path / "out", (), gone)
    keeper.keep(LESS)
    (tmp_path / "out" / store.NAME).unlink()
    (tmp_path / "out").rmdir()
    (tmp_path / "out").write_text("in the way")
    folder = keeper.keep(RESULT)
    assert folder.parent == other
    assert store.read(folder) == RESULT
    assert keeper.keep(RESULT) == folder
