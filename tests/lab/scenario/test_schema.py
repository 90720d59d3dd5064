"""Scenario files: what is read, what is an error, and that one broken case stops no other."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from kproxy.core.objects import Protocol
from kproxy.errors import ScenarioError
from kproxy.lab.scenario.schema import (
    MODES,
    Broken,
    Scenario,
    SenderKind,
    claims,
    load,
    parse,
)

FLOW = "from: 10.0.0.1, to: 172.30.0.1, port: 80"

#: (YAML of one case, what its error must name)
BROKEN = [
    ("{name: a, flow: []}", "`flow`"),
    ("{flows: []}", "`name`"),
    ("just text", "Expected `object`"),
    ("{name: a, node: {ip: 1.2.3.4}}", "`ip`"),
    ("{name: a, node: {ips: [nope]}}", "node.ips: 'nope'"),
    ("{name: a, modes: [iptable]}", "unknown mode 'iptable'"),
    ("{name: a, api_valid: perhaps}", "api_valid"),
    (f"{{name: a, flows: [{{{FLOW}, expect: {{verdit: DROP}}}}]}}", "`verdit`"),
    (f"{{name: a, flows: [{{{FLOW}, expect: {{verdict: DROPPED}}}}]}}", "DROPPED"),
    (
        f"{{name: a, flows: [{{{FLOW}, expect: {{}}}}]}}",
        "exactly one of verdict, endpoints and http",
    ),
    (f"{{name: a, flows: [{{{FLOW}, expect: {{endpoints: []}}}}]}}", "name one at least"),
    (f"{{name: a, flows: [{{{FLOW}, expect: {{endpoints: ['10.0.0.1']}}}}]}}", "is no endpoint"),
    (f"{{name: a, flows: [{{{FLOW}}}]}}", "flows[0]: nothing is expected"),
    (
        f"{{name: a, flows: [{{{FLOW}, modes: [none], expect: {{verdict: DROP}}}}]}}",
        "flows[0].modes",
    ),
    ("{name: a, flows: [{from: x, to: 1.1.1.1, port: 80, hold: h}]}", "flows[0].from: 'x'"),
    ("{name: a, flows: [{from: 1.1.1.1, to: 1.1.1.1, port: 0, hold: h}]}", "flows[0].port: 0"),
    ("{name: a, flows: [{check: h, expect: {alive: true}}]}", "holds 'h'"),
    (f"{{name: a, flows: [{{{FLOW}, hold: h}}, {{check: h}}]}}", "a check needs an expect"),
    (
        f"{{name: a, flows: [{{{FLOW}, same_as: other, expect: {{endpoints: ['1.1.1.1:1']}}}}]}}",
        "same_as names 'other'",
    ),
    ("{name: a, updates: [{do: [{proxy: reboot}]}]}", "updates[0].do[0].proxy: 'reboot'"),
    ("{name: a, updates: [{do: [{in: node}]}]}", "exactly one of proxy, exec, fault, wait_for"),
    ("{name: a, updates: [{do: [{fault: 10.0.0.1}]}]}", "a fault needs a kind"),
    ("{name: a, updates: [{do: [{fault: 10.0.0.1, kind: slow}]}]}", "kind: 'slow'"),
    ("{name: a, updates: [{do: [{wait_for: godot}]}]}", "wait_for: 'godot'"),
    ("{name: a, updates: [{do: [{wait_for: {}}]}]}", "nothing to wait for"),
    ("{name: a, updates: [{do: [{wait_for: {service: a/b}}]}]}", "nothing to wait for"),
    ("{name: a, updates: [{do: [{wait_for: {out: [x]}}]}]}", "'x' is no endpoint"),
    ("{name: a, updates: [{do: [{wait_for: {gone: []}}]}]}", "`gone`"),
    ("{name: a, updates: [{expect_events: {died: 1}}]}", "died"),
    ("{name: a, updates: [{do: [{proxy: stop, stdin: x}]}]}", "stdin is for an exec"),
    (f"{{name: a, flows: [{{{FLOW}, flags: SX, expect: {{verdict: DROP}}}}]}}", "flags: 'SX'"),
    (
        f"{{name: a, flows: [{{{FLOW}, proto: UDP, flags: S, expect: {{verdict: DROP}}}}]}}",
        "flags: 'S'",
    ),
    ("{name: a, updates: [{config: {}}]}", "`config`"),
]


@pytest.mark.parametrize(("text", "named"), BROKEN)
def test_a_broken_case_is_named_and_the_others_run(text: str, named: str) -> None:
    """The error names file, case and key; the good case after it is read."""
    first, second = parse(f"- {text}\n- {{name: good}}\n", where="some/file.yaml")
    assert isinstance(first, Broken)
    message = str(first.error)
    assert named in message
    assert message.startswith("some/file.yaml: ")
    assert "a: " in message or "case 1: " in message
    assert isinstance(second, Scenario)
    assert second.name == "good"


@pytest.mark.parametrize("text", ["- {a: ]\n", "\t- x", "a: b: c"])
def test_no_yaml_is_an_error_with_its_line(text: str) -> None:
    """A file that is no YAML condemns all of its cases, and the line is told."""
    with pytest.raises(ScenarioError, match=r"f\.yaml:\d+: "):
        parse(text, where="f.yaml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path that cannot be read is an error of use."""
    with pytest.raises(ScenarioError, match=r"nothing\.yaml: cannot be read"):
        load(tmp_path / "nothing.yaml")


def test_one_scenario_needs_no_list() -> None:
    """A file may hold one case; its addresses become canonical text."""
    (case,) = parse(
        """
        name: one
        about: text
        confidence: high
        node: {name: n, ips: ['2001:0DB8::0001', 192.0.2.1]}
        flows:
        - {name: f, note: n, from: '2001:db8:0::9', from_kind: external, proto: SCTP,
           to: '2001:DB8::1', port: 80, same_endpoint: true, repeat: 3,
           expect: {endpoints: ['[2001:db8:0:0::5]:80'],
                    masquerade_by_endpoint: {'[2001:DB8::5]:80': true}}}
        - {from: 192.0.2.9, to: 192.0.2.1, port: 1, hold: h}
        updates:
        - flows: [{check: h, expect: {alive: false}}]
        """,
        where="x",
    )
    assert isinstance(case, Scenario)
    assert case.node.ips == ("2001:db8::1", "192.0.2.1")
    flow = case.flows[0]
    assert (flow.source, flow.to, flow.proto) == ("2001:db8::9", "2001:db8::1", Protocol.SCTP)
    assert flow.from_kind is SenderKind.EXTERNAL
    assert flow.expect is not None
    assert flow.expect.endpoints == ("[2001:db8::5]:80",)
    assert flow.expect.masquerade_by_endpoint == {"[2001:db8::5]:80": True}
    assert flow.expect.same_endpoint
    assert [len(step.flows) for step in case.steps] == [2, 1]


CLAIMS = [
    (None, {*MODES}),
    (("iptables",), {"iptables", "ipvs", "userspace", "fastpath"}),
    (("nftables",), {"nftables"}),
    (("ipvs", "nftables"), {"ipvs", "nftables"}),
    ((), set()),
]


@pytest.mark.parametrize(("modes", "wanted"), CLAIMS)
def test_what_modes_claim(modes: tuple[str, ...] | None, wanted: set[str]) -> None:
    """`iptables` claims an outcome for the modes that follow it; no key claims it for all."""
    assert {mode for mode in MODES if claims(modes, mode)} == wanted


def test_expect_null_and_absent_differ() -> None:
    """In expect_sets null says that a set is not used, absence that nobody looks at it."""
    (case,) = parse("{name: a, expect_sets: {cluster: null, has_any: true}}", where="x")
    assert isinstance(case, Scenario)
    assert case.expect_sets is not None
    assert case.expect_sets.cluster is None
    assert case.expect_sets.local is msgspec.UNSET


@pytest.mark.parametrize(
    ("modes", "mode", "claimed"),
    [
        (("iptables", "!ipvs"), "ipvs", False),
        (("iptables", "!ipvs"), "iptables", True),
        (("iptables", "!ipvs"), "userspace", True),
        (("iptables",), "ipvs", True),
    ],
)
def test_a_mode_that_is_taken_out(modes: tuple[str, ...], mode: str, claimed: bool) -> None:
    """Of those that go by iptables mode, one may be left out."""
    assert claims(modes, mode) is claimed
