"""The runner on the real kernel: it must tell right from wrong, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.backends.registry import Choice
from kproxy.kernel import netns
from kproxy.lab.scenario.exceptions import Row, load
from kproxy.lab.scenario.report import Result, exit_status
from kproxy.lab.scenario.runner import Runner, modes
from kproxy.lab.scenario.schema import Broken, Scenario, parse
from kproxy.lab.scenario.stage import in_variant
from kproxy.lab.scenario.workspace import ROOT, Workspace

pytestmark = pytest.mark.kernel

OBJECTS = """
  - apiVersion: v1
    kind: Service
    metadata: {namespace: a, name: s}
    spec: {type: NodePort, clusterIP: 172.30.0.1,
           ports: [{name: h, port: 80, nodePort: 30080, protocol: TCP}]}
  - apiVersion: discovery.k8s.io/v1
    kind: EndpointSlice
    metadata: {namespace: a, name: s-1, labels: {kubernetes.io/service-name: s}}
    addressType: IPv4
    ports: [{name: h, port: 8080, protocol: TCP}]
    endpoints: [{addresses: [10.1.0.1], nodeName: n1}, {addresses: [10.1.1.1], nodeName: n2}]
  - apiVersion: v1
    kind: Service
    metadata: {namespace: a, name: empty}
    spec: {clusterIP: 172.30.0.2, ports: [{port: 80, protocol: TCP}]}
"""
BASE = f"""
  node: {{name: n1, ips: [192.168.0.2]}}
  config: {{detectLocal: {{mode: ClusterCIDR, cidr: 10.0.0.0/8}}}}
  objects: {OBJECTS}
"""
BOTH = "endpoints: ['10.1.0.1:8080', '10.1.1.1:8080']"
TO = "from: 10.1.0.9, to: 172.30.0.1, port: 80"


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner() as one:
        yield one


@pytest.fixture(scope="module")
def choice() -> Choice:
    (found,) = modes(["iptables-nft"]).choices
    assert found is not None
    return found


def case(text: str, *, base: str = BASE) -> Scenario:
    (found,) = parse(f"- name: test\n{base}\n{text}", where="test")
    assert isinstance(found, Scenario), found
    return found


def flows(*lines: str) -> Scenario:
    return case("  flows:\n" + "\n".join(f"  - {{{line}}}" for line in lines))


def fails(result: Result) -> list[bool]:
    return [not flow.passed for flow in result.flows]


#: (flow, expectation that is right, expectation that is wrong)
PAIRS = [
    (TO, f"{{{BOTH}, masquerade: false}}", f"{{{BOTH}, masquerade: true}}"),
    (TO, f"{{{BOTH}}}", "{endpoints: ['10.1.0.1:8080']}"),
    (TO, f"{{{BOTH}}}", "{endpoints: ['10.1.0.1:8080', '10.1.1.1:8080', '10.1.2.1:8080']}"),
    (TO, f"{{{BOTH}}}", "{verdict: REJECT}"),
    (TO, f"{{{BOTH}}}", "{verdict: DROP}"),
    (TO, f"{{{BOTH}}}", "{verdict: ACCEPT_UNTRANSLATED}"),
    ("from: 10.1.0.9, to: 172.30.0.2, port: 80", "{verdict: REJECT}", "{verdict: DROP}"),
    (
        "from: 10.1.0.9, to: 172.30.0.2, port: 80",
        "{verdict: REJECT}",
        "{verdict: ACCEPT_UNTRANSLATED}",
    ),
    (
        "from: 10.1.0.9, to: 172.30.0.3, port: 80",
        "{verdict: ACCEPT_UNTRANSLATED}",
        "{verdict: DROP}",
    ),
    (
        "from: 203.0.113.9, from_kind: external, to: 192.168.0.2, port: 30080",
        f"{{{BOTH}, masquerade: true}}",
        f"{{{BOTH}, masquerade: false}}",
    ),
    (
        "from: 192.168.0.2, from_kind: node, to: 127.0.0.1, port: 30080",
        f"{{{BOTH}, masquerade: true}}",
        "{verdict: ACCEPT_UNTRANSLATED}",
    ),
    (
        "from: 192.168.0.2, from_kind: node, to: 192.168.0.2, port: 9",
        "{verdict: ACCEPT_UNTRANSLATED}",
        "{verdict: REJECT}",
    ),
    (
        "from: 10.1.0.1, to: 172.30.0.1, port: 80",
        f"{{{BOTH}, masquerade_by_endpoint: {{'10.1.0.1:8080': true, '10.1.1.1:8080': false}}}}",
        f"{{{BOTH}, masquerade: false}}",
    ),
    (
        f"{TO}, repeat: 21",
        f"{{{BOTH}, all_endpoints_seen: true}}",
        f"{{{BOTH}, same_endpoint: true}}",
    ),
    (
        "from: 172.30.0.1, from_kind: external, to: 192.168.0.2, port: 30080",
        f"{{{BOTH}, masquerade: true}}",
        "{verdict: DROP}",
    ),
]


def test_right_expectations_pass_and_wrong_ones_fail(runner: Runner, choice: Choice) -> None:
    """Of each pair the right one passes and the wrong one fails, on the same rules."""
    right = runner.run(flows(*(f"{flow}, expect: {good}" for flow, good, _ in PAIRS)), choice)
    wrong = runner.run(flows(*(f"{flow}, expect: {bad}" for flow, _, bad in PAIRS)), choice)
    assert [flow.seen for flow in right.flows if not flow.passed] == []
    assert right.passed
    assert [flow.expected for flow in wrong.flows if flow.passed] == []
    assert not wrong.passed
    assert not right.checks
    assert not wrong.checks


def test_a_failing_flow_shows_packets_and_rules(runner: Runner, choice: Choice) -> None:
    """Hop by hop what was seen, and the chain of rules that the flow goes through."""
    result = runner.run(flows(f"{TO}, expect: {{verdict: REJECT}}"), choice)
    detail = result.flows[0].detail
    for part in ("172.30.0.1:http S", "node:", "-j KUBE-SVC-", "-j KUBE-SEP-", "DNAT", "log of"):
        assert part in detail
    assert "172.30.0.2" not in detail


def test_a_failing_flow_shows_elements(runner: Runner) -> None:
    """In nftables mode: those of its own destination, by set."""
    (nftables,) = modes(["nftables"]).choices
    detail = runner.run(flows(f"{TO}, expect: {{verdict: REJECT}}"), nftables).flows[0].detail
    for part in ("ways: 172.30.0.1 . 6 . 80 : goto inside-2", "endpoints: 172.30.0.1 . 6 . 80 . "):
        assert part in detail
    assert "172.30.0.2" not in detail


def test_without_a_proxy_only_untranslated_flows_pass(runner: Runner) -> None:
    """Nothing passes by accident: the world and the node answer everything."""
    lines = [f"{flow}, expect: {good}" for flow, good, _ in PAIRS]
    lines += [f"{TO}, hold: h", f"{TO}, expect: {{verdict: DROP}}"]
    checked = case(
        "  flows:\n"
        + "\n".join(f"  - {{{line}}}" for line in lines)
        + "\n  - {check: h, expect: {alive: true}}"
    )
    result = runner.run(checked, None)
    passed = {flow.expected for flow in result.flows if flow.passed}
    assert passed == {"ACCEPT_UNTRANSLATED"}
    assert len(result.flows) == len(lines) + 1


UPDATES = f"""
  flows:
  - {{name: first, {TO}, hold: h}}
  updates:
  - about: the proxy dies, its rules stay
    do: [{{proxy: kill}}]
    flows:
    - {{name: killed, {TO}, expect: {{{BOTH}}}}}
    - {{check: h, expect: {{alive: true, lost: 0}}}}
  - about: deleted while it was dead, and started again
    delete: [{{kind: Service, metadata: {{namespace: a, name: s}}}}]
    do: [{{proxy: stop}}]
    flows: [{{name: unseen, {TO}, expect: {{{BOTH}}}}}]
  - do: [{{proxy: start}}, {{wait_for: synced}}, {{exec: ['true']}},
         {{exec: [ip, addr], in: 10.1.0.1}}]
    flows: [{{name: gone, {TO}, expect: {{verdict: ACCEPT_UNTRANSLATED}}}}]
  - about: wiped by hand and begun anew
    do: [{{proxy: stop}}, {{exec: [iptables-nft, -t, nat, -F]}}, {{proxy: start}}]
    apply:
    - apiVersion: v1
      kind: Service
      metadata: {{namespace: a, name: s}}
      spec: {{clusterIP: 172.30.0.1, ports: [{{name: h, port: 80, protocol: TCP}}]}}
    flows: [{{name: back, {TO}, expect: {{{BOTH}}}}}]
  - about: silent, then refusing endpoints, then all well
    do: [{{fault: 10.1.0.1, kind: loss=100%}}, {{fault: 10.1.1.1, kind: hang}}]
    flows: [{{name: silent, {TO}, expect: {{verdict: DROP}}}}]
  - do: [{{fault: 10.1.0.1, kind: heal}}, {{fault: 10.1.1.1, kind: heal}},
         {{fault: 10.1.0.1, kind: refuse}}, {{fault: 10.1.1.1, kind: refuse}}]
    flows: [{{name: refusing, {TO}, expect: {{verdict: REJECT}}}}]
  - do: [{{fault: 10.1.0.1, kind: heal}}, {{fault: 10.1.1.1, kind: heal}}, {{proxy: restart}}]
    flows:
    - {{name: healed, {TO}, expect: {{{BOTH}}}}}
    - {{name: one, {TO}, repeat: 1, expect: {{endpoints: ['10.1.0.1:8080', '10.1.1.1:8080']}}}}
"""


def test_updates_do_what_they_say(runner: Runner, choice: Choice) -> None:
    """Real processes end and begin, objects go and come, endpoints fail and heal."""
    result = runner.run(case(UPDATES), choice)
    assert [(flow.name, flow.seen) for flow in result.flows if not flow.passed] == []
    assert result.passed
    assert {flow.step for flow in result.flows} == {0, *range(1, 8)}


FAULTY = [
    ("do: [{exec: ['false']}]", "false ended with 1"),
    ("do: [{exec: ['true'], in: 10.77.0.1}]", "nobody lives at 10.77.0.1"),
    ("do: [{fault: 10.1.0.9, kind: hang}]", "nothing answers for"),
    ("delete: [{kind: Service, metadata: {namespace: a, name: z}}]", "no Service a z to delete"),
]


@pytest.mark.parametrize(("step", "named"), FAULTY)
def test_a_step_that_cannot_be_done_fails_the_scenario(
    runner: Runner, choice: Choice, step: str, named: str
) -> None:
    """The update and the reason stand among the checks; what ran before stays in the result."""
    text = f"  flows: [{{{TO}, expect: {{{BOTH}}}}}]\n  updates: [{{{step}}}]"
    result = runner.run(case(text), choice)
    assert not result.passed
    assert [flow.passed for flow in result.flows] == [True]
    (check,) = result.checks
    assert check.name == "update 1"
    assert named in check.seen


def test_a_config_that_makes_no_sense_fails_the_scenario(runner: Runner, choice: Choice) -> None:
    """An unknown field of the configuration is named."""
    result = runner.run(
        case(
            "",
            base="  config: {nodePortAdresses: []}\n  objects: []\n"
            f"  flows: [{{{TO}, expect: {{{BOTH}}}}}]",
        ),
        choice,
    )
    assert not result.passed
    assert "nodePortAdresses" in result.checks[0].seen


CHECKS = [
    ("expect_sets: {cluster: [10.1.0.1, '10.1.1.1:8080'], local: null, has_any: true}", True),
    ("expect_sets: {all: [10.1.0.1, 10.1.1.1]}", True),
    ("expect_sets: {cluster: [10.1.0.1]}", False),
    ("expect_sets: {local: []}", False),
    ("expect_sets: {has_any: false}", False),
    ("expect_martian_drop: true", True),
    ("expect_martian_drop: false", False),
]


@pytest.mark.parametrize(("check", "passes"), CHECKS)
def test_checks_without_packets(runner: Runner, choice: Choice, check: str, passes: bool) -> None:
    """Endpoint sets of the plan, and the loopback guard of the node's own tables."""
    base = BASE.partition(
        "  - apiVersion: v1\n    kind: Service\n    metadata: {namespace: a, name: e"
    )
    result = runner.run(case(f"  {check}", base=base[0]), choice)
    assert result.passed is passes
    assert result.checks


def test_flows_that_are_not_claimed_are_skipped(runner: Runner, choice: Choice) -> None:
    """They stand apart with a reason; a scenario with nothing else ran nothing at all."""
    lines = (f"{TO}, modes: [nftables], expect: {{verdict: REJECT}}",)
    result = runner.run(flows(*lines), choice)
    assert (result.flows, result.checks) == ((), ())
    assert [skip.reason for skip in result.skipped] == ["its outcome is not claimed for iptables"]
    assert exit_status([result]) == 2
    mixed = runner.run(flows(*lines, f"{TO}, expect: {{{BOTH}}}"), choice)
    assert (len(mixed.flows), len(mixed.skipped)) == (1, 1)
    assert exit_status([result, mixed]) == 0


def test_what_builds_on_a_skipped_flow_is_skipped(runner: Runner, choice: Choice) -> None:
    """The check of a flow that is not held in this mode, and what is compared with it."""
    lines = (
        f"name: held, {TO}, hold: h, modes: [nftables]",
        "check: h, expect: {alive: true}",
        f"{TO}, same_as: held, expect: {{{BOTH}}}",
        f"{TO}, expect: {{{BOTH}}}",
    )
    result = runner.run(flows(*lines), choice)
    assert (len(result.flows), result.passed) == (1, True)
    assert [skip.reason for skip in result.skipped] == [
        "its outcome is not claimed for iptables",
        "the flow that it builds on did not run",
        "the flow that it builds on did not run",
    ]


def test_exceptions_replace_an_expectation_and_are_named(choice: Choice) -> None:
    """The row's outcome judges, its id stands beside the flow, and an unused row fails."""
    rows = tuple(
        Row(id=name, mode="iptables", when=when, outcome={"masquerade": True}, reason="a test")
        for name, when in zip(("used", "unused"), _conditions(), strict=True)
    )
    with Runner(rows, explain_failures=False) as runner:
        result = runner.run(
            flows(f"{TO}, expect: {{{BOTH}, masquerade: false}}", f"{TO}, expect: {{{BOTH}}}"),
            choice,
        )
        unused = runner.unused_rows([choice])
    assert [(flow.cell, flow.passed) for flow in result.flows] == [("used", False), ("", True)]
    assert "masqueraded" in result.flows[0].expected
    assert [one.checks[0].name for one in unused] == ["unused"]
    assert exit_status([result, *unused]) == 1


def _conditions() -> Iterator[object]:
    from kproxy.lab.scenario.exceptions import Condition
    from kproxy.lab.scenario.schema import Verdict

    yield Condition(endpoints=True, masquerade=False)
    yield Condition(verdict=Verdict.DROP)


def test_a_broken_case_is_a_failed_result(runner: Runner, choice: Choice) -> None:
    """It is reported like any other scenario, and fails."""
    (broken,) = parse("{name: b, nonsense: 1}", where="file.yaml")
    assert isinstance(broken, Broken)
    result = runner.run(broken, choice)
    assert (result.scenario, result.passed) == ("b", False)
    assert "nonsense" in result.checks[0].seen


def test_nothing_stays_behind(runner: Runner, choice: Choice) -> None:
    """Namespaces and directories go with the scenario and with the runner."""
    runner.run(flows(f"{TO}, expect: {{{BOTH}}}"), choice)
    ours = f"kp-scn-{os.getpid()}-"
    assert [path.name for path in netns.RUN_DIR.iterdir() if path.name.startswith(ours)] == []


def test_a_killed_run_is_swept_by_the_next(tmp_path: Path) -> None:
    """Namespaces that a killed run recorded are removed when the next one begins."""
    name = f"kp-g-swept-{tmp_path.name[-6:]}"
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from kproxy.kernel import netns\n"
        "from kproxy.lab.scenario.workspace import Workspace\n"
        f"work = Workspace(Path({str(tmp_path)!r})); work.record({name!r})\n"
        f"netns.create({name!r}); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert netns.exists(name)
    with Workspace(tmp_path) as workspace:
        assert not netns.exists(name)
        assert [path for path in tmp_path.iterdir() if path.is_dir()] == [workspace.path]
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_the_projects_own_table_of_exceptions() -> None:
    """It can be read, every row has a reason, and one is of userspace's source."""
    from kproxy.lab.scenario.exceptions import default_path

    rows = load(default_path())
    assert ("userspace", {"masquerade": True}) in [(row.mode, row.outcome) for row in rows]
    assert all(row.reason for row in rows)
    assert len({row.id for row in rows}) == len(rows)
    assert ROOT.is_absolute()


@pytest.mark.parametrize(
    ("argv", "variant", "runs"),
    [
        (("iptables", "-F"), "nft", ("iptables-nft", "-F")),
        (("ip6tables-restore",), "legacy", ("ip6tables-legacy-restore",)),
        (("iptables-nft", "-F"), "legacy", ("iptables-nft", "-F")),
        (("sleep", "1"), "nft", ("sleep", "1")),
        (("iptables", "-F"), "", ("iptables", "-F")),
    ],
)
def test_tools_of_steps_are_those_of_the_variant(
    argv: tuple[str, ...], variant: str, runs: tuple[str, ...]
) -> None:
    """The two variants have tables of their own, and a step means the proxy's."""
    assert in_variant(argv, variant) == runs


STRAY = """
name: stray
flows:
- {name: of nobody, from: 10.180.0.9, to: 203.0.113.2, port: 40001, source_port: 8080, flags: SA,
   expect: {verdict: ACCEPT_UNTRANSLATED}}
- {name: to loopback, from: 203.0.113.2, from_kind: external, to: 127.0.0.1, port: 22,
   expect: {verdict: ACCEPT_UNTRANSLATED}}
updates:
- do: [{exec: [sysctl, -q, -w, net.ipv4.conf.all.route_localnet=1]}]
  flows:
  - {name: to loopback, from: 203.0.113.2, from_kind: external, to: 127.0.0.1, port: 22,
     expect: {verdict: ACCEPT_UNTRANSLATED}}
"""


@pytest.mark.kernel
def test_stray_packets_are_seen_where_they_arrive(runner: Runner) -> None:
    """With no proxy a stray packet arrives, and one to loopback where the kernel lets it in."""
    (case,) = parse(STRAY, where="here")
    flows = runner.run(case, None).flows
    assert [(flow.name, flow.passed) for flow in flows] == [
        ("of nobody", True),
        ("to loopback", False),
        ("to loopback", True),
    ]
