"""Benchmarks are functions named ``bench_…`` in files named ``bench_….py``.

``--store`` (``make bench``) keeps what they find in a folder of the commit: see
:mod:`bench.stored`.
"""

from __future__ import annotations

import faulthandler
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench import stored
from kproxy.bench import report, store

_FOLDER = pytest.StashKey[Path]()
_TREE = pytest.StashKey[stored.Tree]()


@pytest.fixture(autouse=True)
def sysctl_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Namespaces end without a cleanup: what is recorded of their sysctls goes with the rest."""
    monkeypatch.setenv("KPROXY_RECORDS", str(tmp_path / "records"))


@pytest.fixture(autouse=True)
def no_time_limit() -> None:
    """Some take ten minutes: the limit of tests, which ends the whole run, is not for them."""
    faulthandler.cancel_dump_traceback_later()


# --- what is run --------------------------------------------------------------------------------


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """The files are collected whatever the name pattern of tests is."""
    if file_path.name.startswith("bench_") and file_path.suffix == ".py":
        module: pytest.Module = _Benchmarks.from_parent(parent, path=file_path)
        return module
    return None


class _Benchmarks(pytest.Module):
    """A module whose functions need another beginning than ``test``."""

    def funcnamefilter(self, name: str) -> bool:
        return name.startswith("bench_")


# --- what is kept -------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--store",
        type=Path,
        metavar="FOLDER",
        help="keep what benchmarks find in FOLDER/COMMIT, to be compared with other commits",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """The tree is looked at before anything is measured: it may change meanwhile."""
    config.stash[_TREE] = stored.tree()
    above = config.getoption("--store")
    if above is None or config.option.collectonly:
        return
    folder = (config.invocation_params.dir / above / config.stash[_TREE].name).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config.stash[_FOLDER] = report.FOLDER = folder
    config.option.benchmark_json = folder / stored.SUITES


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    """Instead of the plugin's own, which has the host's name in it."""
    return stored.machine()


def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict[str, Any]:
    """Instead of the plugin's own, which has a branch, a folder and a time zone in it."""
    tree = config.stash[_TREE]
    return {"id": tree.commit, "dirty": bool(tree.changes), "project": "kproxy"}


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """What an earlier run on the same commit has measured stays."""
    path = config.stash.get(_FOLDER, Path()) / stored.SUITES
    if path.is_file():
        before = msgspec.json.decode(path.read_bytes())
        output_json.update(stored.merged(before, output_json))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Also of a run that was broken off: what it has found stands by itself."""
    folder = session.config.stash.get(_FOLDER, None)
    if folder is not None and any(folder.glob("*.json")):
        store.write(stored.results(folder), folder)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Where it is, and what to do with it."""
    folder = config.stash.get(_FOLDER, None)
    if folder is not None:
        terminalreporter.section("kept", sep="-")
        terminalreporter.line(f"{folder}; make bench-compare A=COMMIT compares")
