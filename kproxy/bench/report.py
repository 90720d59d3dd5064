"""What every result says about where it was taken, and the file that it is kept in.

The fingerprint names what decides about figures and nobody's machine: no host name, no user, no
path, no time zone.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

import kproxy
from kproxy.bench.helper import ROOT
from kproxy.bench.path import ENDS, NODE, SETTINGS
from kproxy.bench.peers import Subject

#: Where results are kept.
FOLDER = ROOT / "build" / "bench"


def fingerprint(subjects: Iterable[Subject] = ()) -> dict[str, Any]:
    """Processor, memory, kernel, versions, and what the path's namespaces were set to."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "kproxy": kproxy.__version__,
        "subjects": {subject.name: subject.version() for subject in subjects},
        "load before": os.getloadavg()[0],
        "sysctls": {"ends": dict(ENDS), "node": dict(NODE), "settings": SETTINGS},
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()


def save(name: str, content: dict[str, Any]) -> Path:
    """Write ``name``.json with the day (UTC) in it; where it is."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    day = time.strftime("%Y-%m-%d", time.gmtime())
    path.write_bytes(msgspec.json.format(msgspec.json.encode({"date": day, **content}), indent=1))
    return path
