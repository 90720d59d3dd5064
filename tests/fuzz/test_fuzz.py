"""The fuzzer finds nothing in the time that it has here, and would find what there is.

Every run looks at the same. ``KPROXY_FUZZ_SECONDS=600 pytest tests/fuzz`` for a longer look, each
time at something else.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.fastpath.samples import SAMPLES
from tests.fuzz.fuzz_engine import packed, sanitized, unpacked

ASKED_FOR = os.environ.get("KPROXY_FUZZ_SECONDS")
LOOK = ["--seconds", ASKED_FOR] if ASKED_FOR else ["--seconds", "30", "--seed", "1"]


@pytest.fixture(scope="module", autouse=True)
def fuzz_build():
    """Its build, brought up to date: setuptools knows what it is made of."""
    made = subprocess.run(
        [sys.executable, "setup.py", "build_ext"],
        env={**os.environ, "KPROXY_FUZZ": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr


def test_fuzz(tmp_path: Path):
    """No crash, no byte too far, nothing that the twin sees differently."""
    log = tmp_path / "last-talks"
    ended = sanitized(["-m", "tests.fuzz.fuzz_engine", "--inside", *LOOK, "--log", str(log)])
    assert ended.returncode == 0, f"{ended.stderr}\n{log.read_bytes().hex()}"
    assert "talks" in ended.stdout


OVERRUN = """
from tests.fuzz.fuzz_engine import load
fastpath = load()
batch = fastpath.Batch(1, 100, True)
batch.put(0, b"x", capacity=1)
fastpath._fuzz_overrun(batch)
"""
NEWS = """
from tests.fuzz.fuzz_engine import Runner, load
from tests.fastpath.samples import SAMPLES
fastpath = load()
runner = Runner(fastpath)
fastpath._fuzz_news()
news = []
for name in ("tcp4 syn", "tcp4 syn", "udp6 refused"):
    runner.run(((0, 0, False, SAMPLES[name]),))
    news.append(fastpath._fuzz_news())
assert news[0] and news[2], news
"""


def test_sanitizer_looks():
    """One byte past a packet's memory ends the process, with the place."""
    ended = sanitized(["-c", OVERRUN])
    assert ended.returncode == 99
    assert "heap-buffer-overflow" in ended.stderr


def test_edges_are_counted():
    """A packet of a new kind takes edges that no packet took before."""
    ended = sanitized(["-c", NEWS])
    assert ended.returncode == 0, ended.stderr


def test_log_can_be_replayed():
    """What is written before a talk is run gives the same talk again."""
    talks = [((3, 9, True, bytes(10) + packet), (0, 0, False, b"")) for packet in SAMPLES.values()]
    assert list(unpacked(b"".join(map(packed, talks)))) == talks
