"""Every scenario of the project with real packets, in every mode and variant of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.backends import registry
from kproxy.backends.registry import Choice
from kproxy.cli.scenario import scenario_files
from kproxy.lab.scenario import exceptions
from kproxy.lab.scenario.report import Result, plain
from kproxy.lab.scenario.runner import Runner, modes, probed
from kproxy.lab.scenario.schema import Broken, Scenario, Verdict, claims, load

pytestmark = pytest.mark.kernel

FOLDER = Path(__file__).resolve().parents[2] / "netns-lab" / "scenarios"
CASES = [case for path in scenario_files([FOLDER]) for case in load(path)]
CHOICES = registry.choices()


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner(exceptions.load(exceptions.default_path())) as one:
        yield one


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_this_machine_has_the_mode(choice: Choice) -> None:
    """A mode that the machine lacks is no silent hole: the host tools are part of the set-up."""
    assert probed(choice) == choice


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_scenario(runner: Runner, case: Scenario | Broken, choice: Choice) -> None:
    """Every flow and check meets what is claimed for the mode; something is claimed."""
    result = runner.run(case, choice)
    assert result.passed, plain(result)
    if isinstance(case, Scenario) and claims(case.modes, choice.mode):
        assert result.ran


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


def test_every_exception_is_met(runner: Runner) -> None:
    """A row of the exceptions table that no scenario meets says nothing (modes built so far)."""
    results: list[Result] = []
    for choice in CHOICES:
        results += [runner.run(case, choice) for case in CASES if _excepted(case, choice)]
    assert all(result.passed for result in results)
    assert runner.unused_rows(modes(["all"]).choices) == []


def _excepted(case: Scenario | Broken, choice: Choice) -> bool:
    """Whether some row of the table changes an expectation of the case."""
    rows = exceptions.load(exceptions.default_path())
    return isinstance(case, Scenario) and any(
        exceptions.find(rows, choice.mode, flow) for flow in case.all_flows
    )
