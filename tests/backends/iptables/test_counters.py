"""The rules that count: where they stand, what is made before them, and that nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxy.backends.fake import FakeIptables
from kproxy.backends.iptables.apply import IptablesBackend, sweep
from kproxy.backends.iptables.counters import INVALID_DROPPED, LOCALHOST_ACCEPTED, NAMES
from kproxy.backends.iptables.fixed import fixed_rules
from kproxy.backends.iptables.host import Machine
from kproxy.backends.iptables.service import service_rules
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables.door import ToolDoor
from kproxy.backends.xtables.text import line
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.core.snapshot import NodePortTargets
from tests.backends.iptables.plans import context, port, snapshot
from tests.contract.namespaces import KERNEL, scratch

V4, V6 = Family.IPV4, Family.IPV6
LOOPBACK = NodePortTargets(all=True, localhost=True)
ELSEWHERE = NodePortTargets(all=True, localhost=False)

#: (family, node ports' targets, whether INVALID is dropped, whether rules can count) -> counters.
CASES = [
    (V4, LOOPBACK, True, True, {INVALID_DROPPED, LOCALHOST_ACCEPTED}),
    (V4, LOOPBACK, False, True, {LOCALHOST_ACCEPTED}),
    (V4, ELSEWHERE, True, True, {INVALID_DROPPED}),
    (V4, LOOPBACK, True, False, set()),
    (V6, LOOPBACK, True, True, {INVALID_DROPPED}),
]


@pytest.mark.parametrize(("family", "targets", "drops", "counts", "expected"), CASES)
def test_rules_count_where_they_can(
    family: Family, targets: NodePortTargets, drops: bool, counts: bool, expected: set[str]
) -> None:
    """Loopback is counted where node ports answer on it; the counters that are made are those that
    the rules name."""
    its = context(family, node_port_targets=targets, drop_invalid=drops, counters=counts)
    rules = [rule for content in fixed_rules(its).values() for rule in content]
    rules += service_rules(port("svc1", family, ways="cn"), its)
    assert {rule.counter for rule in rules if rule.counter} == expected == set(its.counted)


def test_the_rule_of_loopback_is_kube_proxys() -> None:
    """In front of the one for all addresses, with the same target, and counting last: matches
    before it decide what is counted."""
    its = context(V4, node_port_targets=LOOPBACK, counters=True)
    rules = service_rules(port("svc1", ways="cn"), its)
    rows = [line(rule, V4) for rule in rules if rule.chain == "KUBE-NODEPORTS"]
    label = '-p tcp -m comment --comment "ns1/svc1:p80" -m tcp --dport 30080'
    external = rows[1].rpartition(" ")[2]
    assert external.startswith("KUBE-EXT-")
    count = f"-m nfacct --nfacct-name {LOCALHOST_ACCEPTED}"
    assert rows == [
        f"-A KUBE-NODEPORTS -d 127.0.0.0/8 {label} {count} -j {external}",
        f"-A KUBE-NODEPORTS {label} -j {external}",
    ]


def test_counters_are_made_before_their_rules() -> None:
    """The in-memory kernel refuses a rule that names one that is not there, as the real one does;
    a change of one endpoint asks for none."""
    door = FakeIptables()
    backend = IptablesBackend(V4, Variant.NFT, door=door, machine=Machine(counters=True))
    syncer = Syncer(backend)
    syncer.sync(snapshot(port("svc1", ways="cn")))
    assert door.made_counters <= set(NAMES)
    assert INVALID_DROPPED in door.made_counters
    made, door.made_counters = door.made_counters, set()
    syncer.sync(snapshot(port("svc1", ways="cn", pods=3)))
    assert door.made_counters == set()
    door.made_counters = made
    backend.cleanup()
    assert door.made_counters == set()


@pytest.mark.kernel
@pytest.mark.parametrize("variant", list(Variant))
def test_cleanup_leaves_no_counter_behind(variant: Variant, tmp_path: Path) -> None:
    """Both families count with the same one: it goes with the last of them. Other people's stay."""
    with scratch():
        backends = [synced(family, variant, tmp_path) for family in Family]
        door = backends[0].door
        door.make_counter("theirs")
        assert door.counters()[INVALID_DROPPED] == 2
        backends[0].cleanup()
        assert door.counters()[INVALID_DROPPED] == 1
        backends[1].cleanup()
        assert set(door.counters()) == {"theirs"}
        backends[1].cleanup()


@pytest.mark.kernel
@pytest.mark.parametrize(("family", "variant"), KERNEL)
def test_a_sweep_takes_the_counters_of_rules_that_go(
    family: Family, variant: Variant, tmp_path: Path
) -> None:
    """With the rules of the other variant; what our own rules count with counts on."""
    other = next(each for each in Variant if each is not variant)
    with scratch():
        synced(family, other, tmp_path)
        standing = synced(family, variant, tmp_path)
        before = standing.door.counters()[INVALID_DROPPED]
        assert sweep(family, other, "iptables", None)
        assert standing.door.counters()[INVALID_DROPPED] == before - 1
        assert sweep(family, variant, "ipvs", None)
        assert INVALID_DROPPED not in standing.door.counters()


def synced(family: Family, variant: Variant, records: Path) -> IptablesBackend:
    backend = IptablesBackend(
        family,
        variant,
        door=ToolDoor(family, variant, records=records),
        machine=Machine(counters=True),
    )
    Syncer(backend).sync(snapshot(port("svc1", family, ways="cn"), family=family))
    return backend
