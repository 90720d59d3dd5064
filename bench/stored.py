"""What ``make bench`` keeps of a commit, and the one file of it that commits are compared by.

::

    build/bench/COMMIT/
        suites.json         of pytest-benchmark, with every time that it took
        relay-crr1.json …   what suites of paired rounds keep themselves (kproxy.bench.report)
        results.json        both, in the form that `kproxy bench compare` reads

COMMIT is ten digits; of a tree with changes, "-dirty-" and a digest of the changes follow. A later
run on the same commit adds to it and replaces what it measured again. No file names a host, a user,
a path or a time zone, so they can be handed on.
"""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec
from msgspec import field

import kproxy
from kproxy.bench import fingerprint, store
from kproxy.bench.helper import ROOT
from kproxy.bench.load import Kind, Load, Result
from kproxy.bench.measure import Taken
from kproxy.bench.path import SETTINGS
from kproxy.bench.results import FORMAT, Measure, Point, Results, Row, Section, Unit
from kproxy.bench.rounds import Figure
from kproxy.core.objects import Value

SUITES, RESULTS = "suites.json", store.NAME

#: Where there is no git, or no repository of it.
UNKNOWN = "unversioned"

#: Most samples of a benchmark that are compared; a comparison's work grows with their cube.
_MOST = 25

#: Digits of a commit, and of the digest of what was changed on top of it.
_COMMIT, _CHANGES = 10, 6


class Tree(Value, frozen=True):
    """What was measured: a ``commit`` (all digits), and whether anything was changed since."""

    commit: str = UNKNOWN
    changes: str = ""

    @property
    def name(self) -> str:
        """Of its folder."""
        short = self.commit if self.commit == UNKNOWN else self.commit[:_COMMIT]
        return f"{short}-dirty-{self.changes}" if self.changes else short


def tree(root: Path = ROOT) -> Tree:
    """The tree as it is now: files that git ignores do not count."""
    try:
        commit = _git(root, "rev-parse", "HEAD").decode().strip()
    except (OSError, subprocess.CalledProcessError):
        return Tree()
    changed = _git(root, "diff", "HEAD", "--binary", "--no-ext-diff")
    new = _git(root, "ls-files", "--others", "--exclude-standard", "-z").split(b"\0")[:-1]
    if not changed and not new:
        return Tree(commit)
    digest = hashlib.sha256(changed)
    for name in sorted(new):
        path = root / name.decode(errors="surrogateescape")
        digest.update(name + b"\0" + (path.read_bytes() if path.is_file() else b""))
    return Tree(commit, digest.hexdigest()[:_CHANGES])


def _git(root: Path, *words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True).stdout


def machine() -> dict[str, Any]:
    """Of the fingerprint what stays the same from run to run: pytest-benchmark warns when two files
    differ in it."""
    found = fingerprint.taken()
    return {name: getattr(found, name) for name in ("cpu", "cores", "memory", "kernel", "python")}


def merged(before: Mapping[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What pytest-benchmark is about to write, and what an earlier run measured that this one did
    not. Figures of another machine are not kept."""
    if before.get("machine_info") != now["machine_info"]:
        return now
    known = {each["fullname"] for each in now["benchmarks"]}
    older = [each for each in before["benchmarks"] if each["fullname"] not in known]
    return {**now, "benchmarks": [*older, *now["benchmarks"]]}


# --- one file of all ----------------------------------------------------------------------------


class _Part(NamedTuple):
    """Of a measure and its one row."""

    measure: Measure
    row: Row
    subjects: Mapping[str, str] = {}


class _Shown(NamedTuple):
    """A figure of a load. ``suffix`` tells it from the others of the same load, in a name;
    ``words`` do in a title."""

    unit: Unit
    of: Callable[[Result], float]
    suffix: str = ""
    words: str = ""


def _wait(share: float) -> Callable[[Result], float]:
    return lambda result: result.latency.percentile(share)


_RATE = _Shown("1/s", lambda result: result.rate)
_WAITS = (
    _Shown("s", _wait(50), "-p50", ", median"),
    _Shown("s", _wait(99), "-p99", ", 99th percentile"),
)


def _shown(load: Load) -> tuple[_Shown, ...]:
    """What of a load is compared."""
    match load.kind:
        case Kind.STREAM:
            return (_Shown("bit/s", lambda result: result.bits),)
        case Kind.UDP if not load.response_bytes:
            return (_Shown("1/s", lambda result: result.received_datagrams),)
    return (_RATE, *_WAITS)


class _Paired(Value, frozen=True):
    """A file of paired rounds; those of other suites have no rounds."""

    load: Load | None = None
    fingerprint: dict[str, Any] = field(default_factory=dict)
    rounds: tuple[dict[str, Taken], ...] = ()


def results(folder: Path) -> Results:
    """All that a folder, which has its tree's name, has to be compared: as the conductor says it.

    Suites with neither a benchmark of pytest's nor paired rounds take one sample, of which nothing
    could be said: what they wrote stays in files of its own.
    """
    parts = [*_of_suites(folder / SUITES), *_of_rounds(sorted(folder.glob("*.json")))]
    found = fingerprint.taken(SETTINGS)
    return Results(
        format=FORMAT,
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        kproxy=f"{kproxy.__version__} ({folder.name})",
        profile="suites",
        command="make bench",
        fingerprint=found,
        sections=(
            Section(
                "host",
                found.kernel,
                {name: what for part in parts for name, what in part.subjects.items()},
                tuple(part.measure for part in parts),
                tuple(part.row for part in parts),
            ),
        ),
    )


def _of_suites(path: Path) -> Iterator[_Part]:
    """Every function of pytest-benchmark's is a measure of one subject: there is no base."""
    if not path.exists():
        return
    for each in msgspec.json.decode(path.read_bytes())["benchmarks"]:
        name = each["fullname"].removeprefix("bench/").replace(".py::", ".")
        rounds = tuple({"kproxy": Figure(seconds)} for seconds in batches(each["stats"]["data"]))
        measure = Measure(name, "one call", "s", "lower", "programming")
        yield _Part(measure, Row(Point(name), "", rounds), {"kproxy": kproxy.__version__})


def batches(samples: Sequence[float], most: int = _MOST) -> list[float]:
    """No more than so many samples: of more the median of each part of what was taken in a row."""
    if len(samples) <= most:
        return list(samples)
    ends = [number * len(samples) // most for number in range(most + 1)]
    return [median(samples[first:last]) for first, last in pairwise(ends)]


def _of_rounds(paths: Iterable[Path]) -> Iterator[_Part]:
    for path in paths:
        if path.name in (SUITES, RESULTS):
            continue
        kept = msgspec.json.decode(path.read_bytes(), type=_Paired)
        if kept.load is None or not kept.rounds:
            continue
        base = next(iter(kept.rounds[0]))
        for shown in _shown(kept.load):
            name = f"{path.stem}{shown.suffix}"
            better = "lower" if shown.unit == "s" else "higher"
            measure = Measure(name, f"{kept.load}{shown.words}", shown.unit, better, "traffic")
            rounds = tuple(
                {
                    who: Figure(shown.of(one.result), one.result.started, one.result.failed)
                    for who, one in each.items()
                }
                for each in kept.rounds
            )
            yield _Part(measure, Row(Point(name), base, rounds), kept.fingerprint["subjects"])
