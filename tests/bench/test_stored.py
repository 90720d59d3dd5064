"""What ``make bench`` keeps: each commit has a folder, nothing in it names anybody, and the folders
of two commits can be compared."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bench import compare, stored
from kproxy.bench import store
from kproxy.bench.histogram import Histogram
from kproxy.bench.load import Kind, Load, Result
from kproxy.bench.measure import Taken
from kproxy.bench.usage import Memory
from kproxy.errors import UsageError
from tests.conftest import ROOT


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One commit with one file; another file is ignored."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init")
    (folder / "kept").write_text("1")
    (folder / ".gitignore").write_text("ignored\n")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    return folder


def test_a_commit_has_a_name_and_so_has_a_changed_tree(repository: Path) -> None:
    """Ignored files change nothing; any other does, each in its own way; taken back, so is the
    name."""
    clean = stored.tree(repository)
    assert clean.name == clean.commit[:10]
    assert clean.changes == ""
    (repository / "ignored").write_text("x")
    assert stored.tree(repository) == clean
    names = {clean.name}
    for file, content in (("kept", "2"), ("kept", "3"), ("new", "1"), ("new", "2")):
        (repository / file).write_text(content)
        names.add(stored.tree(repository).name)
    assert len(names) == 5
    assert all(name.startswith(clean.name) for name in names)
    (repository / "kept").write_text("1")
    (repository / "new").unlink()
    assert stored.tree(repository) == clean


def test_without_git_there_is_a_name_as_well(tmp_path: Path) -> None:
    """An unpacked archive is measured, too."""
    assert stored.tree(tmp_path).name == "unversioned"


HERE, ELSEWHERE = {"cpu": "one"}, {"cpu": "another"}


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        ({"machine_info": HERE, "benchmarks": [{"fullname": "a", "at": 1}]}, ["a", "b"]),
        ({"machine_info": HERE, "benchmarks": [{"fullname": "b", "at": 1}]}, ["b"]),
        ({"machine_info": ELSEWHERE, "benchmarks": [{"fullname": "a", "at": 1}]}, ["b"]),
    ],
    ids=["another one", "the same", "another machine"],
)
def test_a_later_run_adds_and_replaces(before: dict[str, object], kept: list[str]) -> None:
    """What was measured again is as it was measured last."""
    now = {"machine_info": HERE, "benchmarks": [{"fullname": "b", "at": 2}]}
    found = stored.merged(before, now)["benchmarks"]
    assert [each["fullname"] for each in found] == kept
    assert found[-1]["at"] == 2


def taken(load: Load, completed: int) -> Taken:
    result = Result(
        load=load,
        began=0,
        ended=2_000_000_000,
        started=completed + 1,
        completed=completed,
        bytes_in=completed * 1000,
        bytes_out=0,
        failures={"reset": 1},
        latency=Histogram.of([2_000_000, 2_000_000, 9_000_000]),
        connect=Histogram({}),
        series=(),
        cpu=0.0,
        received_datagrams=70.0,
    )
    return Taken(result, 2.0, 0.0, 0.0, 0.0, Memory(0, 0))


def keep(folder: Path, name: str, load: Load, *figures: int) -> None:
    content = {
        "date": "2026-01-01",
        "fingerprint": {"subjects": {"direct": "Linux", "ours": "kproxy"}},
        "load": load,
        "rounds": [
            {"direct": taken(load, 2 * each), "ours": taken(load, each)} for each in figures
        ],
    }
    (folder / f"{name}.json").write_bytes(msgspec.json.encode(content))


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (
            Load(Kind.CRR),
            {
                "it": ("1/s", "higher", 50),
                "it-p50": ("s", "lower", 2e-3),
                "it-p99": ("s", "lower", 9e-3),
            },
        ),
        (Load(Kind.STREAM), {"it": ("bit/s", "higher", 400_000)}),
        (Load(Kind.UDP, response_bytes=0), {"it": ("1/s", "higher", 70)}),
    ],
    ids=["connections", "stream", "one way"],
)
def test_paired_rounds_are_kept_with_their_base(
    load: Load, expected: dict[str, tuple[str, str, float]], tmp_path: Path
) -> None:
    """Each figure of a load is a measure; failures stand beside it."""
    keep(tmp_path, "it", load, 100, 200)
    (section,) = stored.results(tmp_path).sections
    measures = {each.name: each for each in section.measures}
    assert measures.keys() == expected.keys()
    for row in section.rows:
        unit, better, first = expected[row.point.measure]
        measure = measures[row.point.measure]
        assert (measure.unit, measure.better, row.base) == (unit, better, "direct")
        assert row.rounds[0]["ours"].value == pytest.approx(first, rel=1e-3)
        assert (row.rounds[1]["ours"].attempts, row.rounds[1]["ours"].failures) == (201, 1)
    assert section.subjects == {"direct": "Linux", "ours": "kproxy"}


@pytest.mark.parametrize("count", [1, 24, 25, 26, 1000])
def test_many_samples_become_fewer(count: int) -> None:
    """In the order in which they were taken, every one of them in one part."""
    samples = [float(number) for number in range(count)]
    found = stored.batches(samples, 25)
    assert len(found) == min(count, 25)
    assert found == sorted(found)
    assert sum(found) / len(found) == pytest.approx(sum(samples) / count, abs=0.5)


def test_single_samples_are_not_compared(tmp_path: Path) -> None:
    """They have no rounds, so they make no row."""
    (tmp_path / "switch.json").write_text('{"rows": [{"took": 0.7}], "rate": 500}')
    assert stored.results(tmp_path).sections[0].rows == ()


def test_results_are_found_by_commit_and_by_name(repository: Path, tmp_path: Path) -> None:
    """By what git takes for a commit, by the folder's name, and else there is a word on what is
    there."""
    clean = stored.tree(repository).name
    for name in (clean, f"{clean}-dirty-abc"):
        folder = tmp_path / "kept" / name
        folder.mkdir(parents=True)
        store.write(stored.results(folder), folder)
    for word, name in (
        ("HEAD", clean),
        (clean[:7], clean),
        (f"{clean}-dirty-abc", f"{clean}-dirty-abc"),
    ):
        assert compare.located(word, tmp_path / "kept", repository).parent.name == name
    (repository / "kept").write_text("2")
    git(repository, "commit", "-a", "-m", "second")
    for word in ("HEAD", "nonsense", "--help", "", "../kept"):
        with pytest.raises(UsageError, match=f"there is {clean}, {clean}-dirty-abc"):
            compare.located(word, tmp_path / "kept", repository)


def test_a_run_is_kept_and_names_nobody(tmp_path: Path) -> None:
    """The suites' own hooks: two runs on one tree gather in one folder, in no file of which a host,
    a user, a path or a branch is named; both can be compared with themselves."""
    for chosen in ("pack and ipv4", "pack and ipv6"):
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "bench/bench_codec.py", "-p", "no:cacheprovider"),
                *("--store", str(tmp_path), "-k", chosen),
            ],
            cwd=ROOT,
            # No repository is found, so nobody who works on the tree meanwhile is in the way.
            env={**os.environ, "GIT_DIR": str(tmp_path / "none")},
            check=True,
            capture_output=True,
        )
    (folder,) = tmp_path.iterdir()
    assert folder.name == stored.UNKNOWN
    suites = msgspec.json.decode((folder / stored.SUITES).read_bytes())
    assert [each["params"]["family"] for each in suites["benchmarks"]] == [4, 6]
    kept = store.read(folder)
    assert [len(row.rounds) for row in kept.sections[0].rows] == [9, 9]
    for file in folder.iterdir():
        text = file.read_text()
        for name in (socket.gethostname(), getpass.getuser(), str(ROOT), str(tmp_path)):
            assert f'"{name}' not in text
        assert '"branch"' not in text
        assert not os.environ.get("TZ") or os.environ["TZ"] not in text
    assert compare.main([folder.name, folder.name], tmp_path) == 0
    assert compare.main(["nonsense"], tmp_path) == UsageError.exit_status
