"""Rendering: text equals the typed rules, and work follows the change."""

from __future__ import annotations

import pytest

from kproxy.backends.iptables import chains
from kproxy.backends.iptables.fixed import node_port_jumps, wanted_sysctls
from kproxy.backends.iptables.render import (
    LARGE_CLUSTER_ENDPOINTS,
    Block,
    Desired,
    context_of,
    render,
    render_rules,
)
from kproxy.backends.iptables.service import Context
from kproxy.backends.xtables.rules import Rule, Table
from kproxy.backends.xtables.text import line
from kproxy.core.objects import Family
from kproxy.core.snapshot import NodePortTargets, Snapshot
from tests.backends.iptables.plans import (
    DETECTORS,
    MATRIX,
    NO_LOCALHOST,
    SOME_ADDRESSES,
    V4,
    V6,
    context,
    port,
    settings,
    snapshot,
    successor,
)


def rendered(whole: Snapshot, previous: Desired | None = None) -> Desired:
    return render(whole, context_of(whole), previous)


def texts(rules: list[Rule], family: Family) -> dict[tuple[Table, str], str]:
    """Chain -> its lines, printed rule by rule."""
    made: dict[tuple[Table, str], str] = {}
    for rule in rules:
        key = (rule.table, rule.chain)
        made[key] = made.get(key, "") + line(rule, family) + "\n"
    return made


def filled(desired: Desired) -> dict[tuple[Table, str], str]:
    """Chain -> its lines, from the rendered text; empty chains left out."""
    made = {**desired.fixed, **desired.dispatch}
    for block in desired.blocks.values():
        made.update({(Table.NAT, chain): text for chain, text in block.chains.items()})
    for row in desired.guard:
        made[Table.FILTER, chains.KUBELET_FIREWALL] = row + "\n"
    for table, row in reversed(desired.jumps):
        base = row.split()[1]
        made[table, base] = made.get((table, base), "") + row + "\n"
    return {place: text for place, text in made.items() if text}


@pytest.mark.parametrize("brief", [False, True])
@pytest.mark.parametrize("detector", sorted(DETECTORS))
def test_text_says_what_the_typed_rules_say(detector: str, brief: bool) -> None:
    """The text that is filled into shapes equals the typed rules printed one by one."""
    count = LARGE_CLUSTER_ENDPOINTS + 1 if brief else None
    for family, plan in MATRIX:
        whole = snapshot(
            plan, family=family, settings_=settings(family, detector), endpoint_count=count
        )
        desired = rendered(whole)
        assert desired.context.brief == brief
        assert filled(desired) == texts(desired.rules(), family)


def test_chains_are_told_without_making_them() -> None:
    """A block knows whether it has chains before any text is made."""
    for family, plan in MATRIX:
        block = Block(plan, context(family))
        assert block.has_chains == bool(block.chains)


def test_a_chain_stands_before_the_rules_that_go_to_it() -> None:
    """Endpoints' chains come first in a block: the tools take no jump to an unknown chain."""
    for family, plan in MATRIX:
        order = list(Block(plan, context(family)).chains)
        ends = [chain for chain in order if chain.startswith(chains.ENDPOINT)]
        assert order[: len(ends)] == ends


def test_order_of_ports_does_not_matter() -> None:
    """Equal Snapshots give equal text, in whatever order their ports came."""
    plans = [port(f"svc{number}", ways="cn") for number in range(5)]
    one, other = rendered(snapshot(*plans)), rendered(snapshot(*reversed(plans)))
    assert list(one.blocks) == list(other.blocks)
    assert filled(one) == filled(other)


@pytest.mark.parametrize(("endpoints", "brief"), [(1000, False), (1001, True)])
def test_large_clusters_have_no_comments_on_endpoints(endpoints: int, brief: bool) -> None:
    """Above 1,000 endpoints the rules of endpoints carry no comment, all others keep theirs."""
    whole = snapshot(port(ways="cn", affinity=10), endpoint_count=endpoints)
    rules = render_rules(whole, context_of(whole))
    bare = {rule.chain[:9] for rule in rules if not rule.comment}
    ends = [rule for rule in rules if rule.chain.startswith(chains.ENDPOINT)]
    assert (chains.CLUSTER in bare) == brief
    assert all(bool(rule.comment) != brief for rule in ends)
    assert all(rule.comment for rule in rules if rule.chain == chains.SERVICES)


def test_unchanged_snapshot_is_the_same_desired() -> None:
    """Nothing is rendered when the Snapshot is the one before."""
    whole = snapshot(port())
    first = rendered(whole)
    assert rendered(whole, first) is first


def test_a_change_renders_one_service() -> None:
    """All other blocks are the predecessor's own; the dispatch chains too when only endpoints of
    the service changed."""
    plans = [port(f"svc{number}", ways="cn") for number in range(5)]
    before = snapshot(*plans)
    first = rendered(before)
    after = successor(before, port("svc3", ways="cn", pods=3))
    second = rendered(after, first)
    new = [name for name in second.blocks if second.blocks[name] is not first.blocks[name]]
    assert [name.name for name in new] == ["svc3"]
    assert second.dispatch is first.dispatch
    assert filled(second) == filled(rendered(after))


def test_coming_and_going_services_keep_the_order() -> None:
    """After additions and removals the result equals one rendered from nothing."""
    before = snapshot(*[port(f"svc{number}", ways="cn") for number in range(5)])
    gone = next(iter(before.ports))
    after = successor(before, port("svc2a"), removed=(gone,))
    second = rendered(after, rendered(before))
    assert list(second.blocks) == sorted(after.ports)
    assert filled(second) == filled(rendered(after))


def test_a_snapshot_of_another_line_is_compared_whole() -> None:
    """A Snapshot whose base was never rendered is not trusted for what changed."""
    before = snapshot(port("svc1"), port("svc2"))
    first = rendered(before)
    middle = successor(before, port("svc1", pods=3))
    last = successor(middle, port("svc2", pods=3))
    skipped = rendered(last, first)
    assert filled(skipped) == filled(rendered(last))


def test_equal_plans_keep_their_blocks_in_a_whole_render() -> None:
    """A restart of the planner costs no text: equal plans find their blocks."""
    first = rendered(snapshot(port("svc1"), port("svc2")))
    again = rendered(snapshot(port("svc1"), port("svc2", pods=3), generation=9), first)
    kept = [name.name for name in again.blocks if again.blocks[name] is first.blocks[name]]
    assert kept == ["svc1"]


def test_changed_settings_render_everything() -> None:
    """Other settings change every rule: nothing is kept."""
    whole = snapshot(port())
    first = rendered(whole)
    other = successor(whole)
    moved = Snapshot(
        family=V4,
        settings=settings(V4, masquerade_all=True),
        ports=other.ports,
        generation=2,
    )
    assert filled(rendered(moved, first)) == filled(rendered(moved))


ANY, GUARDED = {"destination_local": True}, {"destination_local": True, "negated": ("destination",)}


@pytest.mark.parametrize(
    ("its", "expected", "sysctl"),
    [
        (context(V4), [ANY], True),
        (context(V6), [{"destination": "::1/128", **GUARDED}], False),
        (
            context(V4, node_port_targets=NO_LOCALHOST),
            [{"destination": "127.0.0.0/8", **GUARDED}],
            False,
        ),
        (
            context(V4, node_port_targets=SOME_ADDRESSES),
            [{"destination": "192.168.0.2/32"}, {"destination": "127.0.0.0/8"}],
            True,
        ),
        (
            context(
                V4, node_port_targets=NodePortTargets(all=False, addresses=(), localhost=False)
            ),
            [],
            False,
        ),
    ],
)
def test_node_ports_answer_where_they_are_told_to(
    its: Context, expected: list[dict[str, object]], sysctl: bool
) -> None:
    """The end of KUBE-SERVICES, and route_localnet exactly when 127.0.0.0/8 is served."""
    got = node_port_jumps(its)
    fields = ("destination", "destination_local", "negated")
    blank = Rule(Table.NAT, "")
    wanted = [{name: row.get(name, getattr(blank, name)) for name in fields} for row in expected]
    assert [{name: getattr(rule, name) for name in fields} for rule in got] == wanted
    assert bool(wanted_sysctls(its)) == sysctl


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("random_fully", "--random-fully"),
        ("drop_invalid", "INVALID"),
        ("endpoint_set", "INVALID -m set"),
    ],
)
def test_what_the_machine_lacks_is_left_out(flag: str, words: str) -> None:
    """Without --random-fully or sets, or with a liberal conntrack, there are other rules."""
    whole = snapshot(port())
    for given in (True, False):
        desired = render(whole, context_of(whole, **{flag: given}), None)
        assert (words in "".join(desired.fixed.values())) == given
