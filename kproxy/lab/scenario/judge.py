"""Compares what was seen with what is claimed. Pure.

An expectation is of one kind (:data:`_KINDS`); each kind has one function that says what is wrong
with the tries, and "" when nothing is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from kproxy.core.objects import Value
from kproxy.lab.scenario.schema import Expect, Flow, Verdict
from kproxy.lab.traffic.probe import Held
from kproxy.lab.traffic.wire import Outcome, Reach, join_host_port

#: A miss of an endpoint that is chosen evenly must be less likely than this: a run of all scenarios
#: in all modes has over a thousand flows that might miss one.
MISS = 1e-10


class Judged(Value, frozen=True):
    """The judgement on one flow, in words for both sides."""

    passed: bool
    expected: str
    seen: str
    detail: str = ""


def tries_for(endpoints: int) -> int:
    """How often to try so that all of ``endpoints`` are seen but for a chance below MISS.

    The chance to miss some one of n in k even draws is at most n·(1 − 1/n)^k. From three on one
    more is spent: their shares are rounded in some modes.
    """
    if endpoints < 2:
        return 1
    draws = math.log(MISS / endpoints) / math.log(1 - 1 / endpoints)
    return math.ceil(draws) + (endpoints > 2)


def wanted_tries(flow: Flow, *, rivals: bool = False) -> int:
    """How often a flow is sent. ``rivals``: there are endpoints that it must not reach.

    One source port is one flow to the kernel's memory: sending it again proves nothing. A rival
    counts as one endpoint more: if it were chosen as often as the others, it would be seen.
    """
    expect = flow.expect
    if flow.repeat:
        return flow.repeat
    if flow.source_port or flow.hold or expect is None or expect.same_as:
        return 1
    if expect.same_endpoint:
        return 10
    listed = len(expect.endpoints or ())
    return tries_for(listed + 1 if listed and rivals else listed)


def judge(flow: Flow, tries: Sequence[Outcome], *, like: str = "") -> Judged:
    """Judge all tries of one flow. ``like`` is the endpoint of the flow that ``same_as`` names."""
    expect = flow.expect
    assert expect is not None
    kind = _answered if expect.http is not None else _KINDS[expect.verdict]
    wrong = kind(expect, flow, tries)
    if not wrong and expect.same_as and {one.local for one in tries} != {like}:
        wrong = f"not the endpoint of {expect.same_as!r}, which got {like or 'none'}"
    return Judged(not wrong, describe(expect), summary(tries), wrong)


def judge_hold(outcome: Outcome, known: frozenset[str]) -> Judged:
    """A flow to be held must have reached an endpoint."""
    good = outcome.reach is Reach.REACHED and outcome.local in known
    why = "" if good else "a held flow has to reach an endpoint"
    return Judged(good, "an endpoint, held", summary([outcome]), why)


def judge_check(expect: Expect, held: Held, known: frozenset[str]) -> Judged:
    """Judge a held flow; one that never was with an endpoint is not alive."""
    alive = held.alive and held.local in known
    faults = []
    if expect.alive is not None and alive is not expect.alive:
        faults.append(f"alive is {str(alive).lower()}")
    if expect.endpoint and held.local != expect.endpoint:
        faults.append(f"the endpoint is {held.local or 'none'}")
    if expect.lost is not None and held.lost != expect.lost:
        faults.append(f"{held.lost} requests were lost")
    seen = f"{'alive' if alive else 'dead'}, {held.local or 'no endpoint'}, lost {held.lost}"
    if held.detail:
        seen += f" ({held.detail})"
    return Judged(not faults, describe(expect), seen, "; ".join(faults))


def _refused(expect: Expect, flow: Flow, tries: Sequence[Outcome]) -> str:
    return _all(tries, Reach.REFUSED, "was not refused")


def _dropped(expect: Expect, flow: Flow, tries: Sequence[Outcome]) -> str:
    return _all(tries, Reach.SILENCE, "silence was expected")


def _all(tries: Sequence[Outcome], reach: Reach, fault: str) -> str:
    other = next((one for one in tries if one.reach is not reach), None)
    return "" if other is None else f"{fault}: {other}"


def _untranslated(expect: Expect, flow: Flow, tries: Sequence[Outcome]) -> str:
    target = join_host_port(flow.to, flow.port)
    for one in tries:
        if one.reach is not Reach.REACHED:
            return f"did not arrive: {one}"
        if one.local != target:
            return f"was sent to {one.local}"
        if one.masqueraded:
            return f"its source became {one.client}"
    return ""


def _answered(expect: Expect, flow: Flow, tries: Sequence[Outcome]) -> str:
    wanted = expect.http
    assert wanted is not None
    for one in tries:
        if not one.status:
            return f"no web server answered: {one}"
        if one.status != wanted.status:
            return f"the status is {one.status}"
        try:
            body = msgspec.json.decode(one.page, type=dict[str, Any])
        except msgspec.MsgspecError:
            return f"its body is no JSON object: {one.page[:80]}"
        for name, value in wanted.body.items():
            if name not in body or body[name] != value:
                return f"{name} is {body.get(name, 'missing')}"
    return ""


def _endpoints(expect: Expect, flow: Flow, tries: Sequence[Outcome]) -> str:
    listed = expect.endpoints or ()
    for one in tries:
        if one.reach is not Reach.REACHED:
            return f"did not arrive: {one}"
        if one.local not in listed:
            return f"reached {one.local} ({one.endpoint}), which is not listed"
        masquerade = _wanted_masquerade(expect, one.local)
        if masquerade is not None and one.masqueraded is not masquerade:
            return f"{one.local} saw {one.client}, the sender is {one.sender}"
    return _spread(expect, flow, {one.local for one in tries})


def _wanted_masquerade(expect: Expect, endpoint: str) -> bool | None:
    if expect.masquerade_by_endpoint is not None:
        return expect.masquerade_by_endpoint.get(endpoint, expect.masquerade)
    return expect.masquerade


def _spread(expect: Expect, flow: Flow, seen: set[str]) -> str:
    listed = set(expect.endpoints or ())
    if expect.same_endpoint:
        return "" if len(seen) == 1 else f"{len(seen)} endpoints instead of one"
    enough = wanted_tries(flow) >= tries_for(len(listed))
    missing = sorted(listed - seen)
    if missing and (enough or expect.all_endpoints_seen):
        return f"never reached {', '.join(missing)}"
    return ""


#: Kind of expectation -> its fault-finder. Without a verdict, endpoints are listed.
_KINDS: dict[Verdict | None, Callable[[Expect, Flow, Sequence[Outcome]], str]] = {
    Verdict.REJECT: _refused,
    Verdict.DROP: _dropped,
    Verdict.ACCEPT_UNTRANSLATED: _untranslated,
    None: _endpoints,
}


def describe(expect: Expect) -> str:
    """The expectation in one line."""
    parts = [expect.verdict.value] if expect.verdict else []
    if expect.http is not None:
        parts.append(f"HTTP {expect.http.status} {expect.http.body}")
    if expect.endpoints is not None:
        parts.append(", ".join(expect.endpoints) or "no endpoint")
    if expect.masquerade_by_endpoint:
        parts += [
            f"{endpoint} {'masqueraded' if masquerade else 'source kept'}"
            for endpoint, masquerade in expect.masquerade_by_endpoint.items()
        ]
    elif expect.masquerade is not None:
        parts.append("masqueraded" if expect.masquerade else "source kept")
    parts += [
        text
        for text, said in (
            ("always the same endpoint", expect.same_endpoint),
            ("every endpoint", expect.all_endpoints_seen),
            (f"same as {expect.same_as!r}", expect.same_as),
            ("alive" if expect.alive else "dead", expect.alive is not None),
            (f"with {expect.endpoint}", expect.endpoint),
            (f"lost {expect.lost}", expect.lost is not None),
        )
        if said
    ]
    return ", ".join(parts)


def summary(tries: Sequence[Outcome]) -> str:
    """What was seen in one line: each kind of outcome, and how often."""
    counts = Counter(_short(one) for one in tries)
    return ", ".join(
        f"{text} x{count}" if count > 1 else text for text, count in sorted(counts.items())
    )


def _short(outcome: Outcome) -> str:
    if outcome.status or outcome.reach is not Reach.REACHED:
        return str(outcome)
    where = (
        outcome.local
        if outcome.endpoint == "endpoint"
        else f"{outcome.endpoint} as {outcome.local}"
    )
    return f"{where} {'masqueraded' if outcome.masqueraded else 'source kept'}"
