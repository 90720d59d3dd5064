"""The table of semantics: every row is shown by a scenario, and the document says what was seen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import pytest

from kproxy.errors import ScenarioError
from kproxy.lab.scenario import semantics
from kproxy.lab.scenario.exceptions import Condition
from kproxy.lab.scenario.exceptions import Row as ExceptionRow
from kproxy.lab.scenario.schema import Scenario, claims, load, parse

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "netns-lab" / "scenarios"


def project_scenarios() -> list[Scenario]:
    cases = [case for path in sorted(FOLDER.glob("*.yaml")) for case in load(path)]
    broken = [str(case.error) for case in cases if not isinstance(case, Scenario)]
    assert broken == []
    return [case for case in cases if isinstance(case, Scenario)]


def test_every_row_is_shown() -> None:
    """No row of the table is without a scenario."""
    rows = semantics.load_rows(semantics.default_path())
    assert semantics.unclaimed(rows, project_scenarios()) == []


def test_every_origin_is_a_row() -> None:
    """A scenario that names a row names one that is there."""
    rows = {row.id for row in semantics.load_rows(semantics.default_path())}
    named = {word for word in semantics.claimed(project_scenarios()) if "/" in word}
    assert named - rows == set()


def test_rows_and_scenarios_have_names_of_their_own() -> None:
    """Results are told apart by name, rows by id."""
    names = Counter(case.name for case in project_scenarios())
    ids = Counter(row.id for row in semantics.load_rows(semantics.default_path()))
    assert [name for name, count in (names + ids).items() if count > 1] == []


def test_the_document_was_made_from_all_of_it() -> None:
    """A cell of docs/semantics.md is empty only where no scenario claims the row for the mode, and
    nothing in it has failed: else it was made from a part of the scenarios (make semantics)."""
    shown, by_name = (
        semantics.claimed(project_scenarios()),
        {c.name: c for c in project_scenarios()},
    )
    modes: list[str] = []
    wrong = []
    for line in (ROOT / "docs" / "semantics.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if cells[0] == "row":
            modes = cells[3:]
        elif cells[0].startswith("`"):
            row = cells[0].strip("`")
            for mode, cell in zip(modes, cells[3:], strict=True):
                claimed = any(_claims(by_name[name], mode) for name in shown.get(row, ()))
                if (cell != semantics.NOT_CLAIMED) != claimed or cell.startswith(semantics.FAILED):
                    wrong.append((row, mode, cell))
    assert modes
    assert wrong == []


def _claims(case: Scenario, column: str) -> bool:
    mode = column.partition("-")[0]
    return claims(case.modes, mode) and any(claims(flow.modes, mode) for flow in case.all_flows)


ROWS = (
    semantics.Row(id="i/one", section="Fields", text="one | two"),
    semantics.Row(id="i/two", section="Fields", text="second"),
)
EXCEPTION = ExceptionRow(
    id="rewrites", mode="userspace", when=Condition(), outcome={}, reason="it relays"
)


def cases() -> list[Scenario]:
    text = """
    - {name: a, origin: 'TestA, i/one'}
    - {name: b, origin: 'i/one, i/two'}
    """
    return [case for case in parse(text, where="here") if isinstance(case, Scenario)]


def run(scenario: str, mode: str, *, passed: bool = True, cell: str = "", ran: bool = True) -> str:
    flows = [{"cell": cell, "name": "x"}] if ran else []
    return msgspec.json.encode(
        {"scenario": scenario, "mode": mode, "passed": passed, "flows": flows, "checks": []}
    ).decode()


@pytest.mark.parametrize(
    ("results", "one", "two"),
    [
        pytest.param([run("a", "m"), run("b", "m")], "✓", "✓", id="all passed"),
        pytest.param([run("a", "m", passed=False), run("b", "m")], "✗ a", "✓", id="one failed"),
        pytest.param([run("a", "m"), run("b", "m", ran=False)], "✓", "–", id="one not claimed"),
        pytest.param([run("a", "m")], "✓", "–", id="one did not run"),
        pytest.param(
            [run("a", "m", cell="rewrites"), run("b", "m")], "✓ rewrites", "✓", id="differs"
        ),
    ],
)
def test_cells(results: list[str], one: str, two: str) -> None:
    """A cell says whether all scenarios of its row passed, which failed, and what differs."""
    outcomes = semantics.outcomes(f"[{','.join(results)}]")
    text = semantics.markdown(ROWS, cases(), outcomes, [EXCEPTION])
    assert f"| `i/one` | one \\| two | 2 | {one} |" in text
    assert f"| `i/two` | second | 1 | {two} |" in text
    assert ("it relays" in text) is ("rewrites" in one)


def test_columns_are_modes() -> None:
    """Each mode that ran has a column, in the order of the results."""
    text = semantics.markdown(
        ROWS, cases(), semantics.outcomes(f"[{run('a', 'm')},{run('a', 'n', passed=False)}]")
    )
    assert "| row | what must hold | scenarios | m | n |" in text
    assert "| 2 | ✓ | ✗ a |" in text


@pytest.mark.parametrize("text", ["", "{}", "not json"])
def test_other_text_is_refused(text: str) -> None:
    """What is no list of results is an error that says what to give."""
    with pytest.raises(ScenarioError, match="no scenario results"):
        semantics.outcomes(text)
