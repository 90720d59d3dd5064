"""The account of what did not run: a skip for an unlisted reason fails the run and is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

RUNS = "def test_that_runs():\n    assert True\n"


def run(folder: Path, source: str, *options: str) -> subprocess.CompletedProcess[str]:
    """pytest, with the hooks of this folder's conftest, on one file elsewhere."""
    file = folder / "test_it.py"
    file.write_text(f"import pytest\n{source}{RUNS}")
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"),
            *(f"--rootdir={folder}", *options, str(file)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize(
    ("source", "status", "line"),
    [
        ("", 0, "nothing: every test ran"),
        (
            "def test_skipped():\n    pytest.skip('no reason at all')\n",
            1,
            "1 skipped: no reason at all (not an allowed reason: fails)",
        ),
        (
            "@pytest.mark.skip(reason='later')\ndef test_skipped():\n    pass\n",
            1,
            "1 skipped: later (not an allowed reason: fails)",
        ),
        (
            "pytest.skip('whole file', allow_module_level=True)\n",
            1,
            "1 skipped: whole file (not an allowed reason: fails)",
        ),
        (
            "@pytest.mark.xfail(reason='known')\ndef test_known():\n    assert False\n",
            0,
            "1 failed as expected: known",
        ),
    ],
    ids=["all run", "called", "marked", "whole file", "expected failure"],
)
def test_what_did_not_run(tmp_path: Path, source: str, status: int, line: str):
    """Every kind of not running is named; only an unlisted skip fails an otherwise good run."""
    ended = run(tmp_path, source)
    assert line in ended.stdout.splitlines()
    assert ended.returncode == status, ended.stdout


def test_deselected_tests_are_counted(tmp_path: Path):
    """-k leaves tests out: that is no failure, and is said."""
    ended = run(tmp_path, "def test_left_out():\n    assert False\n", "-k", "that_runs")
    assert "1 deselected by -k, -m or --deselect" in ended.stdout.splitlines()
    assert ended.returncode == 0, ended.stdout
