"""Runs the tests that this host's kernel cannot run in user-mode Linux, beside all others.

A test says by a mark of :data:`NEEDS` what kernel it needs. On a host that has it, the test runs as
any other. Else one machine is booted when the session begins, a pytest inside runs those tests that
were selected, one after the other, and each of them reports here in its own name, at the end of the
session. A machine that dies fails all that it has not run, with its last words.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from kproxy import doctor
from kproxy.errors import KproxyError
from kproxy.lab.uml.boot import Boot

#: Mark -> what the kernel must have, by the name that `kproxy doctor` has for it.
NEEDS = {"ipvs": "ipvs", "sctp": "SCTP", "netem": "netem"}

#: Set inside: what is not there either fails there.
_INSIDE = "KPROXY_TESTS_INSIDE"

#: Of the time that a test may take here (faulthandler_timeout): what it may take inside.
_SHARE = 0.8

#: Lines of the run inside that are shown when it broke off.
_LAST_LINES = 30


class Machine:
    """The machine of a session, and what has been said of each test in it."""

    def __init__(self, config: pytest.Config, nodeids: Iterable[str]) -> None:
        self._config = config
        self._nodeids = tuple(nodeids)
        self._boot = Boot()
        self._news = threading.Condition()
        self._reports: dict[str, list[pytest.TestReport]] = {}
        self._end = ""
        self._line = b""
        self._words = b""
        self._thread = threading.Thread(target=self._live, name="user-mode Linux")
        self._thread.start()

    def reports(self, nodeid: str) -> list[pytest.TestReport] | str:
        """The reports of a test, as soon as it is over; or why there are none."""
        with self._news:
            while not self._complete(nodeid) and not self._end:
                self._news.wait()
            return self._reports[nodeid] if self._complete(nodeid) else self._end

    def _complete(self, nodeid: str) -> bool:
        said = self._reports.get(nodeid)
        return bool(said) and said[-1].when == "teardown"

    def close(self) -> None:
        self._boot.abandon()
        self._thread.join()

    def _live(self) -> None:
        try:
            with self._boot:
                status = self._boot.run(self._command(), take=self._take)
            why = f"pytest in user-mode Linux ended with status {status} without running it"
        except (KproxyError, OSError) as error:
            why = str(error)
        lines = self._words.decode(errors="replace").splitlines()[-_LAST_LINES:]
        with self._news:
            self._end = "\n".join([why, *lines])
            self._news.notify_all()

    def _command(self) -> list[str]:
        config = self._config
        options = [f"--rootdir={config.rootpath}", "-p", "no:cacheprovider", "--color=no"]
        options += [f"--config-file={config.inipath}"] if config.inipath else []
        # Before ours: who hangs inside is told with its stack, and fails what is left.
        limit = float(config.getini("faulthandler_timeout")) * _SHARE
        options += ["-o", f"faulthandler_timeout={limit}"] * bool(limit)
        for plugin in ("tests.uml.inside", *config.getoption("plugins")):
            options += ["-p", plugin]
        tests = [f"{config.rootpath}/{nodeid}" for nodeid in self._nodeids]
        pytest_ = [sys.executable, "-m", "pytest", *options, *tests]
        # Its own words are standard error, so that nothing gets between the reports.
        # A test that runs here meanwhile may have its own lock file, in a folder of its own.
        shell = f'cd "$1" && shift && unset XTABLES_LOCKFILE; {_INSIDE}=1 exec "$@" 3>&1 1>&2'
        return ["sh", "-c", shell, "sh", str(Path(__file__).parents[2]), *pytest_]

    def _take(self, stream: int, data: bytes) -> None:
        if stream != 1:
            self._words += data
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            report: Any = self._config.hook.pytest_report_from_serializable(
                config=self._config, data=json.loads(line)
            )
            with self._news:
                self._reports.setdefault(report.nodeid, []).append(report)
                self._news.notify_all()


_MACHINE = pytest.StashKey[Machine]()
_ELSEWHERE = pytest.StashKey[frozenset[pytest.Item]]()


def lacking(items: Iterable[pytest.Item]) -> frozenset[str]:
    """Marks of the items that say what this kernel has not."""
    if _INSIDE in os.environ:
        return frozenset()
    used = {mark for item in items for mark in NEEDS if item.get_closest_marker(mark)}
    return frozenset(mark for mark in used if not doctor.tried(NEEDS[mark]).ok)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that run elsewhere come last: the machine has time while the host runs the others."""
    lacked = lacking(items)
    elsewhere = [item for item in items if any(item.get_closest_marker(m) for m in lacked)]
    config.stash[_ELSEWHERE] = frozenset(elsewhere)
    items[:] = [item for item in items if item not in config.stash[_ELSEWHERE]] + elsewhere


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Boot when something is to run there, and nothing else has gone wrong."""
    config = session.config
    elsewhere = config.stash.get(_ELSEWHERE, frozenset())
    selected = [item.nodeid for item in session.items if item in elsewhere]
    if selected and not config.option.collectonly and not session.testsfailed:
        config.stash[_MACHINE] = Machine(config, selected)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """A test that runs elsewhere: tell what was said of it there."""
    config = item.config
    if item not in config.stash.get(_ELSEWHERE, frozenset()):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = config.stash[_MACHINE].reports(item.nodeid)
    if isinstance(reports, str):
        reports = [_failure(item, reports)]
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _failure(item: pytest.Item, why: str) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome="failed",
        longrepr=why,
        when="call",
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    machine = config.stash.get(_MACHINE, None)
    if machine is not None:
        machine.close()
