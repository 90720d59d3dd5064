"""The table of semantics: what a Service must do × mode → shown, or how it differs.

Pure but for :func:`load_rows`. The rows stand in ``netns-lab/semantics.yaml``; a scenario names in
its ``origin`` the rows that it shows, separated by commas (other words there are left alone); the
outcomes are what ``kproxy scenario run -o json`` prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import msgspec

from kproxy.errors import ScenarioError
from kproxy.lab.scenario import table
from kproxy.lab.scenario.basics import Strict
from kproxy.lab.scenario.exceptions import Row as ExceptionRow
from kproxy.lab.scenario.schema import Broken, Scenario

SHOWN, FAILED, NOT_CLAIMED = "✓", "✗", "–"

_HEAD = (
    "# What a Service does, mode by mode",
    "",
    "Made from scenario results by `make semantics`; do not edit. Every row is shown by real",
    "packets: ✓ all scenarios of the row passed, ✗ one failed, – none claims it for this mode.",
    "Scenarios are in `netns-lab/scenarios/`, and say in `origin` which rows they show.",
)


class Row(Strict, frozen=True):
    """One thing that must hold. ``section`` is the heading that it stands under."""

    id: str
    section: str
    text: str


class _Flow(msgspec.Struct, frozen=True):
    cell: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """The part of a scenario's result that the table is made of."""

    scenario: str
    mode: str
    passed: bool
    flows: tuple[_Flow, ...] = ()
    checks: tuple[object, ...] = ()

    @property
    def ran(self) -> bool:
        return bool(self.flows or self.checks)


def default_path() -> Path:
    """The rows that come with the project."""
    return table.project_file("semantics.yaml")


def load_rows(path: Path) -> tuple[Row, ...]:
    """The rows of a file; ScenarioError names what is wrong with it."""
    return table.load(path, Row)


def outcomes(text: bytes | str) -> list[Outcome]:
    """Results as ``kproxy scenario run -o json`` prints them."""
    try:
        return msgspec.json.decode(text, type=list[Outcome])
    except msgspec.DecodeError as wrong:
        hint = "give what kproxy scenario run -o json printed"
        raise ScenarioError(f"no scenario results: {wrong}", hint=hint) from wrong


def claimed(scenarios: Iterable[Scenario | Broken]) -> dict[str, tuple[str, ...]]:
    """Row id -> names of the scenarios that show it, in their order."""
    found: dict[str, list[str]] = {}
    for scenario in scenarios:
        if isinstance(scenario, Scenario):
            for word in scenario.origin.split(","):
                found.setdefault(word.strip(), []).append(scenario.name)
    return {row: tuple(dict.fromkeys(names)) for row, names in found.items()}


def unclaimed(rows: Iterable[Row], scenarios: Iterable[Scenario | Broken]) -> list[str]:
    """Ids of the rows that no scenario shows."""
    shown = claimed(scenarios)
    return [row.id for row in rows if row.id not in shown]


def markdown(
    rows: Sequence[Row],
    scenarios: Iterable[Scenario | Broken],
    results: Iterable[Outcome],
    exceptions: Iterable[ExceptionRow] = (),
) -> str:
    """The document: a table for each section, and what the differences in it mean."""
    shown = claimed(scenarios)
    by_mode: dict[str, dict[str, Outcome]] = {}
    for result in results:
        by_mode.setdefault(result.mode, {})[result.scenario] = result
    lines = [*_HEAD]
    for section, group in groupby(rows, key=lambda row: row.section):
        lines += ["", f"## {section}", "", *_table(list(group), shown, by_mode)]
    met = {
        flow.cell
        for results_ in by_mode.values()
        for result in results_.values()
        for flow in result.flows
    }
    notes = [f"- {row.id} ({row.mode}): {row.reason}" for row in exceptions if row.id in met]
    if notes:
        lines += ["", "## Differences", "", *notes]
    return "\n".join(lines) + "\n"


def _table(
    rows: Sequence[Row],
    shown: Mapping[str, Sequence[str]],
    by_mode: Mapping[str, Mapping[str, Outcome]],
) -> list[str]:
    modes = list(by_mode)
    head = ["row", "what must hold", "scenarios", *modes]
    table = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        names = shown.get(row.id, ())
        cells = [_cell([by_mode[mode].get(name) for name in names]) for mode in modes]
        table.append(_line([f"`{row.id}`", row.text, str(len(names)), *cells]))
    return table


def _cell(results: Iterable[Outcome | None]) -> str:
    ran = [result for result in results if result is not None and result.ran]
    if not ran:
        return NOT_CLAIMED
    failed = [result.scenario for result in ran if not result.passed]
    if failed:
        return f"{FAILED} {', '.join(failed)}"
    differences = sorted({flow.cell for result in ran for flow in result.flows} - {""})
    return " ".join([SHOWN, *differences])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
