"""The smallest change: what the relay is told, and which lines differ."""

from __future__ import annotations

import pytest

from kproxy.backends.userspace import chains
from kproxy.backends.userspace.diff import (
    MOST_DELETIONS,
    Patch,
    RulesPatch,
    call,
    diff,
    lines_between,
    rules_between,
)
from kproxy.backends.userspace.held import Held, Relaying, rows_of, settled, wanted_of
from kproxy.backends.userspace.plan import Front, NodePort
from kproxy.backends.userspace.render import Desired, render
from kproxy.backends.userspace.text import imagined
from kproxy.backends.xtables.found import Found
from kproxy.backends.xtables.localnet import KUBELET_FIREWALL
from kproxy.backends.xtables.rules import Table
from kproxy.core.objects import PortName
from kproxy.core.policy import Use
from kproxy.core.snapshot import PortPlan, Snapshot
from tests.backends.iptables.plans import LOCAL, port, settings, snapshot, successor

WEB = port("web", ways="cn")
OTHER = port("other", number=81)
NOW = snapshot(WEB, OTHER)


def changed(*plans: PortPlan, removed: tuple[PortName, ...] = ()) -> tuple[Desired, Patch | None]:
    """The patch from NOW to its successor."""
    before = render(NOW, None)
    after = render(successor(NOW, *plans, removed=removed), before)
    return before, diff(after, settled(before))


def test_the_same_is_no_change() -> None:
    """Neither the same Snapshot nor a plan that comes out alike."""
    before = render(NOW, None)
    assert diff(before, settled(before)) is None
    assert diff(render(successor(NOW), before), settled(before)) is None
    assert changed(port("web", ways="cn"))[1] is None


def test_endpoints_concern_the_relay_alone() -> None:
    """One comes, another goes: the service is put, and its lines are what they were."""
    _, patch = changed(port("web", ways="cn", pods=3))
    assert patch is not None
    assert [service.name.name for service in patch.put] == ["web"]
    assert (patch.drop, patch.hold, patch.release) == ((), (), ())
    assert not patch.full


@pytest.mark.parametrize(
    ("plan", "put", "drop", "hold", "release"),
    [
        (port("new", ways="n"), ["new"], [], [], []),
        (port("web", ways="cn", pods=0), [], ["web"], [], []),
        (port("web", ways="c"), ["web"], [], [], [NodePort(30080, False)]),
        (port("other", number=81, ways="c", internal=LOCAL), ["other"], [], [], []),
        (port("other", number=81, pods=0), [], ["other"], [], []),
    ],
)
def test_what_the_relay_is_told(
    plan: PortPlan, put: list[str], drop: list[str], hold: list[object], release: list[object]
) -> None:
    """By what comes and goes of fronts and node ports. A node port that two services have in
    turn stays held."""
    _, patch = changed(plan)
    assert patch is not None
    assert [service.name.name for service in patch.put] == put
    assert [name.name for name in patch.drop] == drop
    if plan.name.name != "new":
        assert (list(patch.hold), list(patch.release)) == (hold, release)


def test_a_node_port_that_moves_stays_held() -> None:
    """From one service to another, in one change."""
    _, patch = changed(port("web", ways="c"), port("other", number=81, ways="cn"))
    assert patch is not None
    assert (patch.hold, patch.release) == ((), ())


def test_a_service_that_goes() -> None:
    """Its lines, its fronts, its node port."""
    _, patch = changed(removed=(WEB.name,))
    assert patch is not None
    assert (patch.drop, patch.release) == ((WEB.name,), (NodePort(30080, False),))
    assert patch.names == (WEB.name,)


# --- what was read -------------------------------------------------------------------------------


def in_force(desired: Desired, relaying: Relaying) -> Found:
    """Rules as they are when ``desired`` stands."""
    tables: dict[Table, dict[str, str]] = {table: {} for table in Table}
    for (table, chain), rows in rows_of(desired.blocks.values(), relaying).items():
        tables[table][chain] = "".join(f"{row}\n" for row in rows)
    guests = {(Table.FILTER, KUBELET_FIREWALL): desired.guard}
    return Found(tables, tuple(sorted(desired.jumps)), guests)


def read(desired: Desired, **fields: object) -> Held:
    relaying = imagined(desired)
    values = {"relaying": relaying, "rules": in_force(desired, relaying), **fields}
    return Held(sysctls=dict(desired.sysctls), **values)  # type: ignore[arg-type]


def test_what_stands_is_left_alone() -> None:
    """Read and believed are the same then."""
    desired = render(NOW, None)
    assert diff(desired, read(desired)) is None
    assert read(desired) == settled(desired)


def test_what_cannot_be_had_is_not_waited_for() -> None:
    """A front without a port and a node port that somebody else has: no change by themselves."""
    desired = render(NOW, None)
    whole = imagined(desired)
    name, node_port = WEB.name, NodePort(30080, False)
    refused = frozenset({Front(name, Use.CLUSTER), node_port})
    services, _ = wanted_of(desired, Relaying(refused=refused))
    without = Relaying(
        serving={
            each: serving if each != name else type(serving)(services[name], ())
            for each, serving in whole.serving.items()
        },
        refused=refused,
    )
    assert diff(desired, read(desired, relaying=without, rules=in_force(desired, without))) is None
    patch = diff(desired, read(desired, relaying=Relaying(serving=without.serving)))
    assert patch is not None
    assert [service.name for service in patch.put] == [name]
    assert patch.hold == (node_port,)


def damaged(found: Found, table: Table, chain: str, text: str | None) -> Found:
    content = {**found.tables[table]}
    if text is None:
        del content[chain]
    else:
        content[chain] = text
    return Found({**found.tables, table: content}, found.jumps, found.guests)


def test_single_lines_are_mended_one_by_one() -> None:
    """A foreign one and one that stands twice go, one that is missing comes."""
    desired = render(NOW, None)
    relaying = imagined(desired)
    found = in_force(desired, relaying)
    first, *rest = found.tables[Table.NAT][chains.PORTALS_HOST].splitlines()
    foreign = f"-A {chains.PORTALS_HOST} -j RETURN"
    text = "\n".join([*rest, rest[0], foreign]) + "\n"
    patch = rules_between(desired, relaying, damaged(found, Table.NAT, chains.PORTALS_HOST, text))
    assert patch.added == ((Table.NAT, first),)
    assert set(patch.deleted) == {(Table.NAT, rest[0]), (Table.NAT, foreign)}
    assert patch.written == ()


def test_a_missing_chain_is_made_whole() -> None:
    """And filled in the same call; so is one with too many lines to be taken out."""
    desired = render(NOW, None)
    relaying = imagined(desired)
    found = in_force(desired, relaying)
    rows = found.tables[Table.NAT][chains.PORTALS_HOST]
    foreign = "".join(
        f"-A {chains.PORTALS_HOST} -s 10.0.{n // 250}.{n % 250}/32 -j RETURN\n"
        for n in range(MOST_DELETIONS + 1)
    )
    for text in (None, rows + foreign):
        there = damaged(found, Table.NAT, chains.PORTALS_HOST, text)
        patch = rules_between(desired, relaying, there)
        wanted = ((Table.NAT, chains.PORTALS_HOST), tuple(rows.splitlines()))
        assert (patch.written, patch.deleted) == ((wanted,), ())


def test_the_guard_is_added_to_what_the_kubelet_has() -> None:
    """Its chain is made when it is not there, and never emptied."""
    desired = render(NOW, None)
    relaying = imagined(desired)
    found = in_force(desired, relaying)
    without = Found(found.tables, found.jumps, {})
    bare = Found(found.tables, found.jumps, {(Table.FILTER, KUBELET_FIREWALL): ()})
    assert rules_between(desired, relaying, without).declare_guard
    patch = rules_between(desired, relaying, bare)
    assert (patch.declare_guard, patch.guard) == (False, desired.guard)
    text = "".join(call(patch))
    assert f":{KUBELET_FIREWALL}" not in text


def test_a_plan_without_loopback_needs_no_guard() -> None:
    """Neither the rule nor the sysctl; the other sysctl is always wanted."""
    from tests.backends.iptables.plans import NO_LOCALHOST

    its = settings(node_port_targets=NO_LOCALHOST)
    desired = render(snapshot(WEB, settings_=its), None)
    assert desired.guard == ()
    assert [name for name, _ in desired.sysctls] == ["net/ipv4/tcp_tw_reuse"]


# --- lines and calls -----------------------------------------------------------------------------


def lines(count: int) -> tuple[tuple[Table, str], ...]:
    return tuple((Table.NAT, f"-A {chains.PORTALS_HOST} -s 10.0.0.{n}/32") for n in range(count))


def test_only_differing_lines_are_written() -> None:
    """Between two sets of lines of one service port."""
    name = WEB.name
    patch = lines_between({name: lines(3)[1:]}, {name: lines(2)}, dict)
    assert (patch.added, patch.deleted) == (lines(3)[2:], lines(1))


def test_many_deletions_write_the_chain_anew() -> None:
    """The tools look for each line from the beginning of its chain."""
    place = (Table.NAT, chains.PORTALS_HOST)
    left = {place: dict.fromkeys(["-A KUBE-PORTALS-HOST -j RETURN"])}
    patch = lines_between({}, {WEB.name: lines(MOST_DELETIONS + 1)}, lambda: left)
    assert patch.written == ((place, ("-A KUBE-PORTALS-HOST -j RETURN",)),)
    assert patch.deleted == ()


def test_many_refusals_go_after_nat_has_them() -> None:
    """A chain of filter is emptied last; what comes into it is there first."""
    place = (Table.FILTER, chains.PORTALS_FILTER)
    rows = [f"-A {chains.PORTALS_FILTER} -s 10.0.0.{n}/32 -j DROP" for n in range(202)]
    old = [(Table.FILTER, row) for row in rows[1:]]
    portal = (Table.NAT, f"-A {chains.PORTALS_HOST} -j RETURN")
    new = [(Table.FILTER, rows[0]), portal]
    patch = lines_between({WEB.name: new}, {WEB.name: old}, lambda: {place: {rows[0]: None}})
    assert "".join(call(patch)).splitlines() == [
        *("*filter", rows[0], "COMMIT"),
        *("*nat", portal[1], "COMMIT"),
        *("*filter", f":{chains.PORTALS_FILTER} - [0:0]", rows[0], "COMMIT"),
    ]


def test_nobody_is_left_untreated_between_two_tables() -> None:
    """What filter refuses is refused before nat lets go of it, and until nat has it."""
    refusal = (Table.FILTER, f"-A {chains.PORTALS_FILTER} -j DROP")
    portal = (Table.NAT, f"-A {chains.PORTALS_HOST} -j RETURN")
    comes = "".join(call(RulesPatch(added=(portal,), deleted=(refusal,))))
    goes = "".join(call(RulesPatch(added=(refusal,), deleted=(portal,))))
    assert [row for row in comes.splitlines() if row[0] in "*-"] == [
        *("*nat", portal[1], "*filter", f"-D{refusal[1][2:]}"),
    ]
    assert [row for row in goes.splitlines() if row[0] in "*-"] == [
        *("*filter", refusal[1], "*nat", f"-D{portal[1][2:]}"),
    ]


def test_blocks_of_services_that_did_not_change_are_shared() -> None:
    """So that a change costs what it changes."""
    before = render(NOW, None)
    after = render(successor(NOW, port("web", ways="cn", pods=3)), before)
    assert after.blocks[OTHER.name] is before.blocks[OTHER.name]
    assert after.blocks[WEB.name] is not before.blocks[WEB.name]
    again: Snapshot = snapshot(WEB, OTHER, generation=7)
    assert render(again, before).blocks[WEB.name] is before.blocks[WEB.name]
