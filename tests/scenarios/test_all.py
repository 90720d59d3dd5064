"""Every scenario of the project with real packets, in every mode and variant.

Modes and protocols that this kernel lacks run in user-mode Linux (tests/uml).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from kproxy.backends import registry
from kproxy.backends.registry import Choice
from kproxy.cli.scenario import scenario_files
from kproxy.core.objects import Protocol
from kproxy.lab.scenario import exceptions
from kproxy.lab.scenario.facts import Fact, Known
from kproxy.lab.scenario.report import plain
from kproxy.lab.scenario.runner import Runner, probed
from kproxy.lab.scenario.schema import Broken, Scenario, Verdict, claims, load
from kproxy.lab.traffic.sockets import kernel_has

FOLDER = Path(__file__).resolve().parents[2] / "netns-lab" / "scenarios"
CASES = [case for path in scenario_files([FOLDER]) for case in load(path)]
CHOICES = registry.choices()

#: What a mode needs of the kernel, as a mark of tests; rules of iptables are everywhere.
_NEEDS = {"ipvs": pytest.mark.ipvs}

MODES = [
    pytest.param(choice, marks=_NEEDS.get(choice.mode, pytest.mark.kernel), id=str(choice))
    for choice in CHOICES
]


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner(exceptions.load(exceptions.default_path())) as one:
        yield one


#: With the variant of the iptables tools that the kernel has, looked up once.
resolved = cache(registry.resolve)


@pytest.mark.parametrize("choice", MODES)
def test_this_machine_has_the_mode(choice: Choice) -> None:
    """A mode that the machine lacks is no silent hole: the host tools are part of the set-up."""
    assert probed(choice) == choice


@pytest.mark.parametrize("choice", MODES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_scenario(runner: Runner, case: Scenario | Broken, choice: Choice) -> None:
    """Every flow and check meets what is claimed for the mode; something is claimed."""
    result = runner.run(case, resolved(choice))
    assert result.passed, plain(result)
    if isinstance(case, Scenario) and claims(case.modes, choice.mode):
        assert result.ran


#: The first mode that user-mode Linux can run.
_INSIDE = Choice("ipvs") if registry.built("ipvs") else Choice("iptables", "legacy")


def _over_sctp(case: Scenario | Broken) -> bool:
    return isinstance(case, Scenario) and any(
        flow.proto is Protocol.SCTP and claims(flow.modes, _INSIDE.mode)
        for flow in case.all_flows
        if claims(case.modes, _INSIDE.mode)
    )


@pytest.mark.sctp
@pytest.mark.ipvs
@pytest.mark.parametrize(
    "case", [one for one in CASES if _over_sctp(one)], ids=lambda case: case.name
)
def test_over_real_sctp(runner: Runner, case: Scenario) -> None:
    """With a kernel that has SCTP, associations stand end to end, answers and all."""
    assert kernel_has(Protocol.SCTP)
    result = runner.run(case, resolved(registry.parse(str(_INSIDE))))
    assert result.passed, plain(result)


@pytest.mark.kernel
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_without_a_proxy_it_fails(runner: Runner, case: Scenario | Broken) -> None:
    """With no proxy every flow fails but those that the proxy must leave alone, and no check holds.

    A step that looks for the proxy's rules with a tool finds none: that ends the scenario early.
    """
    assert isinstance(case, Scenario), case
    result = runner.run(case, None)
    untouched = Verdict.ACCEPT_UNTRANSLATED.value
    wrong = [flow for flow in result.flows if flow.passed and flow.expected != untouched]
    assert wrong == []
    assert [check for check in result.checks if check.passed] == []


def test_names_are_unique() -> None:
    """A name is how a person finds a scenario again."""
    names = [case.name for case in CASES]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("choice", MODES)
def test_every_exception_is_met(runner: Runner, choice: Choice) -> None:
    """A row of the exceptions table that no scenario meets says nothing."""
    for case in CASES:
        if runner.unused_rows([choice]) and _may_be_excepted(case, choice):
            assert runner.run(case, resolved(choice)).passed
    assert runner.unused_rows([choice]) == []


def _may_be_excepted(case: Scenario | Broken, choice: Choice) -> bool:
    """Whether some row of the table may change an expectation of the case, if the objects say what
    it asks for."""
    rows = exceptions.load(exceptions.default_path())
    return isinstance(case, Scenario) and any(
        exceptions.find(rows, choice.mode, flow, Known(frozenset(Fact)))
        for flow in case.all_flows
        if claims(case.modes, choice.mode) and claims(flow.modes, choice.mode)
    )
