"""The file of results: what goes in comes out, it is written whole, and what is none is refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kproxy.bench import html, pictures, store
from kproxy.bench.results import Absent, Cost, Point, Results, Row, Section
from kproxy.bench.rounds import Figure
from kproxy.errors import KernelError, UsageError
from tests.bench.machines import RATE, results

SECTION = Section(
    name="host",
    kernel="6.18",
    subjects={"direct": "Linux 6.18"},
    measures=(RATE,),
    rows=(
        Row(
            point=Point("rate", 1000.0, "last"),
            base="direct",
            rounds=({"direct": Figure(52_000.5, 1000), "ours": Figure(40_000.0, 1000, 2)},),
            distributions={"ours": {17: 3, 2048: 1}},
            costs={"ours": Cost(proxy=0.5, memory=1e6)},
        ),
    ),
    absent=(Absent("ipvs", "rate", "no module"),),
    seconds=12.5,
)
RESULTS = results([SECTION])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """From the file or its folder, which is made; everyone may read it."""
    written = store.write(RESULTS, tmp_path / "deep" / "down")
    assert store.read(written) == store.read(written.parent) == RESULTS
    assert written.stat().st_mode & 0o777 == 0o644
    assert os.listdir(written.parent) == ["results.json"]


def test_a_reader_sees_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full the old one stays, and nothing lies beside it."""
    store.write(RESULTS, tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KernelError, match="No space left on device"):
        store.write(results([]), tmp_path)
    assert store.read(tmp_path) == RESULTS
    assert os.listdir(tmp_path) == ["results.json"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is no result of kproxy bench"),
        (b"nonsense", "is no result of kproxy bench"),
        (b"\xff\xfe", "is no result of kproxy bench"),
        (b"[]", "is no result of kproxy bench"),
        (b"{}", "has format of its own"),
        (b'{"format": 99}', "has format 99, this kproxy reads 1"),
        (b'{"format": 1}', "missing required field"),
        (store.encode(RESULTS).replace(b'"format": 1', b'"format": 2'), "has format 2"),
        (store.encode(RESULTS)[:-200], "is no result of kproxy bench"),
        (store.encode(RESULTS).replace(b"52000.5", b'"fast"'), "Expected `float`, got `str`"),
        (
            store.encode(RESULTS).replace(b'"name":"rate"', b'"name":"other"'),
            "it does not say what rate is",
        ),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    """In one line that says which file it is."""
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(UsageError) as refused:
        store.read(path)
    assert told in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there() -> None:
    """Is named."""
    with pytest.raises(UsageError, match=r"/nowhere/results.json: cannot be read: No such file"):
        store.read(Path("/nowhere/results.json"))


def test_no_result_is_overwritten(tmp_path: Path) -> None:
    """A folder that has one is refused, and the next free name is taken where nobody named one."""
    store.free(tmp_path)
    store.write(RESULTS, tmp_path)
    with pytest.raises(UsageError, match="has a result already"):
        store.free(tmp_path)
    names = []
    for _ in range(3):
        folder = store.fresh("2026-01-02", tmp_path)
        folder.mkdir()
        names.append(folder.name)
    assert names == [
        "kproxy-bench-2026-01-02",
        "kproxy-bench-2026-01-02-2",
        "kproxy-bench-2026-01-02-3",
    ]


@pytest.mark.parametrize("name", ["report.html", "first-packet.png", "uml-costs.png"])
def test_files_of_others_are_not_overwritten(tmp_path: Path, name: str) -> None:
    """What goes beside a result is refused by its name, a link that leads nowhere as well; other
    files are no reason. A folder beside it has the next free number."""
    beside = (html.NAME, *pictures.files())
    (tmp_path / "notes.txt").write_text("")
    store.free(tmp_path, beside)
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(UsageError, match=f"has a file {name} already"):
        store.free(tmp_path, beside)
    assert store.beside(tmp_path) == tmp_path.with_name(f"{tmp_path.name}-2")


def test_a_folder_is_tried_before_it_is_needed(tmp_path: Path) -> None:
    """One that is there, and one that can be made; nothing is left of the trial."""
    for folder in (tmp_path, tmp_path / "deep" / "down"):
        store.prepare(folder)
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(KernelError, match="out: cannot be written: Not a directory"):
        store.prepare(tmp_path / "file" / "out")


def test_the_file_of_an_older_reader(tmp_path: Path) -> None:
    """A field that was added since is left alone: the format is the same."""
    content = store.encode(RESULTS).replace(b'"partial"', b'"of another version": 1, "partial"')
    assert store.decode(content, "") == RESULTS


def test_a_result_is_a_value() -> None:
    """Nothing of it can be edited behind somebody's back."""
    assert isinstance(RESULTS, Results)
    with pytest.raises(AttributeError):
        RESULTS.profile = "other"  # type: ignore[misc]
