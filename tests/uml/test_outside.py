"""Tests that this kernel cannot run: run in a machine, told in their own name, or failed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kproxy import doctor
from tests.conftest import ROOT
from tests.uml.outside import NEEDS

#: Lacking here, or these tests would run here: user-mode Linux does the same in either case.
pytestmark = pytest.mark.kernel

SOURCE = """
import os, pathlib, threading
import pytest

@pytest.fixture(scope="module")
def once():
    yield os.uname().release

@pytest.mark.ipvs
def test_inside(once):
    assert pathlib.Path("/proc/net/ip_vs").exists()

@pytest.mark.ipvs
@pytest.mark.parametrize("word", ["a b", "[x]::y"])
def test_with_odd_names(once, word):
    assert once != pathlib.Path({told!r}).read_text()

@pytest.mark.ipvs
def test_that_fails():
    print("said inside")
    assert 1 == 2

@pytest.mark.ipvs
def test_left_out():
    assert 0

def test_alone():
    assert [one.name for one in threading.enumerate()] == ["MainThread"]

def test_here():
    assert os.uname().release == pathlib.Path({told!r}).read_text()
"""

ENDS = """
import os, pytest

@pytest.mark.ipvs
def test_that_ends_the_machine():
    open("/dev/kmsg", "w").write("<0>its last words\\n")
    open("/proc/sysrq-trigger", "w").write("o")
    import time
    time.sleep(100)

@pytest.mark.ipvs
def test_after():
    pass
"""


def run(folder: Path, source: str, *options: str) -> subprocess.CompletedProcess[str]:
    """pytest with this folder's hooks on one file elsewhere."""
    file = folder / "test_it.py"
    told = folder / "release"
    told.write_text(os.uname().release)
    file.write_text(source.replace("{told!r}", repr(str(told))))
    (folder / "pytest.ini").write_text(
        "[pytest]\naddopts = --import-mode=importlib\nmarkers =\n"
        + "".join(f"    {mark}: needs a kernel\n" for mark in NEEDS)
    )
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"),
            *(f"--rootdir={folder}", f"--config-file={folder / 'pytest.ini'}", "-v", *options),
            str(file),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_each_is_told_in_its_own_name(tmp_path: Path) -> None:
    """Those inside as those here; what is deselected runs nowhere; a failure comes with its
    output."""
    ended = run(tmp_path, SOURCE, "-k", "not left_out and not alone")
    lines = ended.stdout.splitlines()
    for name in ("test_here", "test_inside", "test_with_odd_names[a b]"):
        assert any(f"::{name} PASSED" in line for line in lines), ended.stdout
    assert any("test_that_fails FAILED" in line for line in lines)
    assert "said inside" in lines
    assert any("1 failed, 4 passed, 2 deselected" in line for line in lines), ended.stdout
    assert ended.returncode == 1


def test_a_machine_that_dies_fails_what_is_left(tmp_path: Path) -> None:
    """With its last words. (Of a test that has just passed, the report may be lost with it.)"""
    ended = run(tmp_path, ENDS)
    assert "::test_that_ends_the_machine FAILED" in ended.stdout
    assert "::test_after FAILED" in ended.stdout
    assert "its last words" in ended.stdout


@pytest.mark.parametrize("options", [["-k", "alone"], ["--collect-only"]], ids=" ".join)
def test_nothing_is_booted_for_nothing(tmp_path: Path, options: list[str]) -> None:
    """When no test that is to run needs it, there is no machine."""
    ended = run(tmp_path, SOURCE, *options)
    assert ended.returncode == 0, ended.stdout
    assert "test_alone" in ended.stdout


def test_where_no_machine_can_be_each_test_fails(tmp_path: Path) -> None:
    """And says what is missing; it is not skipped. Others run all the same."""
    gone = "import kproxy.lab.uml.machine as m\nm.KERNEL = 'linux.uml-is-not-there'\n"
    ended = run(tmp_path, gone + SOURCE, "-k", "inside or here")
    assert "::test_here PASSED" in ended.stdout
    assert "::test_inside FAILED" in ended.stdout
    assert "apt-get install" in ended.stdout


@pytest.mark.parametrize("mark", NEEDS)
def test_the_doctor_knows_what_a_mark_needs(mark: str) -> None:
    """A mark names a row of the doctor's; what it says there is a whole sentence either way."""
    found = doctor.tried(NEEDS[mark])
    assert found.why
    assert found.ok or found.remedy
