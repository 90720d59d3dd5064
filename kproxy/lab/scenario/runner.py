"""Runs scenarios: step by step, flow by flow, each outcome judged.

Flows that stand side by side and do not depend on each other run all at once; a flow that repeats,
is held, is compared with another or keeps its source port runs alone, in its place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Self

import msgspec

from kproxy.backends import registry
from kproxy.backends.registry import Choice
from kproxy.core.objects import Family, Protocol, Value
from kproxy.errors import KproxyError, MachineError
from kproxy.kernel.netns import fresh
from kproxy.lab.scenario import exceptions
from kproxy.lab.scenario.checks import run_checks, world_of
from kproxy.lab.scenario.craft import send_crafted
from kproxy.lab.scenario.exceptions import Row
from kproxy.lab.scenario.explain import explain
from kproxy.lab.scenario.facts import Fact, Known, World, known, like_of
from kproxy.lab.scenario.judge import Judged, judge, judge_check, judge_hold, wanted_tries
from kproxy.lab.scenario.report import CheckResult, FlowResult, Result, Skipped, result
from kproxy.lab.scenario.schema import Broken, Flow, Scenario, Verdict, claims
from kproxy.lab.scenario.stage import SILENCE, Stage
from kproxy.lab.scenario.workspace import Workspace
from kproxy.lab.scenario.zygote import Zygote
from kproxy.lab.traffic.probe import Holding, Probe, probe_all
from kproxy.lab.traffic.responder import Responder
from kproxy.lab.traffic.sockets import kernel_has
from kproxy.lab.traffic.wire import Outcome, join_host_port

NONE = "none"


class Modes(Value, frozen=True):
    """What to run in; None stands for no proxy. ``missing`` are modes that this machine lacks of
    those that ``all`` stands for, and why."""

    choices: tuple[Choice | None, ...]
    missing: tuple[tuple[Choice, str], ...] = ()


def modes(names: Iterable[str]) -> Modes:
    """What mode names stand for: ``all``, ``none``, a mode, a mode and its variant.

    MachineError when a mode is named that this machine cannot run.
    """
    found: list[Choice | None] = []
    missing: list[tuple[Choice, str]] = []
    for name in names:
        if name == NONE:
            found.append(None)
        elif name == "all":
            for choice in registry.choices():
                try:
                    found.append(probed(registry.resolve(choice)))
                except MachineError as lacking:
                    missing.append((choice, str(lacking)))
        else:
            found.append(probed(registry.resolve(registry.parse(name))))
    return Modes(tuple(dict.fromkeys(found)), tuple(missing))


def probed(choice: Choice) -> Choice:
    """The same; MachineError when an empty network namespace of this machine cannot run it."""
    with fresh():
        for family in Family:
            registry.create(choice, family).probe()
    return choice


class Runner:
    """Holds what scenarios share: the zygote, the responder, the workspace, the exceptions.

    Make it before any thread exists: the zygote is forked here.
    """

    def __init__(self, rows: tuple[Row, ...] = (), *, explain_failures: bool = True) -> None:
        self.rows = rows
        self.met: set[str] = set()
        #: Wall-clock time of every scenario that was built.
        self.seconds: list[float] = []
        self._explain = explain_failures
        with ExitStack() as undo:
            self._zygote = undo.enter_context(Zygote())
            self._workspace = undo.enter_context(Workspace())
            self._responder = undo.enter_context(Responder())
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def run(
        self,
        scenario: Scenario | Broken,
        choice: Choice | None,
        *,
        before_end: Callable[[Stage, Result], None] | None = None,
    ) -> Result:
        """One scenario in one mode (None: without a proxy). Errors fail it, they do not escape.

        ``before_end`` is called while everything is still up.
        """
        mode = str(choice) if choice is not None else NONE
        if isinstance(scenario, Broken):
            fault = CheckResult("the file", False, "a scenario", str(scenario.error))
            return result(scenario.name, mode, checks=[fault])
        act = _Act(scenario, choice, self)
        if not act.claims_anything:
            act.skip_all()
            return act.result(mode)
        began = time.monotonic()
        try:
            with (
                Stage(scenario, choice, self._workspace, self._responder, self._zygote) as stage,
                act,
            ):
                act.play(stage)
                if before_end is not None:
                    before_end(stage, act.result(mode))
        except (KproxyError, OSError) as error:
            act.checks.append(CheckResult(act.place, False, "no error", str(error)))
        self.seconds.append(time.monotonic() - began)
        return act.result(mode)

    def explain_failure(self, stage: Stage, flow: Flow) -> str:
        """What the packets of a failing flow met; "" when the runner was told not to."""
        return explain(stage, flow) if self._explain else ""

    def unused_rows(self, modes: Iterable[Choice | None]) -> list[Result]:
        """A failed Result for each exception of the modes that ran which no flow met."""
        ran = sorted({choice.mode for choice in modes if choice is not None})
        return [
            result(
                "exceptions",
                row.mode,
                checks=[CheckResult(row.id, False, "met by some scenario", "met by none")],
            )
            for row in exceptions.unused(self.rows, ran, self.met)
        ]


class _Act:
    """One scenario in one mode: what has been seen so far."""

    def __init__(self, scenario: Scenario, choice: Choice | None, runner: Runner) -> None:
        self.scenario = scenario
        self.choice = choice
        self.runner = runner
        self.flows: list[FlowResult] = []
        self.checks: list[CheckResult] = []
        self.skipped: list[Skipped] = []
        self.place = "building the network"
        self.step = 0
        self._held: dict[str, Holding] = {}
        #: Held flows as they were sent, and what was found of them since.
        self._sent: dict[str, Flow] = {}
        self._past: dict[str, frozenset[Fact]] = {}
        #: Which proxy ran when they were sent.
        self._lives: dict[str, int] = {}
        #: Of one step, when an exception asked for it.
        self._world: tuple[int, World] | None = None
        self._reached: dict[str, str] = {}
        self._unsent: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for holding in self._held.values():
            holding.close()

    def result(self, mode: str) -> Result:
        return result(self.scenario.name, mode, self.flows, self.checks, self.skipped)

    def play(self, stage: Stage) -> None:
        for number, step in enumerate(self.scenario.steps):
            self.step = number
            self.place = f"update {number}" if number else "objects"
            stage.perform(number, step)
            for group in _groups(list(self._claimed_flows(step.flows))):
                self._send(stage, group)
            checks, skipped = run_checks(stage, step, number, self.claimed)
            self.checks += checks
            self.skipped += skipped

    @property
    def claims_anything(self) -> bool:
        """False when building the lab would show nothing."""
        return self.claimed and any(
            step.expect_sets is not None
            or step.expect_martian_drop is not None
            or bool(step.expect_events)
            or any(self._claims(flow) for flow in step.flows)
            for step in self.scenario.steps
        )

    def skip_all(self) -> None:
        for number, step in enumerate(self.scenario.steps):
            self.step = number
            list(self._claimed_flows(step.flows))

    @property
    def claimed(self) -> bool:
        """Whether the scenario claims anything in this mode."""
        return self.choice is None or claims(self.scenario.modes, self.choice.mode)

    def _claims(self, flow: Flow) -> bool:
        if self.choice is None:
            return True
        return self.claimed and claims(flow.modes, self.choice.mode)

    def _claimed_flows(self, flows: Iterable[Flow]) -> Iterator[Flow]:
        """Flows whose outcome is claimed here; the others, and those that build on them, are
        listed."""
        for flow in flows:
            reason = ""
            if not self._claims(flow):
                assert self.choice is not None
                reason = f"its outcome is not claimed for {self.choice.mode}"
            elif {flow.check, flow.expect.same_as if flow.expect else ""} & self._unsent:
                reason = "the flow that it builds on did not run"
            if reason:
                self._unsent |= {flow.hold, flow.name} - {""}
                self.skipped.append(Skipped(flow.title, self.step, reason))
            else:
                yield flow

    def _row(self, flow: Flow, about: Known) -> Row | None:
        if self.choice is None:
            return None
        row = exceptions.find(self.runner.rows, self.choice.mode, flow, about)
        if row is not None:
            self.runner.met.add(row.id)
        return row

    def _about(self, stage: Stage, flow: Flow) -> Known:
        """What the objects of this step say of a flow, where an exception may ask for it. What was
        cut stays cut, whatever comes after it."""
        if self.choice is None or not exceptions.asks_facts(self.runner.rows, self.choice.mode):
            return exceptions.NOTHING
        if self._world is None or self._world[0] != self.step:
            self._world = self.step, world_of(stage)
        world = self._world[1]
        if flow.hold:
            self._lives[flow.hold] = world.life
        life = self._lives.get(flow.check, 0)
        like = like_of(flow, self.scenario.all_flows)
        about = known(world, flow, self._sent.get(flow.check), life=life, like=like)
        if flow.check:
            about = msgspec.structs.replace(
                about, facts=about.facts | self._past.get(flow.check, frozenset())
            )
            self._past[flow.check] = about.facts
        return about

    def _send(self, stage: Stage, group: Sequence[Flow]) -> None:
        """Send a group at once, judge each flow, and look closer at what failed."""
        facts = [self._about(stage, flow) for flow in group]
        rows = [self._row(flow, about) for flow, about in zip(group, facts, strict=True)]
        flows = [
            exceptions.changed(row, flow, about) if row is not None else flow
            for row, flow, about in zip(rows, group, facts, strict=True)
        ]
        for flow, row, judged in zip(flows, rows, self._judge(stage, flows), strict=True):
            detail = judged.detail
            if not judged.passed and not flow.check and self.choice is not None:
                detail = "\n".join(filter(None, [detail, self.runner.explain_failure(stage, flow)]))
            self.flows.append(
                FlowResult(
                    flow.title,
                    self.step,
                    judged.passed,
                    judged.expected,
                    judged.seen,
                    row.id if row is not None else "",
                    detail,
                )
            )

    def _judge(self, stage: Stage, flows: Sequence[Flow]) -> list[Judged]:
        if len(flows) == 1:
            alone = self._judge_alone(stage, flows[0])
            if alone is not None:
                return [alone]
        tries = _tries(stage, flows)
        return [self._judged(flow, outcomes) for flow, outcomes in zip(flows, tries, strict=True)]

    def _judged(self, flow: Flow, tries: Sequence[Outcome]) -> Judged:
        self._reached[flow.name] = tries[-1].local
        like = self._reached.get(flow.expect.same_as, "") if flow.expect else ""
        return judge(flow, tries, like=like)

    def _judge_alone(self, stage: Stage, flow: Flow) -> Judged | None:
        """Held flows and their checks, and tries one after the other; None for all others."""
        if flow.check:
            assert flow.expect is not None
            return judge_check(flow.expect, self._held[flow.check].check(), _known(stage))
        if flow.hold:
            self._sent[flow.hold] = flow
            self._held[flow.hold] = holding = Holding(_probe(stage, flow))
            self._reached[flow.name] = holding.outcome.local
            if flow.expect is None:
                return judge_hold(holding.outcome, _known(stage))
            return self._judged(flow, [holding.outcome])
        if _sequential(flow) and not needs_crafting(stage, flow):
            tries = [probe_all([_probe(stage, flow)])[0] for _ in range(_count(stage, flow))]
            return self._judged(flow, tries)
        return None


def _known(stage: Stage) -> frozenset[str]:
    """``ip:port`` of everything that answers as an endpoint."""
    return frozenset(
        join_host_port(endpoint.address, port)
        for endpoint in stage.layout.endpoints
        for port, _ in endpoint.ports
    )


def _count(stage: Stage, flow: Flow) -> int:
    """How often a flow is sent here."""
    listed = flow.expect.endpoints if flow.expect is not None else None
    rivals = listed is not None and not _known(stage) <= set(listed)
    return wanted_tries(flow, rivals=rivals)


def needs_crafting(stage: Stage, flow: Flow) -> bool:
    """Whether no socket can send the flow: its ends, its flags, a protocol this kernel lacks."""
    return bool(flow.flags) or stage.layout.crafted(flow) or _sctp_crafted(flow)


def _sctp_crafted(flow: Flow) -> bool:
    """Whether an SCTP flow is one crafted packet: in a kernel without SCTP, and where no endpoint
    is to answer. A kernel refuses by itself whatever SCTP it has no socket for, and the world,
    which should show that a packet got through, has none (its addresses are too many for the
    list that SCTP's first packets carry): only a packet seen there tells.
    """
    if flow.proto is not Protocol.SCTP:
        return False
    answered = flow.expect is None or flow.expect.verdict is None
    return not answered or not kernel_has(Protocol.SCTP)


def _sequential(flow: Flow) -> bool:
    expect = flow.expect
    ordered = expect is not None and (expect.same_endpoint or bool(expect.same_as))
    return ordered or bool(flow.repeat or flow.source_port)


def _groups(flows: Sequence[Flow]) -> Iterator[list[Flow]]:
    """Runs of flows that may go at once; a flow that must go alone is a group of one.

    A flow that a later one is compared with goes alone as well, so that it is sent before it.
    """
    compared = {flow.expect.same_as for flow in flows if flow.expect is not None}
    group: list[Flow] = []
    for flow in flows:
        alone = flow.check or flow.hold or _sequential(flow)
        if alone or (flow.name and flow.name in compared):
            if group:
                yield group
            yield [flow]
            group = []
        else:
            group.append(flow)
    if group:
        yield group


def _probe(stage: Stage, flow: Flow) -> Probe:
    """A flow that should stay unanswered is waited for briefly, with a control flow after it."""
    expect = flow.expect
    silent = expect is not None and expect.verdict is Verdict.DROP
    return stage.probe(flow, timeout=SILENCE if silent else None)


def _tries(stage: Stage, flows: Sequence[Flow]) -> list[list[Outcome]]:
    """Every try of every flow, all at once."""
    plain: list[tuple[int, Any]] = []
    crafted: list[tuple[int, Flow]] = []
    for index, flow in enumerate(flows):
        for _ in range(_count(stage, flow)):
            if needs_crafting(stage, flow):
                crafted.append((index, flow))
            else:
                plain.append((index, _probe(stage, flow)))
    found: list[list[Outcome]] = [[] for _ in flows]
    outcomes = probe_all([probe for _, probe in plain])
    for (index, _), outcome in zip(plain, outcomes, strict=True):
        found[index].append(outcome)
    outcomes = send_crafted(stage, [flow for _, flow in crafted])
    for (index, _), outcome in zip(crafted, outcomes, strict=True):
        found[index].append(outcome)
    return found
