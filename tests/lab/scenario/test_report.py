"""Exit status, the JSON that others read, and the text for people."""

from __future__ import annotations

import json

import pytest

from kproxy.lab.scenario.report import (
    CheckResult,
    FlowResult,
    Result,
    Skipped,
    absent,
    exit_status,
    plain,
    result,
    rows,
    to_json,
    totals,
)

GOOD = FlowResult("good", 0, True, "REJECT", "refused")
BAD = FlowResult("bad", 1, False, "DROP", "refused", "a-row", "why\nand where")
CHECK = CheckResult("sets", True, "a", "a")
SKIP = Skipped("skip", 0, "not claimed")

STATUS = [
    ([result("s", "m", [GOOD])], 0),
    ([result("s", "m", [GOOD, BAD])], 1),
    ([result("s", "m", [GOOD]), result("t", "m", checks=[CheckResult("c", False, "", "")])], 1),
    ([result("s", "m", skipped=[SKIP])], 2),
    ([], 2),
    ([result("s", "m", skipped=[SKIP]), result("t", "m", checks=[CHECK])], 0),
]


@pytest.mark.parametrize(("results", "status"), STATUS)
def test_exit_status(results: list[Result], status: int) -> None:
    """0 when all passed, 1 when anything failed, 2 when nothing ran at all."""
    assert exit_status(results) == status


def test_json_has_exactly_the_documented_keys() -> None:
    """Other tools read it."""
    (one,) = json.loads(to_json([result("s", "m", [BAD], [CHECK], [SKIP])]))
    assert list(one) == ["scenario", "mode", "passed", "flows", "checks", "skipped"]
    assert list(one["flows"][0]) == ["name", "step", "passed", "expected", "seen", "cell", "detail"]
    assert list(one["checks"][0]) == ["name", "passed", "expected", "seen"]
    assert one["passed"] is False
    assert one["skipped"] == [{"name": "skip", "step": 0, "reason": "not claimed"}]


def test_text_names_what_failed_and_what_did_not_run() -> None:
    """Marks, cell, reason of a failure, and skipped flows apart."""
    text = plain(result("s", "m", [GOOD, BAD], [CHECK], [SKIP]))
    assert text.startswith("✗ s [m]\n  ✓ good")
    for part in (
        "cell: a-row",
        "(update 1)",
        "    why\n    and where",
        "skipped, not claimed: skip",
    ):
        assert part in text
    assert len(rows(result("s", "m", [GOOD, BAD], [CHECK], [SKIP]))) == 3


def test_totals_count_only_what_ran() -> None:
    """A scenario of which nothing ran is not among the passed."""
    line = totals([result("s", "m", [GOOD]), result("t", "m", skipped=[SKIP])], [0.1, 0.3])
    assert line.startswith("1 of 1 scenarios passed; 1 flows, 0 checks, 0 failed; 1 not run")
    assert line.endswith("0.20 s a scenario (median)")


def test_a_mode_that_is_absent_is_listed() -> None:
    """It ran nothing, so alone it is no success."""
    one = absent("iptables-legacy", "no tool")
    assert one.skipped[0].reason == "no tool"
    assert exit_status([one]) == 2
