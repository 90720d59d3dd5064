"""What a step claims without packets: sets of endpoints in the plan, the loopback guard, events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from kproxy.config import Config
from kproxy.core.address import canonical_ip
from kproxy.core.decode import decode_value
from kproxy.core.events import Delta
from kproxy.core.objects import Family, Node, Refusal
from kproxy.core.planner import Planner
from kproxy.core.settings import node_settings
from kproxy.core.snapshot import Endpoint, PortPlan
from kproxy.core.tracker import Tracker
from kproxy.health.journal import Event, Kind
from kproxy.kernel.command import run
from kproxy.lab.scenario.build import NODE
from kproxy.lab.scenario.facts import World
from kproxy.lab.scenario.report import CheckResult, Skipped
from kproxy.lab.scenario.schema import Scenario, SetsExpected, Step
from kproxy.lab.scenario.settings import configuration
from kproxy.lab.scenario.stage import Stage

_SETS = "endpoint sets"
_GUARD = "loopback guard"
_EVENTS = "events"


def run_checks(
    stage: Stage, step: Step, number: int, claimed: bool
) -> tuple[list[CheckResult], list[Skipped]]:
    """The checks of one step, and those that cannot be made here."""
    checks: list[CheckResult] = []
    skipped: list[Skipped] = []
    at = f" (update {number})" if number else ""
    mode = stage.choice.mode if stage.choice is not None else "none"
    if step.expect_sets is not None:
        if stage.choice is None or not claimed:
            skipped.append(Skipped(_SETS, number, f"nothing is claimed for {mode}"))
        else:
            checks += check_sets(step.expect_sets, plan_of(stage), f"{_SETS}{at}")
    if step.expect_martian_drop is not None:
        if mode != "iptables" or not claimed:
            skipped.append(Skipped(_GUARD, number, f"only iptables mode has one, not {mode}"))
        else:
            checks.append(check_guard(stage, step.expect_martian_drop, f"{_GUARD}{at}"))
    if step.expect_events:
        if stage.choice is None or not claimed:
            skipped.append(Skipped(_EVENTS, number, f"nothing is claimed for {mode}"))
        else:
            checks += check_events(step.expect_events, stage.events(), f"{_EVENTS}{at}")
    return checks, skipped


def check_events(
    expected: Mapping[Kind, int], events: Iterable[Event], name: str
) -> list[CheckResult]:
    """One result for each kind that is named."""
    seen = Counter(event.kind for event in events)
    return [
        CheckResult(f"{name}: {kind}", seen[kind] == wanted, str(wanted), str(seen[kind]))
        for kind, wanted in expected.items()
    ]


def plan_of(stage: Stage) -> list[PortPlan]:
    """The service ports of both families, as this node plans them from the present manifests."""
    assert stage.choice is not None
    config = configuration(stage.scenario, stage.choice)
    documents = [
        msgspec.json.decode(path.read_bytes()) for path in sorted(stage.manifests.folder.iterdir())
    ]
    return plans(stage.scenario, config, documents, _node_addresses(stage))


def world_of(stage: Stage) -> World:
    """What there is to know of this step's flows."""
    assert stage.choice is not None
    assert stage.proxy is not None
    config, host = configuration(stage.scenario, stage.choice), _node_addresses(stage)
    targets = node_settings(config, None, "", Family.IPV4, host).node_port_targets
    return World(
        plan_of(stage),
        frozenset(host),
        everywhere=targets.all,
        life=stage.proxy.life,
        ended=frozenset(stage.proxy.ended),
    )


def _node_addresses(stage: Stage) -> tuple[str, ...]:
    host = [address for address, name in stage.layout.homes.items() if name == NODE]
    return *host, "127.0.0.1", "::1"


def plans(
    scenario: Scenario, config: Config, documents: Iterable[object], host: Sequence[str]
) -> list[PortPlan]:
    """Pure: the plans of both families of these objects."""
    tracker = Tracker()
    name = scenario.node.name
    refusals: list[Refusal] = []
    for document in documents:
        read = decode_value(document)
        refusals += read.refusals
        tracker.apply(Delta(upserted=tuple(read.objects)))
    node: Node | None = tracker.node(name)
    found: list[PortPlan] = []
    for family in Family:
        settings = node_settings(config, node, name, family, host)
        found += Planner(family).plan(tracker, settings).ports.values()
    return found


def check_sets(expected: SetsExpected, ports: Sequence[PortPlan], name: str) -> list[CheckResult]:
    """One result for each set that is named."""
    if len(ports) != 1:
        seen = f"{len(ports)} service ports"
        return [CheckResult(name, False, "one service port", seen)]
    sets = ports[0].endpoints
    results = []
    for key in ("cluster", "local", "all"):
        wanted = getattr(expected, key)
        if wanted is not msgspec.UNSET:
            got: tuple[Endpoint, ...] | None = getattr(sets, key)
            results.append(
                CheckResult(f"{name}: {key}", _equal(wanted, got), _shown(wanted), _shown(got))
            )
    if expected.has_any is not msgspec.UNSET:
        wanted_any, got_any = expected.has_any, sets.has_any
        results.append(
            CheckResult(f"{name}: has_any", wanted_any == got_any, str(wanted_any), str(got_any))
        )
    return results


def _equal(wanted: Sequence[str] | None, got: Sequence[Endpoint] | None) -> bool:
    """Endpoints may be named by address alone, or with their port."""
    if wanted is None or got is None:
        return wanted is None and got is None
    whole = {str(one) for one in got} | {one.ip for one in got}
    named = {canonical_ip(text) or text for text in wanted}
    return len(named) == len({str(one) for one in got}) and named <= whole


def _shown(endpoints: Sequence[str | Endpoint] | None) -> str:
    if endpoints is None:
        return "not used"
    return ", ".join(sorted(map(str, endpoints))) or "empty"


def check_guard(stage: Stage, wanted: bool, name: str) -> CheckResult:
    """Whether the node's own tables drop strangers' packets to 127.0.0.0/8."""
    assert stage.choice is not None
    argv = [f"iptables-{stage.choice.variant}-save", "-t", "filter"]
    saved = run(argv, namespace=stage.fd(NODE), env=stage.environment).stdout.decode()
    found = [
        line
        for line in saved.splitlines()
        if line.startswith("-A") and "-d 127.0.0.0/8" in line and line.endswith("-j DROP")
    ]
    words = {True: "a rule that drops it", False: "no such rule"}
    return CheckResult(name, bool(found) is wanted, words[wanted], words[bool(found)])
