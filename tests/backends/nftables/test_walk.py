"""Every kind of client, way in and service port: the rules do what the core's policy says."""

from __future__ import annotations

from itertools import product

import pytest
from msgspec.structs import replace

from kproxy.backends.nftables.render import render
from kproxy.backends.nftables.walk import Fate, Outcome, Packet, Walker
from kproxy.core.objects import Family
from kproxy.core.policy import Client, Entry, Use, Verdict, treatment, verdict
from kproxy.core.snapshot import NodePortTargets, NodeSettings, PortPlan
from kproxy.core.ways import packed, packed_range, permitted
from tests.backends.iptables.plans import ADDRESSES, MATRIX, port, settings, snapshot

DETECTORS = ("none", "cidr", "bridge", "prefix")
#: detector -> the device by which a pod of this node comes in
DEVICES = {"bridge": "cbr0", "prefix": "veth3"}
_OTHER = {Family.IPV4: "203.0.113.200", Family.IPV6: "2001:db8:9::9"}
_POD = {Family.IPV4: "10.180.0.200", Family.IPV6: "fd00:10::200"}
_FATES = {Verdict.REFUSE: Fate.REFUSED, Verdict.DROP: Fate.DROPPED}


def ways_in(plan: PortPlan, node: str) -> list[tuple[Entry, str, int, bool]]:
    """(entry, address, port, whether it may be restricted)"""
    found = [(Entry.INTERNAL, plan.cluster_ip, plan.port, False)] * bool(plan.cluster_ip)
    found += [(Entry.EXTERNAL, each, plan.port, False) for each in plan.external_ips]
    found += [(Entry.EXTERNAL, each, plan.port, plan.restricted) for each in plan.load_balancer_ips]
    return found + [(Entry.EXTERNAL, node, plan.node_port, False)] * bool(plan.node_port)


def clients(family: Family, detector: str, node: str) -> list[tuple[Client, str, str]]:
    """(kind, source, device); an endpoint of this node among them."""
    device = DEVICES.get(detector, "veth3")
    pod = Client.POD if detector != "none" else Client.OTHER
    return [
        (pod, _POD[family], device),
        (pod, ADDRESSES[family][4][0], device),
        (Client.NODE, node, ""),
        (Client.OTHER, _OTHER[family], "eth0"),
    ]


def expected(
    plan: PortPlan, settings_: NodeSettings, entry: Entry, client: Client, source: str
) -> set[Outcome]:
    """What the core says."""
    row = treatment(
        settings_, entry, client, internal=plan.internal_policy, external=plan.external_policy
    )
    said = verdict(plan.endpoints, row.use)
    if said is not Verdict.FORWARD:
        return {Outcome(_FATES[said])}
    sets = plan.endpoints
    chosen = (sets.cluster if row.use is Use.CLUSTER else sets.local) or ()
    return {
        Outcome(Fate.SENT, (end.ip, end.port), row.masquerade or end.ip == source) for end in chosen
    }


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("family", Family)
def test_every_packet_goes_where_the_core_says(family: Family, detector: str, every: bool) -> None:
    """All shapes of service ports, by every way in, from every kind of client."""
    node = ADDRESSES[family][3]
    targets = NodePortTargets(all=every, addresses=(node,), localhost=False)
    settings_ = settings(family, detector, node_port_targets=targets)
    for _, plan in (each for each in MATRIX if each[0] is family):
        walker = Walker(render(snapshot(plan, family=family, settings_=settings_), None), [node])
        word = plan.protocol.lower()
        for way, (client, source, device) in product(
            ways_in(plan, node), clients(family, detector, node)
        ):
            entry, address, number, restricted = way
            wanted = expected(plan, settings_, entry, client, source)
            ranges = map(packed_range, permitted(plan, settings_))
            fenced = restricted and plan.endpoints.has_any
            if fenced and not any(one.holds(packed(source)) for one in ranges):
                wanted = {Outcome(Fate.DROPPED)}
            packet = Packet(source, address, word, number, device)
            found = {replace(each, note=None) for each in walker.outcomes(packet)}
            assert found == wanted, (plan, packet)


@pytest.mark.parametrize("family", Family)
def test_what_is_nobodys(family: Family) -> None:
    """An unknown port of a cluster IP is refused, an address that is not given out is silent, and
    all else is left alone."""
    cidr = {Family.IPV4: "172.30.0.0/16", Family.IPV6: "fd00:30::/64"}[family]
    free = {Family.IPV4: "172.30.9.9", Family.IPV6: "fd00:30::9"}[family]
    settings_ = replace(settings(family), service_cidrs=(cidr,))
    plan = port(family=family)
    walker = Walker(render(snapshot(plan, family=family, settings_=settings_), None), [])
    for address, fate in (
        (plan.cluster_ip, Fate.REFUSED),
        (free, Fate.DROPPED),
        (_OTHER[family], Fate.UNTOUCHED),
    ):
        packet = Packet(_POD[family], address, "tcp", 4711, "veth3")
        assert walker.outcomes(packet) == {Outcome(fate)}


def test_an_endpoint_at_the_address_of_a_service_without_any() -> None:
    """Who was led there has been served: a service port of the same address, protocol and port that
    nobody serves refuses those only who asked for it."""
    family, node = Family.IPV4, ADDRESSES[Family.IPV4][3]
    served = port(family=family, pods=1)
    (end,) = served.endpoints.all
    place = replace(end, ip=node, port=9000)
    served = replace(
        served, endpoints=replace(served.endpoints, cluster=(place,), local=(place,), all=(place,))
    )
    empty = port("empty", family=family, ways="e", pods=0)
    empty = replace(empty, cluster_ip="172.30.0.99", external_ips=(node,), port=9000)
    desired = render(snapshot(served, empty, family=family), None)
    walker = Walker(desired, [node])
    word = served.protocol.lower()
    to_served = Packet(_OTHER[family], served.cluster_ip, word, served.port, "eth0")
    assert {one.endpoint for one in walker.outcomes(to_served)} == {(node, 9000)}
    to_empty = Packet(_OTHER[family], node, word, 9000, "eth0")
    assert walker.outcomes(to_empty) == {Outcome(Fate.REFUSED)}
