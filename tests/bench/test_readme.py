"""README.md's tables: what they say is in the report, and in the place that is kept for them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from bench import readme
from bench.readme import README, REPORT, put, written
from kproxy.bench import store
from kproxy.bench.results import Measure, Point, Row, Section
from kproxy.bench.rounds import Figure
from kproxy.bench.subjects import DIRECT
from kproxy.errors import UsageError
from tests.conftest import ROOT

FOLDER = str(REPORT.relative_to(ROOT))


def test_it_is_what_the_report_says() -> None:
    """Written once more, nothing changes."""
    text = README.read_text()
    assert put(text, FOLDER, written(store.read(REPORT), FOLDER)) == text


def test_no_place_no_change() -> None:
    """A README without the two comments is not written in."""
    with pytest.raises(UsageError, match="no place for figures from docs/report"):
        put("# A project\n", FOLDER, "figures\n")


SECTION = Section(
    name="host",
    kernel="Linux 6.1",
    subjects={},
    measures=(
        Measure("crr", "connections", "1/s", "higher", "traffic"),
        Measure("kill-failed", "lost", "share", "lower", "survival"),
    ),
    rows=(
        Row(
            Point("crr"),
            DIRECT,
            tuple(
                {
                    DIRECT: Figure(1000.0, 10, 0),
                    "nftables": Figure(900.0 + number, 10, 0),
                    "fastpath": Figure(2000.0, 10, 1),
                }
                for number in range(11)
            ),
        ),
        Row(
            Point("kill-failed"),
            "",
            ({"nftables": Figure(0.0, 100, 0), "userspace": Figure(0.5, 100, 50)},),
        ),
    ),
)


def test_figures_failures_and_gaps() -> None:
    """A figure with its ratio; what failed as such and not as speed; a dash for nobody."""
    connections, killed = readme.table(SECTION)[2:]
    cells = [each.strip() for each in connections.strip("|").split("|")][1:]
    assert cells == ["–", "–", "–", "905 /s, 0.905 [0.900, 0.910]", "failed: 11 of 110"]
    assert [each.strip() for each in killed.strip("|").split("|")][1:] == [
        "50 %",
        "–",
        "–",
        "none",
        "–",
    ]


def test_few_rounds_have_no_interval() -> None:
    """What is short of the level in the table's head is not written as if it were not."""
    (row, *_) = SECTION.rows
    few = replace(SECTION, rows=(replace(row, rounds=row.rounds[:10]),))
    (connections,) = readme.table(few)[2:]
    assert "| 904 /s, 0.905 (10 rounds) |" in connections
