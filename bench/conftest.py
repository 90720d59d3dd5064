"""Benchmarks are functions named ``bench_…`` in files named ``bench_….py``."""

from __future__ import annotations

import faulthandler
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def sysctl_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Namespaces end without a cleanup: what is recorded of their sysctls goes with the rest."""
    monkeypatch.setenv("KPROXY_RECORDS", str(tmp_path / "records"))


@pytest.fixture(autouse=True)
def no_time_limit() -> None:
    """Some take ten minutes: the limit of tests, which ends the whole run, is not for them."""
    faulthandler.cancel_dump_traceback_later()


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
