"""``kproxy bench`` as a user meets it: what is measured is kept, whatever ends it leaves nothing
behind, and two results are told apart."""

from __future__ import annotations

import getpass
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.bench import store
from kproxy.bench.results import Results
from tests.bench.machines import results, row, section, simulated
from tests.cli.test_commands import ENTRY, POWERLESS, kproxy
from tests.conftest import ROOT

#: What a run of a few seconds measures: direct routing twice and one mode.
FEW = ("--modes", "iptables-nft", "--peers", "none", "--kernel", "host")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--profile", "slow"], "no profile slow; there are quick, medium, full"),
        (["--modes", "iptables-nft,magic"], "no mode magic; there are userspace, "),
        (["--peers", "envoy"], "no peer envoy; there are relay, haproxy, "),
        (["--peers", "userspace"], "no peer userspace; there are relay, haproxy, "),
        (["--peers", "nowhere.py:Thing"], "nowhere.py: there is no such file"),
        (["--measures", "crr,speed"], "no measure speed; there are traffic: crr, "),
        (["--rounds", "0"], "--rounds"),
        (["--time", "soon"], "--time"),
        (["--time", "nan"], "nan is no number of seconds"),
        (["--time", "1e999"], "inf is no number of seconds"),
        (["--kernel", "other"], "--kernel"),
        (["compare", "/nowhere", "/nowhere"], "/nowhere: cannot be read: No such file"),
        (["compare", "/nowhere"], "AFTER"),
    ],
)
def test_what_there_is_not_is_refused(argv: list[str], told: str) -> None:
    """In one line, with what there is; before anything is measured."""
    done = kproxy("bench", *argv)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert told in done.stderr


def test_no_result_is_overwritten(tmp_path: Path) -> None:
    """That is said before an hour is spent."""
    store.write(results([]), tmp_path)
    done = kproxy("bench", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "has a result already" in done.stderr
    (tmp_path / store.NAME).rename(tmp_path / "report.html")
    done = kproxy("bench", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "has a file report.html already" in done.stderr


@pytest.mark.kernel
def test_a_folder_that_cannot_be_is_told_before_an_hour_is_spent(tmp_path: Path) -> None:
    """Whatever is in the way of it."""
    (tmp_path / "file").write_text("")
    done = kproxy("bench", "--out", str(tmp_path / "file" / "out"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr


@pytest.mark.kernel
def test_without_rights_it_is_one_line_and_status_3(tmp_path: Path) -> None:
    """And no folder is left."""
    done = kproxy("bench", "--out", str(tmp_path / "out"), prefix=POWERLESS)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "sudo" in done.stderr
    assert not (tmp_path / "out").exists()


# --- compare ------------------------------------------------------------------------------------


def kept(folder: Path, ours: float, seed: int) -> Path:
    """A result in which one subject has this speed."""
    speeds = {"direct": 9000.0, "direct again": 9000.0, "ours": ours}
    return store.write(results([section(row(simulated("normal", seed, 15, speeds)))]), folder)


@pytest.mark.parametrize(
    ("before", "after", "status", "told"),
    [
        (6000.0, 6000.0, 0, "0 slower or worse and 0 faster or better of 2 compared"),
        (6000.0, 4000.0, 1, "1 slower or worse and 0 faster or better of 2 compared"),
        (4000.0, 6000.0, 0, "0 slower or worse and 1 faster or better of 2 compared"),
    ],
)
def test_what_became_slower_is_the_exit_status(
    tmp_path: Path, before: float, after: float, status: int, told: str
) -> None:
    """Of files or of their folders; as JSON as well."""
    one, other = kept(tmp_path / "a", before, 1), kept(tmp_path / "b", after, 2)
    done = kproxy("bench", "compare", str(one), str(other.parent))
    assert (done.returncode, done.stderr) == (status, "")
    assert told in done.stdout
    plain = kproxy("bench", "compare", str(one.parent), str(other), "-o", "json")
    assert plain.returncode == status
    changes = {each["subject"]: each for each in json.loads(plain.stdout)["changes"]}
    assert changes["ours"]["change"] == pytest.approx(after / before, rel=0.1)


# --- for real -----------------------------------------------------------------------------------


#: A file that says that names of namespaces are a run's own.
_OWN = ".own"


class Run:
    """A run whose processes and namespaces can be told from everybody else's."""

    def __init__(self, folder: Path, *argv: str) -> None:
        self._mark = f"KPROXY_TEST_RUN={folder}"
        shell = f'mount -t tmpfs none /run/netns && >/run/netns/{_OWN} && exec "$@"'
        words = ["bench", *argv, "--out", str(folder)]
        self.process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", shell, "sh", *ENTRY, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "KPROXY_TEST_RUN": str(folder)},
            start_new_session=True,
            cwd=ROOT,
        )
        self.folder = folder

    def namespaces(self) -> set[str]:
        """Those that have names, seen from within."""
        names = set(os.listdir(f"/proc/{self.process.pid}/root/run/netns"))
        return names - {_OWN} if _OWN in names else set()

    def interrupt(self, number: signal.Signals) -> None:
        """As a terminal does: every process of the session gets it; twice, as people press it."""
        os.killpg(self.process.pid, number)
        os.killpg(self.process.pid, number)

    def ended(self) -> tuple[int, str, str]:
        """Its status and what it said, once it has ended. Nothing of it lives on."""
        said = self.process.communicate(timeout=240)
        # One that was killed may take a moment to go.
        deadline = time.monotonic() + 60
        while living := self._living():
            assert time.monotonic() < deadline, living
        return self.process.returncode, *said

    def _living(self) -> list[str]:
        """Processes that it has started."""
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self._mark.encode() in environment.read_bytes().split(b"\0"):
                    found.append((environment.parent / "cmdline").read_text())
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                # Gone meanwhile, or nobody's business: process 1 may be guarded even from root.
                continue
        return found


def words_of(content: object) -> Iterator[str]:
    """Every text in a result, keys too."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield key
            yield from words_of(value)
    elif isinstance(content, list):
        for each in content:
            yield from words_of(each)


def names_no_one(folder: Path) -> None:
    """No host, user, path, home or time zone."""
    zone = Path("/etc/timezone").read_text().strip() if Path("/etc/timezone").exists() else "/"
    for text in words_of(json.loads((folder / store.NAME).read_bytes())):
        words = set(re.split(r"[\s,;=()]+", text))
        assert not words & {socket.gethostname(), getpass.getuser(), zone}
        assert str(ROOT) not in text
        assert str(Path.home()) not in text
        assert str(folder) not in text
        # Paths at all: what begins with a slash.
        assert not any(word.startswith("/") for word in words)


def rounds_of(found: Results) -> dict[str, int]:
    """Measure -> rounds."""
    (host,) = found.sections
    return {row.point.measure: len(row.rounds) for row in host.rows}


@pytest.mark.kernel
def test_a_run(tmp_path: Path) -> None:
    """Everything asked for is measured, shown and kept, nothing is left, nobody is named."""
    out = tmp_path / "out"
    asked = (*FEW, "--measures", "crr,rr", "--rounds", "2")
    status, shown, said = Run(out, *asked).ended()
    assert status == 0, said
    assert shown.splitlines()[-1] == f"{out}: results.json, report.html and its pictures"
    assert "Traffic: 2 rounds, too few for intervals; verdicts take 11" in shown
    assert re.match(r"traffic: 2 rounds in (\d+ min )?\d+ s; 1 of 1 groups, 0 s left\n$", said)
    found = store.read(out)
    assert rounds_of(found) == {"crr": 2, "rr": 2}
    for each in found.sections[0].rows:
        for taken in each.rounds:
            assert list(taken) == ["direct", "direct again", "iptables-nft"]
            assert all(figure.value > 0 and not figure.failures for figure in taken.values())
        assert set(each.costs) == set(each.distributions) == set(each.rounds[0])
    assert found.command == (
        "kproxy bench --profile quick --modes iptables-nft --peers none --measures crr,rr "
        "--rounds 2 --kernel host"
    )
    assert found.partial == ""
    assert {"results.json", "report.html"} < set(os.listdir(out))
    names_no_one(out)


@pytest.mark.kernel
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_ends_it_leaves_whole_rounds_and_nothing_else(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    """The group that was over is kept, the one that was not begun or not whole is not; processes
    end, and namespaces are taken down by whoever made them."""
    out = tmp_path / "out"
    run = Run(out, *FEW, "--measures", "crr,convergence", "--rounds", "2")
    assert run.process.stderr is not None
    first = run.process.stderr.readline()
    assert first.startswith("traffic: 2 rounds"), first
    names = os.open(f"/proc/{run.process.pid}/root/run/netns", os.O_DIRECTORY)
    run.interrupt(number)
    ended, shown, said = run.ended()
    assert ended == status
    assert os.listdir(names) == [_OWN]
    os.close(names)
    assert shown.startswith("Partial: ")
    assert shown.splitlines()[-1] == f"{out}: results.json, report.html and its pictures"
    found = store.read(out)
    assert found.partial
    assert said == f"kproxy: {found.partial}; writing the rounds that were whole\n"
    assert rounds_of(found) == {"crr": 2}


@pytest.mark.kernel
def test_a_first_round_that_is_not_whole_is_nothing(tmp_path: Path) -> None:
    """No file with no figure."""
    out = tmp_path / "out"
    run = Run(out, *FEW, "--measures", "crr", "--rounds", "1000")
    # It has begun when a namespace is there; until the first round is whole it takes seconds.
    while not run.namespaces():
        assert run.process.poll() is None
    run.interrupt(signal.SIGINT)
    status, shown, said = run.ended()
    assert (status, shown) == (130, "")
    assert said == "kproxy: ended before the first round was whole; nothing is kept\n"
    assert not out.exists()


def test_help_is_quick_to_read() -> None:
    """It says what takes how long, and what the exit status of a comparison means."""
    assert "less than two minutes" in " ".join(kproxy("bench", "--help").stdout.split())
    assert "1: something has" in " ".join(kproxy("bench", "compare", "--help").stdout.split())
