"""What the suites in ``bench/`` say about where they were taken, and the file it is kept in."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

import kproxy
from kproxy.bench import fingerprint as machine
from kproxy.bench.helper import ROOT
from kproxy.bench.path import SETTINGS
from kproxy.bench.peers import Subject

#: Where results are kept.
FOLDER = ROOT / "build" / "bench"


def fingerprint(subjects: Iterable[Subject] = ()) -> dict[str, Any]:
    """:class:`~kproxy.bench.results.Fingerprint` as a dict, with the version of kproxy and of the
    subjects that were measured."""
    return {
        **msgspec.to_builtins(machine.taken(SETTINGS)),
        "kproxy": kproxy.__version__,
        "subjects": {subject.name: subject.version() for subject in subjects},
    }


def save(name: str, content: dict[str, Any]) -> Path:
    """Write ``name``.json with the day (UTC) in it; where it is."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    day = time.strftime("%Y-%m-%d", time.gmtime())
    path.write_bytes(msgspec.json.format(msgspec.json.encode({"date": day, **content}), indent=1))
    return path
