"""What a mode does differently on purpose: the rows of ``netns-lab/exceptions.yaml``. Pure but for
reading that file.

A row replaces a part of the expectation of every flow that it fits, in its mode only. The report
names the row beside the flow; a row that no flow of a whole-suite run met fails the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from kproxy.core.objects import Protocol
from kproxy.errors import ScenarioError
from kproxy.lab.scenario import table
from kproxy.lab.scenario.basics import Strict
from kproxy.lab.scenario.facts import Fact, Known
from kproxy.lab.scenario.schema import MODES, Expect, Flow, SenderKind, Verdict

#: More than that would be another definition of the mode, not exceptions from one.
MOST_ROWS = 10


#: Of a flow of which nothing was asked.
NOTHING = Known()


class Condition(Strict, frozen=True):
    """All that is given must fit. ``endpoints`` true: the flow expects endpoints; ``masquerade``:
    what it expects of the source, for at least one of its endpoints. ``fact`` is something that the
    objects say about it; ``named`` is the flow's name, where nothing else tells."""

    endpoints: bool | None = None
    verdict: Verdict | None = None
    masquerade: bool | None = None
    proto: Protocol | None = None
    from_kind: SenderKind | None = None
    fact: Fact | None = None
    named: str = ""


class Row(Strict, frozen=True, kw_only=True):
    """One exception. ``outcome`` replaces the keys of ``expect`` that it names; there ``endpoints:
    local`` stands for the service's endpoints on this node."""

    id: str
    mode: str
    when: Condition
    outcome: dict[str, object]
    reason: str


def default_path() -> Path:
    """The table that comes with the project."""
    return table.project_file("exceptions.yaml")


def load(path: Path) -> tuple[Row, ...]:
    """The rows of a file; ScenarioError names what is wrong with it."""
    found = table.load(path, Row)
    for mode, count in Counter(row.mode for row in found).items():
        if mode not in MODES:
            raise ScenarioError(f"unknown mode {mode!r}", where=str(path), hint=", ".join(MODES))
        if count > MOST_ROWS:
            raise ScenarioError(
                f"{count} rows for {mode}, at most {MOST_ROWS} are allowed",
                where=str(path),
                hint="mend the mode instead",
            )
    return found


def find(rows: Iterable[Row], mode: str, flow: Flow, about: Known = NOTHING) -> Row | None:
    """The first row that fits the flow in a mode. ``about`` is what the objects say of it."""
    return next((row for row in rows if row.mode == mode and fits(row.when, flow, about)), None)


def asks_facts(rows: Iterable[Row], mode: str) -> bool:
    """Whether some row of a mode asks what the objects say."""
    return any(row.mode == mode and row.when.fact is not None for row in rows)


def fits(when: Condition, flow: Flow, about: Known = NOTHING) -> bool:
    """Whether a flow meets a condition; checks of held flows meet those only that ask a fact."""
    expect = flow.expect
    if expect is None or (flow.check and when.fact is None):
        return False
    by_endpoint = (expect.masquerade_by_endpoint or {}).values()
    facts = (
        (when.endpoints, (expect.endpoints is not None,)),
        (when.verdict, (expect.verdict,)),
        (when.masquerade, (expect.masquerade, *by_endpoint)),
        (when.proto, (flow.proto,)),
        (when.from_kind, (flow.from_kind,)),
        (when.fact, about.facts),
        (when.named or None, (flow.name,)),
    )
    return all(wanted is None or wanted in facts_ for wanted, facts_ in facts)


#: What ``endpoints`` of an outcome may say instead of naming some.
_LOCAL = "local"


def changed(row: Row, flow: Flow, about: Known = NOTHING) -> Flow:
    """The flow with the row's outcome in place of what it expected."""
    assert flow.expect is not None
    expect, outcome = flow.expect, dict(row.outcome)
    if outcome.get("endpoints") == _LOCAL:
        outcome["endpoints"] = about.local
    if "masquerade" in outcome:
        expect = msgspec.structs.replace(expect, masquerade_by_endpoint=None)
    if "verdict" in outcome:
        expect = msgspec.structs.replace(
            expect, endpoints=None, masquerade=None, masquerade_by_endpoint=None
        )
    given = msgspec.convert(outcome, Expect)
    values = {key: getattr(given, key) for key in outcome}
    return msgspec.structs.replace(flow, expect=msgspec.structs.replace(expect, **values))


def unused(rows: Sequence[Row], modes: Iterable[str], met: Iterable[str]) -> tuple[Row, ...]:
    """Rows of the modes that ran which no flow met."""
    ran, hit = set(modes), set(met)
    return tuple(row for row in rows if row.mode in ran and row.id not in hit)
