"""What the daemon tells after a sync."""

from __future__ import annotations

import logging

import pytest

from kproxy.report import MOST_LINES, Report
from kproxy.status import Notifier, Status

LINES = [f"Service port ns1/svc{n}:p: no free relay port" for n in range(MOST_LINES + 4)]


@pytest.fixture
def report() -> Report:
    return Report(None, Notifier(None), Status(1, "node", "userspace", "nft", 0.0))


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str, dict[str, object]]]:
    """What was logged since this was last asked, details as well."""
    found = [(each.levelno, each.getMessage(), vars(each)["fields"]) for each in caplog.records]
    caplog.clear()
    return found


def test_each_thing_is_told_once(report: Report, caplog: pytest.LogCaptureFixture) -> None:
    """When it is left out, and when it is no longer."""
    caplog.set_level(logging.DEBUG, "kproxy")
    report.refusals(LINES[:2])
    assert told(caplog) == [(logging.WARNING, "left out", {"what": line}) for line in LINES[:2]]
    report.refusals(LINES[1:3])
    assert told(caplog) == [
        (logging.WARNING, "left out", {"what": LINES[2]}),
        (logging.INFO, "no longer left out", {"what": LINES[0]}),
    ]
    report.refusals(LINES[1:3])
    assert told(caplog) == []


def test_many_things_are_one_line(report: Report, caplog: pytest.LogCaptureFixture) -> None:
    """With the first of them; each has its own with the details only, and is in the status."""
    caplog.set_level(logging.DEBUG, "kproxy")
    what = "; ".join([*LINES[:MOST_LINES], "and 4 more"])
    fields = {"count": len(LINES), "what": what}
    for refusals, level, message in (
        (LINES, logging.WARNING, "left out"),
        ([], logging.INFO, "no longer left out"),
    ):
        report.refusals(refusals)
        details = [(logging.DEBUG, message, {"what": line}) for line in LINES]
        assert told(caplog) == [(level, message, fields), *details]
        assert report.status.refusals == tuple(refusals)
