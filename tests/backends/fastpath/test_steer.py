"""What leads packets to the engine, as text and as sets; without a kernel."""

from __future__ import annotations

import pytest

from kproxy.backends.fastpath import steer
from kproxy.backends.fastpath.held import Held, diff, settled
from kproxy.backends.fastpath.render import render
from kproxy.backends.fastpath.steer import HOSTS, PORTS, SERVICES, Frame
from kproxy.backends.fastpath.text import text
from kproxy.core.objects import Family
from kproxy.core.steering import wanted
from kproxy.kernel.addresses import ENGINE_DEVICES
from tests.backends.iptables.plans import port, snapshot, successor


def nothing() -> Held:
    return Held(
        running=False,
        parts=frozenset(),
        sysctls=frozenset(),
        frame=None,
        sets={},
        services={},
        node=None,
    )


@pytest.mark.parametrize("family", Family)
def test_members_are_exactly_the_ways_in(family: Family) -> None:
    """Cluster IP, external and load-balancer addresses with their port; node ports alone."""
    plan = port("svc", family, ways="cnel", number=80)
    sets = render(snapshot(plan, family=family), None).sets
    addresses = (plan.cluster_ip, *plan.external_ips, *plan.load_balancer_ips)
    assert sets[SERVICES] == {(address, "tcp", 80) for address in addresses}
    assert sets[PORTS] == {("tcp", plan.node_port)}


def test_ipv6_is_written_as_nft_writes_it() -> None:
    """However a Service spells its address, reading gives back what was written."""
    plan = port("svc", Family.IPV6, ways="c")
    values = {name: getattr(plan, name) for name in plan.__struct_fields__}
    spelled = type(plan)(**{**values, "cluster_ip": "FD00:0:0::00A"})
    sets = render(snapshot(spelled, family=Family.IPV6), None).sets
    assert [member[0] for member in sets[SERVICES]] == ["fd00::a"]


def test_scripts_take_away_before_they_add() -> None:
    """A port that moves from one service to another is never missing, nor there twice."""
    one = {SERVICES: {("10.0.0.1", "tcp", 80)}, PORTS: {("udp", 30000)}, HOSTS: {"192.0.2.1"}}
    script = steer.changes(Family.IPV4, {SERVICES: {("10.0.0.2", "tcp", 80)}}, one)
    assert script.splitlines() == [
        "delete element ip kpsteer services { 10.0.0.1 . tcp . 80 }",
        "delete element ip kpsteer ports { udp . 30000 }",
        "delete element ip kpsteer hosts { 192.0.2.1 }",
        "add element ip kpsteer services { 10.0.0.2 . tcp . 80 }",
    ]
    assert steer.changes(Family.IPV4, {}, {}) == ""


@pytest.mark.parametrize(("localhost", "guards"), [(True, 2), (False, 0)])
def test_the_guard_goes_with_loopback(localhost: bool, guards: int) -> None:
    """route_localnet is never asked for without the rules that keep neighbours away."""
    frame = Frame(Family.IPV4, localhost=localhost)
    assert steer.skeleton(frame).count('iifname != "lo"') == guards
    assert ("net/ipv4/conf/all/route_localnet" in steer.sysctls(frame)) is localhost


@pytest.mark.parametrize("family", Family)
def test_from_nothing_everything_is_made(family: Family) -> None:
    """And from what is settled nothing."""
    desired = render(snapshot(port("svc", family, ways="cn"), family=family), None)
    patch = diff(desired, nothing())
    assert patch is not None
    assert (patch.start, patch.chains, set(patch.changed)) == (True, True, set(desired.places))
    assert steer.count(patch.added) == steer.count(desired.sets)
    assert diff(desired, settled(desired, wanted(steer.plan(family)))) is None


@pytest.mark.parametrize("family", Family)
def test_work_follows_the_change(family: Family) -> None:
    """One service among many: its table and its members, and nothing of the others."""
    now = snapshot(*[port(f"svc{n}", family, number=8000 + n) for n in range(20)], family=family)
    before = render(now, None)
    changed = port("svc3", family, number=9000)
    after = render(successor(now, changed), before)
    patch = diff(after, settled(before, wanted(steer.plan(family))))
    assert patch is not None
    assert set(patch.changed) == {changed.name}
    assert (steer.count(patch.added), steer.count(patch.gone)) == (1, 1)
    assert list(patch.names()) == [changed.name]
    same = sum(
        after.tables.services[name] is table for name, table in before.tables.services.items()
    )
    assert same == 19


def test_text_names_everything() -> None:
    """Each address, endpoint and rule can be read."""
    plan = port("svc", Family.IPV4, ways="cnel", pods=2)
    whole = "".join(text(snapshot(plan, family=Family.IPV4)))
    for word in (plan.cluster_ip, str(plan.node_port), *map(str, plan.endpoints.all), "kp4", "nft"):
        assert word in whole


def test_the_devices_are_known_as_ours() -> None:
    """Their addresses are no reason for a sync."""
    assert set(steer.DEVICES.values()) == ENGINE_DEVICES


def test_every_new_connection_is_counted_before_it_is_led() -> None:
    """By whichever way it comes, once; what belongs to one that is there is not."""
    lines = steer.skeleton(Frame(Family.IPV4, localhost=True, new=9)).splitlines()
    rules = [line.split(" kpsteer ", 1)[1] for line in lines if line.startswith("add rule")]
    assert [rule for rule in rules if "goto fresh" in rule] == [
        "steer ip daddr . meta l4proto . th dport @services goto fresh",
        "steer meta l4proto . th dport @ports ip daddr @hosts goto fresh",
        "steer ip daddr 127.0.0.0/8 meta l4proto . th dport @ports goto fresh",
    ]
    fresh = [rule for rule in rules if rule.startswith("fresh ")]
    assert "limit rate over 9/second" in fresh[0]
    assert "ct mark set" in fresh[1]
    assert sum("0x20000 accept" in rule or "or 0x20000" in rule for rule in rules) == 1
