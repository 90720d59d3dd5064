"""Every mode gives an endpoint the share of new connections that its weight is of all weights."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from kproxy.backends.fastpath.plan import service_table
from kproxy.backends.iptables.render import render_rules
from kproxy.backends.iptables.walk import Packet, Walker
from kproxy.backends.ipvs.plan import Block, server_key
from kproxy.backends.userspace.plan import service_of
from kproxy.core.objects import Family, PortName, Protocol
from kproxy.core.snapshot import Endpoint, EndpointSets, PortPlan, Snapshot
from kproxy.core.twin.choice import Chooser
from kproxy.core.twin.flows import Endpoint as Known
from kproxy.core.twin.values import Algorithm
from tests.backends.iptables.plans import context, snapshot
from tests.backends.iptables.plans import settings as its

SEED = bytes(range(16))
NAME = PortName("ns1", "svc1", "p80", Protocol.TCP)
VIP = "172.30.0.41"

#: Of a Maglev table's slots, up to four endpoints, and with more.
OFF = {True: Fraction(25, 1000), False: Fraction(1, 1000)}

weights = st.lists(st.integers(1, 100), min_size=1, max_size=12)


def planned(given_: list[int]) -> tuple[Snapshot, dict[str, Fraction]]:
    """A service port whose endpoints weigh so, and the share that each should have."""
    ends = tuple(
        Endpoint(f"10.180.0.{at}", 8080, weight=weight) for at, weight in enumerate(given_, 1)
    )
    sets = EndpointSets(cluster=ends, local=None, all=ends, has_any=True)
    plan = PortPlan(NAME, 80, sets, cluster_ip=VIP)
    shares = {str(end): Fraction(end.weight, sum(given_)) for end in ends}
    return snapshot(plan), shares


@given(weights)
@budget(max_examples=100, deadline=None)
def test_iptables(chosen: list[int]) -> None:
    """By every way through the rules. A rule's chance is off by half of 1e-10, for kube-proxy's ten
    decimals, and half of 2^-31, for the kernel; those of the rules before it add up."""
    wanted, shares = planned(chosen)
    walk = Walker(render_rules(wanted, context()), ()).walk(
        Packet("10.180.0.99", VIP, Protocol.TCP, 80, "cbr0")
    )
    found = walk.endpoints
    assert found.keys() == shares.keys()
    assert sum(found.values()) == 1
    off = len(chosen) * (Fraction(1, 2 * 10**10) + Fraction(1, 1 << 32))
    assert all(abs(found[end] - share) <= off for end, share in shares.items())


@given(weights)
def test_ipvs(chosen: list[int]) -> None:
    """To the last digit, by the weights of the real servers; none of them is 0, which drains."""
    wanted, shares = planned(chosen)
    block = Block(wanted.ports[NAME], Family.IPV4, its(), ramps=True)
    found = dict(block.servers[server_key(VIP, 80, Protocol.TCP)].weighed)
    assert all(found.values())
    total = sum(found.values())
    assert sorted(Fraction(one, total) for one in found.values()) == sorted(shares.values())
    assert max(found.values()) <= 100


@given(weights)
def test_userspace(chosen: list[int]) -> None:
    """To the last digit, by what the relay is told."""
    wanted, shares = planned(chosen)
    service = service_of(wanted.ports[NAME], its())
    assert service is not None
    told = service.weights or (1,) * len(service.cluster)
    total = sum(told)
    ends = [f"{address}:{port}" for address, port in service.endpoints]
    assert {end: Fraction(one, total) for end, one in zip(ends, told)} == shares


@given(weights)
@budget(max_examples=30, deadline=None)
def test_fastpath(chosen: list[int]) -> None:
    """By the weights of its members to the last digit, and so by its sums for random choice."""
    wanted, shares = planned(chosen)
    table, _ = service_table(wanted.ports[NAME], Family.IPV4, its())
    total = sum(member.weight for member in table.members)
    assert [Fraction(member.weight, total) for member in table.members] == [
        shares[f"10.180.0.{member.address[-1]}:8080"] for member in table.members
    ]
    ends = [Known(0, member.place, at) for at, member in enumerate(table.members)]
    chooser = Chooser(table.members, ends, Algorithm.RANDOM, SEED)
    assert chooser.sums[-1] == total
    slots = Counter(Chooser(table.members, ends, Algorithm.MAGLEV, SEED).table)
    size = sum(slots.values())
    for at, member in enumerate(table.members):
        share = Fraction(member.weight, total)
        assert abs(Fraction(slots[at], size) - share) <= OFF[len(chosen) <= 4]
