"""The exceptions table: which flows a row fits, what it changes, what makes a table bad."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxy.core.objects import Protocol
from kproxy.errors import ScenarioError
from kproxy.lab.scenario.exceptions import (
    Condition,
    Row,
    asks_facts,
    changed,
    find,
    fits,
    load,
    unused,
)
from kproxy.lab.scenario.facts import Fact, Known
from kproxy.lab.scenario.schema import Expect, Flow, SenderKind, Verdict

REJECT = Expect(verdict=Verdict.REJECT)
KEPT = Expect(endpoints=("10.0.0.1:80",), masquerade=False)
MIXED = Expect(
    endpoints=("10.0.0.1:80", "10.0.0.2:80"),
    masquerade_by_endpoint={"10.0.0.1:80": True, "10.0.0.2:80": False},
)


def flow(expect: Expect | None, **more: object) -> Flow:
    return Flow(source="10.0.0.9", to="172.30.0.1", port=80, expect=expect, **more)  # type: ignore[arg-type]


FITS = [
    (Condition(), flow(REJECT), True),
    (Condition(), flow(None, hold="h"), False),
    (Condition(), flow(Expect(alive=True), check="h"), False),
    (Condition(endpoints=True), flow(KEPT), True),
    (Condition(endpoints=True), flow(REJECT), False),
    (Condition(verdict=Verdict.REJECT), flow(REJECT), True),
    (Condition(verdict=Verdict.DROP), flow(REJECT), False),
    (Condition(masquerade=False), flow(KEPT), True),
    (Condition(masquerade=False), flow(MIXED), True),
    (Condition(masquerade=True), flow(KEPT), False),
    (Condition(proto=Protocol.UDP), flow(KEPT), False),
    (Condition(from_kind=SenderKind.NODE), flow(KEPT, from_kind=SenderKind.NODE), True),
    (Condition(endpoints=True, proto=Protocol.UDP), flow(KEPT), False),
]


@pytest.mark.parametrize(("when", "one", "wanted"), FITS)
def test_conditions(when: Condition, one: Flow, wanted: bool) -> None:
    """All that a condition names has to fit."""
    assert fits(when, one) is wanted


def row(**outcome: object) -> Row:
    return Row(id="r", mode="userspace", when=Condition(), outcome=outcome, reason="x")


CHANGED = [
    (row(masquerade=True), KEPT, Expect(endpoints=KEPT.endpoints, masquerade=True)),
    (row(masquerade=True), MIXED, Expect(endpoints=MIXED.endpoints, masquerade=True)),
    (row(verdict="DROP"), KEPT, Expect(verdict=Verdict.DROP)),
    (row(verdict="DROP"), REJECT, Expect(verdict=Verdict.DROP)),
    (
        row(same_endpoint=True),
        KEPT,
        Expect(endpoints=KEPT.endpoints, masquerade=False, same_endpoint=True),
    ),
]


@pytest.mark.parametrize(("one", "before", "after"), CHANGED)
def test_outcomes_replace_what_they_name(one: Row, before: Expect, after: Expect) -> None:
    """The rest of the expectation stays."""
    assert changed(one, flow(before)).expect == after


def test_rows_are_of_one_mode() -> None:
    """A row changes nothing elsewhere, and is unused only where its mode ran."""
    rows = (row(masquerade=True),)
    assert find(rows, "userspace", flow(KEPT)) == rows[0]
    assert find(rows, "iptables", flow(KEPT)) is None
    assert unused(rows, ["iptables"], []) == ()
    assert unused(rows, ["iptables", "userspace"], []) == rows
    assert unused(rows, ["userspace"], ["r"]) == ()


ENTRY = "- {id: %s, mode: %s, when: {}, outcome: {}, reason: r}\n"

BAD = [
    ("- {id: a}", "mode"),
    ("- {id: a, mode: m, when: {sometimes: 1}, outcome: {}, reason: r}", "sometimes"),
    (ENTRY % ("a", "carrier-pigeon"), "carrier-pigeon"),
    ("".join(ENTRY % (n, "ipvs") for n in range(11)), "id"),
    ("".join(ENTRY % (f"r{n}", "ipvs") for n in range(11)), "11 rows for ipvs"),
    ("{", "expected"),
]


@pytest.mark.parametrize(("text", "named"), BAD)
def test_bad_tables(tmp_path: Path, text: str, named: str) -> None:
    """What is wrong is said, and in which file."""
    path = tmp_path / "rows.yaml"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=named) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_facts_are_asked_of_the_objects() -> None:
    """A row that asks one fits no flow of which it is not known; a check it fits only so."""
    gone = Condition(fact=Fact.SERVICE_PORT_GONE)
    check = flow(Expect(alive=True), check="h")
    assert not fits(gone, check)
    assert fits(gone, check, Known(frozenset({Fact.SERVICE_PORT_GONE})))
    rows = (Row(id="r", mode="ipvs", when=gone, outcome={"alive": False}, reason="x"),)
    assert (asks_facts(rows, "ipvs"), asks_facts(rows, "iptables")) == (True, False)


def test_a_flow_is_known_by_its_name() -> None:
    """Where nothing else tells."""
    assert fits(Condition(named="one"), flow(KEPT, name="one"))
    assert not fits(Condition(named="one"), flow(KEPT, name="two"))


def test_endpoints_of_this_node() -> None:
    """``endpoints: local`` are those that the objects say."""
    about = Known(local=("10.0.0.7:80",))
    found = changed(row(endpoints="local"), flow(KEPT), about).expect
    assert found == Expect(endpoints=("10.0.0.7:80",), masquerade=False)
