"""Results as values, their table and their JSON. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import msgspec

from kproxy.core.objects import Value


class FlowResult(Value, frozen=True):
    """One flow. ``step`` 0 is the beginning, n the nth update; ``cell`` names an exception row."""

    name: str
    step: int
    passed: bool
    expected: str
    seen: str
    cell: str = ""
    detail: str = ""


class CheckResult(Value, frozen=True):
    """Something that was looked at without packets, or that went wrong around them."""

    name: str
    passed: bool
    expected: str
    seen: str


class Skipped(Value, frozen=True):
    """A flow or check that did not run, and why."""

    name: str
    step: int
    reason: str


class Result(Value, frozen=True):
    """One scenario in one mode."""

    scenario: str
    mode: str
    passed: bool
    flows: tuple[FlowResult, ...] = ()
    checks: tuple[CheckResult, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @property
    def ran(self) -> int:
        """How many flows and checks ran."""
        return len(self.flows) + len(self.checks)


class Progress(Value, frozen=True):
    """A result on its way from another process; ``seconds`` is what the scenario took, 0.0 when
    none was built."""

    result: Result
    seconds: float = 0.0


def result(
    scenario: str,
    mode: str,
    flows: Sequence[FlowResult] = (),
    checks: Sequence[CheckResult] = (),
    skipped: Sequence[Skipped] = (),
) -> Result:
    """A Result that passed when nothing in it failed."""
    passed = all(flow.passed for flow in flows) and all(check.passed for check in checks)
    return Result(scenario, mode, passed, tuple(flows), tuple(checks), tuple(skipped))


def exit_status(results: Sequence[Result]) -> int:
    """0 all passed, 1 something failed, 2 nothing ran at all."""
    if not all(one.passed for one in results):
        return 1
    return 0 if sum(one.ran for one in results) else 2


def to_json(results: Iterable[Result]) -> bytes:
    """The list of results; the keys are the fields above."""
    return msgspec.json.format(msgspec.json.encode(list(results)), indent=2)


def to_line(progress: Progress) -> bytes:
    """One line of JSON."""
    return msgspec.json.encode(progress) + b"\n"


def rows(one: Result) -> list[tuple[str, str, str, str, str]]:
    """(mark, step, name, expected, seen) of every flow and check of a result."""
    found = [
        (
            _mark(flow.passed),
            str(flow.step or ""),
            flow.name + (f"  cell: {flow.cell}" if flow.cell else ""),
            flow.expected,
            flow.seen,
        )
        for flow in one.flows
    ]
    found += [
        (_mark(check.passed), "", check.name, check.expected, check.seen) for check in one.checks
    ]
    return found


def _mark(passed: bool) -> str:
    return "✓" if passed else "✗"


def plain(one: Result) -> str:
    """A result as text for a pipe: one line a flow, then what failed, then what was skipped."""
    lines = [f"{_mark(one.passed)} {one.scenario} [{one.mode}]"]
    for mark, step, name, expected, seen in rows(one):
        at = f" (update {step})" if step else ""
        lines.append(f"  {mark} {name}{at}: expected {expected}; seen {seen}")
    lines += details(one)
    return "\n".join(lines)


def details(one: Result) -> list[str]:
    """What stands below the table: reasons of failures, and what did not run."""
    lines: list[str] = []
    for flow in one.flows:
        if flow.detail and not flow.passed:
            lines.append(f"  {flow.name}:")
            lines += [f"    {line}" for line in flow.detail.splitlines()]
    reasons: dict[str, list[str]] = {}
    for skip in one.skipped:
        reasons.setdefault(skip.reason, []).append(skip.name)
    lines += [
        f"  skipped, {reason}: {'; '.join(names)}" for reason, names in sorted(reasons.items())
    ]
    return lines


def broken_off(mode: str, reason: str) -> Result:
    """A mode whose scenarios were not all run: what is missing has not passed."""
    fault = CheckResult("the kernel that they run on", False, "runs all scenarios", reason)
    return result("every scenario", mode, checks=[fault])


def absent(mode: str, reason: str) -> Result:
    """A mode in which nothing could run: no flow of it stands among the passed."""
    return result("every scenario", mode, skipped=[Skipped("every flow", 0, reason)])


def totals(results: Sequence[Result], seconds: Sequence[float] = ()) -> str:
    """One line over everything; ``seconds`` are the times of the scenarios."""
    flows = [flow for one in results for flow in one.flows]
    checks = [check for one in results for check in one.checks]
    skipped = sum(len(one.skipped) for one in results)
    passed = sum(one.passed for one in results if one.ran)
    ran = sum(1 for one in results if one.ran)
    failed = sum(not flow.passed for flow in flows) + sum(not check.passed for check in checks)
    line = f"{passed} of {ran} scenarios passed; {len(flows)} flows, {len(checks)} checks"
    line += f", {failed} failed"
    line += f"; {skipped} not run (listed as skipped)" if skipped else ""
    return line + (f"; {statistics.median(seconds):.2f} s a scenario (median)" if seconds else "")
