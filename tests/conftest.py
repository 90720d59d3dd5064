"""What all tests share: both builds of the compiled module, and an honest account of the run.

A test may be skipped only for a reason in :data:`MAY_BE_SKIPPED`; any other skip fails the run. All
that did not run is listed at the end, with its reason.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sysconfig
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

# Hooks: tests that this kernel cannot run are run in user-mode Linux.
from tests.uml.outside import (  # noqa: F401
    pytest_collection_modifyitems,
    pytest_runtest_protocol,
    pytest_runtestloop,
    pytest_unconfigure,
)

ROOT = Path(__file__).resolve().parent.parent

# Examples are the same in every run, unless random ones are asked for; and that a busy machine was
# slow with one says nothing of what is tested.
settings.register_profile(
    "kproxy",
    derandomize="KPROXY_RANDOM_CLUSTERS" not in os.environ,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("kproxy")

# A script that starts us in the background has us ignore Ctrl-C, and with us all that we start:
# tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Where each build of the compiled modules is (setup.py).
BUILDS = {"release": ROOT / "kproxy", "debug": ROOT / "build" / "debug" / "kproxy"}

#: Reason of a skip, as given to pytest.skip -> why that is no hole in the run.
MAY_BE_SKIPPED: dict[str, str] = {}


def load_build(name: str, build: str) -> ModuleType:
    """One build of a compiled module (``_fastpath``), beside any other build of it.

    It is no entry of sys.modules: the rest of the program keeps the one that it imported.
    """
    path = BUILDS[build] / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not path.exists():
        pytest.fail(f"no {build} build of {name}: run `make {build}`", pytrace=False)
    spec = importlib.util.spec_from_file_location(f"kproxy.{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session", params=list(BUILDS))
def fastpath(request: pytest.FixtureRequest) -> ModuleType:
    """``kproxy._fastpath``, once in each build."""
    return load_build("_fastpath", request.param)


@pytest.fixture(autouse=True)
def sysctl_records(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Namespaces of tests end without a cleanup: what is recorded of their sysctls is not left in
    the host's folder, where a later namespace with the same number would find it."""
    folder = tmp_path_factory.getbasetemp() / "records" / f"{hash(request.node.nodeid):x}"
    monkeypatch.setenv("KPROXY_RECORDS", str(folder))


# --- what did not run --------------------------------------------------------------------------


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Reason of a skip: pytest keeps (file, line, "Skipped: reason")."""
    assert isinstance(report.longrepr, tuple)
    return report.longrepr[2].removeprefix("Skipped: ")


def _skips(terminal: pytest.TerminalReporter) -> Counter[str]:
    return Counter(_reason(report) for report in terminal.stats.get("skipped", []))


def _forbidden(terminal: pytest.TerminalReporter) -> list[str]:
    return [reason for reason in _skips(terminal) if reason not in MAY_BE_SKIPPED]


#: How a run ends in which nothing failed.
_NOTHING_FAILED = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A skip for a reason of its own makes a good run a failed one."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and session.exitstatus in _NOTHING_FAILED and _forbidden(terminal):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name everything that was collected and did not run."""
    lines = [
        f"{count} skipped: {reason} ({MAY_BE_SKIPPED.get(reason, 'not an allowed reason: fails')})"
        for reason, count in sorted(_skips(terminalreporter).items())
    ]
    expected = Counter(r.wasxfail for r in terminalreporter.stats.get("xfailed", []))
    lines += [f"{count} failed as expected: {why}" for why, count in sorted(expected.items())]
    if left_out := len(terminalreporter.stats.get("deselected", [])):
        lines.append(f"{left_out} deselected by -k, -m or --deselect")
    terminalreporter.section("what did not run", sep="-")
    for line in lines or ["nothing: every test ran"]:
        terminalreporter.line(line)
