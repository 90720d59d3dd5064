"""Judgements on outcomes, as a table: what passes, what fails, and how often a flow is sent."""

from __future__ import annotations

import pytest

from kproxy.core.objects import Protocol
from kproxy.lab.scenario.judge import judge, judge_check, judge_hold, tries_for, wanted_tries
from kproxy.lab.scenario.schema import Expect, Flow, SenderKind, Verdict, Web
from kproxy.lab.traffic import Held, Outcome, Reach

ME, NODE = "10.0.0.9:4000", "198.18.0.1:4000"
A, B = "10.0.0.1:80", "10.0.0.2:80"
TARGET = "172.30.0.1:80"


def reached(local: str, client: str = ME, endpoint: str = "endpoint") -> Outcome:
    return Outcome(Reach.REACHED, ME, endpoint, client, local)


REFUSED, SILENT, CLOSED, FAILED = (
    Outcome(reach, ME) for reach in (Reach.REFUSED, Reach.SILENCE, Reach.CLOSED, Reach.ERROR)
)
WORLD = reached(TARGET, endpoint="world")


def flow(expect: Expect | None, **more: object) -> Flow:
    return Flow(
        source="10.0.0.9",
        from_kind=SenderKind.POD,
        proto=Protocol.TCP,
        to="172.30.0.1",
        port=80,
        expect=expect,
        **more,  # type: ignore[arg-type]
    )


def ends(*endpoints: str, **more: object) -> Expect:
    return Expect(endpoints=endpoints, **more)  # type: ignore[arg-type]


REJECT, DROP, ALONE = (Expect(verdict=verdict) for verdict in Verdict)
BOTH = [reached(A), reached(B)]

ONE_HERE = Expect(http=Web(status=200, body={"localEndpoints": 1, "healthy": True}))


def page(status: int, text: str) -> Outcome:
    return Outcome(Reach.REACHED, ME, "", ME, TARGET, status=status, page=text)


#: (expectation, tries, passes)
TABLE = [
    (ONE_HERE, [page(200, '{"localEndpoints": 1, "healthy": true, "more": {}}')], True),
    (ONE_HERE, [page(503, '{"localEndpoints": 1, "healthy": true}')], False),
    (ONE_HERE, [page(200, '{"localEndpoints": 2, "healthy": true}')], False),
    (ONE_HERE, [page(200, '{"localEndpoints": 1}')], False),
    (ONE_HERE, [page(200, "[1]")], False),
    (ONE_HERE, [page(200, "ok")], False),
    (ONE_HERE, [REFUSED], False),
    (ONE_HERE, [WORLD], False),
    (REJECT, [REFUSED], True),
    (REJECT, [SILENT], False),
    (REJECT, [FAILED], False),
    (REJECT, [CLOSED], False),
    (REJECT, [WORLD], False),
    (DROP, [SILENT], True),
    (DROP, [REFUSED], False),
    (DROP, [FAILED], False),
    (DROP, [WORLD], False),
    (ALONE, [WORLD], True),
    (ALONE, [reached(TARGET, endpoint="node")], True),
    (ALONE, [reached(A)], False),
    (ALONE, [reached(TARGET, NODE, "world")], False),
    (ALONE, [REFUSED], False),
    (ends(A), [reached(A)], True),
    (ends(A), [reached(B)], False),
    (ends(A), [WORLD], False),
    (ends(A), [SILENT], False),
    (ends(A), [reached(A), SILENT], False),
    (ends(A, masquerade=False), [reached(A)], True),
    (ends(A, masquerade=False), [reached(A, NODE)], False),
    (ends(A, masquerade=False), [reached(A, "10.0.0.9:5555")], True),
    (ends(A, masquerade=True), [reached(A, NODE)], True),
    (ends(A, masquerade=True), [reached(A)], False),
    (ends(A, B), BOTH * 11, True),
    (ends(A, B), [reached(A)] * 21, False),
    (ends(A, B), [*BOTH * 11, reached("10.0.0.3:80")], False),
    (ends(A, B, same_endpoint=True), [reached(A)] * 10, True),
    (ends(A, B, same_endpoint=True), BOTH, False),
    (ends(A, B, masquerade_by_endpoint={A: True, B: False}), [reached(A, NODE), reached(B)], True),
    (ends(A, B, masquerade_by_endpoint={A: True, B: False}), BOTH, False),
]


@pytest.mark.parametrize(("expect", "tries", "passes"), TABLE)
def test_judgement(expect: Expect, tries: list[Outcome], passes: bool) -> None:
    """Each expectation passes for its outcome only; a failure always has a reason."""
    judged = judge(flow(expect), tries)
    assert judged.passed is passes
    assert bool(judged.detail) is not passes
    assert judged.expected
    assert judged.seen


def test_every_kind_of_outcome_fails_some_expectation_of_every_kind() -> None:
    """The table above has no hole: each kind of expectation met each kind of outcome."""
    kinds = {expect.verdict for expect, _, _ in TABLE}
    assert kinds == {*Verdict, None}
    for kind in kinds:
        assert {passes for expect, _, passes in TABLE if expect.verdict is kind} == {True, False}


@pytest.mark.parametrize(("like", "passes"), [(A, True), (B, False), ("", False)])
def test_same_as_compares_endpoints(like: str, passes: bool) -> None:
    """A flow must get the endpoint of the flow that it names."""
    assert judge(flow(ends(A, B, same_as="other")), [reached(A)], like=like).passed is passes


def test_tries_make_a_miss_rare() -> None:
    """The known counts, and the bound itself for many endpoints."""
    assert [tries_for(number) for number in (0, 1, 2, 3)] == [1, 1, 35, 61]
    for number in range(2, 60):
        assert number * (1 - 1 / number) ** tries_for(number) < 1e-10


TRIES = [
    (flow(REJECT), 1),
    (flow(ends(A)), 1),
    (flow(ends(A, B)), 35),
    (flow(ends(A, B), repeat=5), 5),
    (flow(ends(A, B), source_port=4000), 1),
    (flow(ends(A, B), hold="h"), 1),
    (flow(ends(A, B, same_endpoint=True)), 10),
    (flow(ends(A, B, same_as="x")), 1),
    (flow(None, hold="h"), 1),
]


@pytest.mark.parametrize(("one", "count"), TRIES)
def test_how_often_a_flow_is_sent(one: Flow, count: int) -> None:
    """As often as the expectation needs, or as the flow says."""
    assert wanted_tries(one) == count


RIVALLED = [
    (flow(REJECT), 1),
    (flow(ends(A)), 35),
    (flow(ends(A, B)), 61),
    (flow(ends(A), hold="h"), 1),
    (flow(ends(A), repeat=2), 2),
]


@pytest.mark.parametrize(("one", "count"), RIVALLED)
def test_endpoints_that_must_not_be_reached_cost_more_tries(one: Flow, count: int) -> None:
    """One lucky try does not show that nobody else is ever chosen."""
    assert wanted_tries(one, rivals=True) == count


@pytest.mark.parametrize(
    ("repeat", "all_seen", "passes"), [(3, False, True), (3, True, False), (35, False, False)]
)
def test_few_repeats_need_not_see_all(repeat: int, all_seen: bool, passes: bool) -> None:
    """Fewer tries than a miss allows show nothing about spread, unless the file says so."""
    expect = ends(A, B, all_endpoints_seen=all_seen)
    assert judge(flow(expect, repeat=repeat), [reached(A)] * repeat).passed is passes


KNOWN = frozenset({A, B})


@pytest.mark.parametrize(
    ("outcome", "passes"), [(reached(A), True), (WORLD, False), (SILENT, False)]
)
def test_a_held_flow_has_to_reach_an_endpoint(outcome: Outcome, passes: bool) -> None:
    """The world's answer is no endpoint."""
    assert judge_hold(outcome, KNOWN).passed is passes


CHECKS = [
    (Expect(alive=True), Held(True, "endpoint", ME, A), True),
    (Expect(alive=True), Held(True, "world", ME, TARGET), False),
    (Expect(alive=True), Held(False, lost=3), False),
    (Expect(alive=False), Held(False, lost=3), True),
    (Expect(alive=False), Held(True, "endpoint", ME, A), False),
    (Expect(alive=True, endpoint=A), Held(True, "endpoint", ME, A), True),
    (Expect(alive=True, endpoint=B), Held(True, "endpoint", ME, A), False),
    (Expect(lost=0), Held(True, "endpoint", ME, A, lost=1), False),
    (Expect(lost=1), Held(True, "endpoint", ME, A, lost=1), True),
]


@pytest.mark.parametrize(("expect", "held", "passes"), CHECKS)
def test_checks_of_held_flows(expect: Expect, held: Held, passes: bool) -> None:
    """Life, endpoint and losses are each compared when they are named."""
    assert judge_check(expect, held, KNOWN).passed is passes
