"""Which UDP flows are stale: every reason there is, and every flow that has to be left alone."""

from __future__ import annotations

import pytest

from kproxy.core.objects import Family, Protocol, TrafficPolicy
from kproxy.core.snapshot import LocalDetector, NodePortTargets
from kproxy.core.stale_flows import MOST_PARTS, WHOLE, Former, Part
from kproxy.core.ways import packed, packed_port
from tests.core.flows import World, dns, draining, flow, pods
from tests.factories import make_port, make_service, make_settings

CLUSTER, LOCAL = TrafficPolicy.CLUSTER, TrafficPolicy.LOCAL
VIP, OUT, LB, NODE = "172.30.0.41:53", "198.51.100.7:53", "203.0.113.7:53", "192.168.0.2:30053"
ADDRESSES = ("192.168.0.2", "10.180.0.254", "169.254.7.7", "127.0.0.1", "2001:db8::2", "::1")

#: One service with every kind of entrance; pods 1 (here) and 2 (elsewhere).
EVERY = {"node_port": 30053, "external_ips": ("198.51.100.7",)}
EVERY |= {"load_balancer_ips": ("203.0.113.7",)}
TWO = pods("10.180.0.1@node1", "10.180.2.1@node2")
ONE = pods("10.180.0.1@node1")
AFAR = pods("10.180.2.1@node2")
NONE = pods()
CIDR = LocalDetector(cidr="10.180.0.0/16")


def world(**fields: object) -> World:
    settings = make_settings(addresses=("192.168.0.2",), **{"detector": CIDR, **fields})
    return World(settings=settings, addresses=ADDRESSES)


#: what changes -> (objects before, objects after, objects gone)
CHANGES = {
    "nothing": ([dns(**EVERY), TWO], [], []),
    "start": ([], [dns(**EVERY), TWO], []),
    "endpoint changed": ([dns(**EVERY), TWO], [ONE], []),
    "n to 0": ([dns(**EVERY), ONE], [NONE], []),
    "slice deleted": ([dns(**EVERY), ONE], [], [ONE]),
    "0 to n": ([dns(**EVERY), NONE], [ONE], []),
    "service created": ([], [dns(**EVERY), ONE], []),
    "service deleted": ([dns(**EVERY), ONE], [], [dns()]),
    "VIP reused": (
        [dns("old", **EVERY), pods("10.180.0.1", service="old")],
        [dns("new", **EVERY), pods("10.180.9.9", service="new")],
        [dns("old")],
    ),
    "port changed": ([dns(**EVERY), ONE], [dns(port=54, **EVERY)], []),
    "entrances withdrawn": ([dns(**EVERY), ONE], [dns()], []),
    "internal policy Local": ([dns(**EVERY), TWO], [dns(internal_policy=LOCAL, **EVERY)], []),
    "external policy Local": ([dns(**EVERY), TWO], [dns(external_policy=LOCAL, **EVERY)], []),
    "external policy Cluster": (
        [dns(external_policy=LOCAL, **EVERY), TWO],
        [dns(**EVERY)],
        [],
    ),
    "none left here": (
        [dns(external_policy=LOCAL, internal_policy=LOCAL, **EVERY), TWO],
        [AFAR],
        [],
    ),
    "sources restricted": (
        [dns(**EVERY), TWO],
        [dns(source_ranges=("192.0.2.0/24",), source_ranges_set=True, **EVERY)],
        [],
    ),
    "drains beside a ready one": (
        [dns(**EVERY), TWO],
        [pods("10.180.0.1@node1", draining("10.180.2.1", "node2"))],
        [],
    ),
    "drained": (
        [dns(**EVERY), pods("10.180.0.1@node1", draining("10.180.2.1", "node2"))],
        [pods("10.180.0.1@node1", draining("10.180.2.1", "node2", serving=False))],
        [],
    ),
    "turned to TCP": (
        [dns(**EVERY), ONE],
        [make_service(ports=(make_port("dns", 53, protocol=Protocol.TCP),))],
        [],
    ),
}
OUTSIDE, POD, ITSELF = "192.0.2.9", "10.180.0.9", "192.168.0.2"

#: change -> stale flows, and flows that stay
FLOWS: dict[str, tuple[list[str], list[str]]] = {
    "nothing": ([], [f"{POD} > {VIP} > 10.180.0.1:53"]),
    "start": (
        [
            f"{POD} > {VIP} > 10.180.7.7:53",
            f"{POD} > {VIP}",
            f"{OUTSIDE} > {NODE}",
            f"{OUTSIDE} > {OUT} > 10.180.7.7:53 as {ITSELF}",
        ],
        [
            f"{POD} > {VIP} > 10.180.0.1:53",
            f"{OUTSIDE} > {NODE} > 10.180.2.1:53 as {ITSELF}",
            f"{ITSELF} > 127.0.0.1:30053 > 10.180.2.1:53 as {ITSELF}",
            # To the same port of somebody else, and of an address that only looks like ours.
            f"{POD} > 192.0.2.77:30053",
            f"{POD} > 192.0.2.77:53",
            f"{POD} > 172.30.0.42:53 > 10.180.7.7:53",
            # Somebody else's published port.
            f"{OUTSIDE} > 192.168.0.2:5000 > 172.17.0.2:5000",
        ],
    ),
    "endpoint changed": (
        [
            f"{POD} > {VIP} > 10.180.2.1:53",
            f"{OUTSIDE} > {NODE} > 10.180.2.1:53 as {ITSELF}",
            f"{OUTSIDE} > 10.180.0.254:30053 > 10.180.2.1:53 as {ITSELF}",
            f"127.0.0.1 > 127.0.0.1:30053 > 10.180.2.1:53 as {ITSELF}",
            f"{OUTSIDE} > {OUT} > 10.180.2.1:53 as {ITSELF}",
            f"{OUTSIDE} > {LB} > 10.180.2.1:53 as {ITSELF}",
        ],
        [
            f"{POD} > {VIP} > 10.180.0.1:53",
            f"{POD} > 10.180.2.1:53",
            f"{OUTSIDE} > {LB} > 10.180.0.1:53 as {ITSELF}",
        ],
    ),
    "n to 0": (
        [f"{POD} > {VIP} > 10.180.0.1:53", f"{OUTSIDE} > {NODE} > 10.180.0.1:53 as {ITSELF}"],
        [f"{POD} > 10.180.0.1:53"],
    ),
    "slice deleted": ([f"{POD} > {VIP} > 10.180.0.1:53"], []),
    "0 to n": (
        [f"{POD} > {VIP}", f"{OUTSIDE} > {NODE}", f"{OUTSIDE} > {OUT}", f"{OUTSIDE} > {LB}"],
        [f"{POD} > {VIP} > 10.180.0.1:53"],
    ),
    "service created": (
        [f"{POD} > {VIP}", f"{OUTSIDE} > {NODE}", f"{OUTSIDE} > {OUT} > 172.17.0.2:53"],
        [f"{POD} > 192.0.2.77:30053"],
    ),
    "service deleted": (
        [
            f"{POD} > {VIP} > 10.180.0.1:53",
            f"{OUTSIDE} > {NODE} > 10.180.0.1:53 as {ITSELF}",
            f"{OUTSIDE} > {OUT} > 10.180.0.1:53 as {ITSELF}",
            f"{OUTSIDE} > {LB} > 10.180.0.1:53 as {ITSELF}",
        ],
        [
            # Not what we had there: who took the address over translates it.
            f"{POD} > {VIP} > 172.17.0.2:53",
            f"{POD} > {VIP}",
            f"{OUTSIDE} > {NODE}",
            f"{POD} > 192.0.2.77:30053 > 10.180.0.1:53",
        ],
    ),
    "VIP reused": (
        [f"{POD} > {VIP} > 10.180.0.1:53", f"{OUTSIDE} > {NODE} > 10.180.0.1:53 as {ITSELF}"],
        [f"{POD} > {VIP} > 10.180.9.9:53"],
    ),
    "port changed": (
        [f"{POD} > {VIP} > 10.180.0.1:53", f"{POD} > 172.30.0.41:54"],
        [f"{OUTSIDE} > {NODE} > 10.180.0.1:53 as {ITSELF}"],
    ),
    "entrances withdrawn": (
        [
            f"{OUTSIDE} > {NODE} > 10.180.0.1:53 as {ITSELF}",
            f"{OUTSIDE} > {OUT} > 10.180.0.1:53 as {ITSELF}",
            f"{OUTSIDE} > {LB} > 10.180.0.1:53 as {ITSELF}",
        ],
        [f"{POD} > {VIP} > 10.180.0.1:53", f"{OUTSIDE} > {NODE}"],
    ),
    "internal policy Local": (
        [f"{POD} > {VIP} > 10.180.2.1:53"],
        [f"{POD} > {VIP} > 10.180.0.1:53", f"{OUTSIDE} > {NODE} > 10.180.2.1:53 as {ITSELF}"],
    ),
    "external policy Local": (
        [
            f"{OUTSIDE} > {NODE} > 10.180.2.1:53 as {ITSELF}",
            f"{OUTSIDE} > {OUT} > 10.180.2.1:53",
            # The endpoint is right, but it must see the client's address from now on.
            f"{OUTSIDE} > {NODE} > 10.180.0.1:53 as {ITSELF}",
            f"{POD} > {LB} > 10.180.2.1:53 as {ITSELF}",
        ],
        [
            f"{OUTSIDE} > {NODE} > 10.180.0.1:53",
            f"{POD} > {LB} > 10.180.2.1:53",
            f"{ITSELF} > {NODE} > 10.180.2.1:53 as {ITSELF}",
            f"10.180.0.1 > {LB} > 10.180.0.1:53 as {ITSELF}",
            f"{POD} > {VIP} > 10.180.2.1:53",
        ],
    ),
    "external policy Cluster": (
        [f"{OUTSIDE} > {NODE} > 10.180.0.1:53"],
        [
            f"{OUTSIDE} > {NODE} > 10.180.2.1:53 as {ITSELF}",
            f"{ITSELF} > {NODE} > 10.180.2.1:53",
        ],
    ),
    "none left here": (
        [f"{OUTSIDE} > {NODE} > 10.180.0.1:53", f"{POD} > {VIP} > 10.180.0.1:53"],
        [f"{POD} > {NODE} > 10.180.2.1:53", f"{ITSELF} > {OUT} > 10.180.2.1:53"],
    ),
    "sources restricted": (
        [f"203.0.113.99 > {LB} > 10.180.0.1:53 as {ITSELF}"],
        [
            f"{OUTSIDE} > {LB} > 10.180.0.1:53 as {ITSELF}",
            f"203.0.113.99 > {NODE} > 10.180.0.1:53 as {ITSELF}",
            f"203.0.113.99 > {OUT} > 10.180.0.1:53 as {ITSELF}",
        ],
    ),
    "drains beside a ready one": (
        [],
        [f"{POD} > {VIP} > 10.180.2.1:53", f"{OUTSIDE} > {NODE} > 10.180.2.1:53 as {ITSELF}"],
    ),
    "drained": ([f"{POD} > {VIP} > 10.180.2.1:53"], [f"{POD} > {VIP} > 10.180.0.1:53"]),
    "turned to TCP": ([f"{POD} > {VIP} > 10.180.0.1:53"], [f"{POD} > {VIP}"]),
}


@pytest.mark.parametrize(
    ("change", "text", "stale"),
    [
        pytest.param(change, text, stale, id=f"{change}: {text}")
        for change, (gone, kept) in FLOWS.items()
        for stale, texts in ((True, gone), (False, kept))
        for text in texts
    ],
)
def test_flows(change, text, stale):
    """A flow goes when the rules of now would not make it, and stays in every other case."""
    before, after, gone = CHANGES[change]
    node = world()
    if change != "start":
        node.plan(*before)
        node.clean()
    node.plan(*after, gone=gone)
    assert node.is_stale(text) is stale
    node.clean()
    assert not node.is_stale(text)


def test_every_change_has_flows():
    """No row of one table without its row in the other."""
    assert CHANGES.keys() == FLOWS.keys()


@pytest.mark.parametrize("change", CHANGES)
def test_a_later_look_at_everything_spares_the_same(change):
    """A full sync, hours later, cuts no flow that was healthy when things changed."""
    before, after, gone = CHANGES[change]
    node = world()
    node.plan(*before)
    node.plan(*after, gone=gone)
    node.clean()
    node.stale.suspect_all()
    assert [text for text in FLOWS[change][1] if node.is_stale(text)] == []


@pytest.mark.parametrize("change", ["nothing", "start"])
def test_parts_of_no_change_and_of_a_start(change):
    """The first look is at everything; a sync that changes nothing needs none."""
    before, after, _ = CHANGES[change]
    node = world()
    node.plan(*before)
    node.clean()
    node.plan(*after)
    expected = sorted(
        Part(key[:-2], key[-2:])
        for key in (
            *(packed(ip) + packed_port(53) for ip in ("172.30.0.41", "198.51.100.7")),
            packed("203.0.113.7") + packed_port(53),
            packed_port(30053),
        )
    )
    assert node.stale.parts() == ([] if change == "nothing" else expected)
    assert world().stale.parts() == ()


def test_more_endpoints_need_no_look():
    """Scaling up leaves every flow right; scaling up from nothing does not."""
    node = world()
    node.plan(dns(), ONE)
    assert node.stale.parts() == WHOLE
    node.clean()
    node.plan(TWO)
    assert node.stale.parts() == []
    node.plan(NONE)
    node.clean()
    node.plan(TWO)
    assert node.stale.parts() == [Part(packed("172.30.0.41"), packed_port(53))]


def test_many_changes_are_one_look_at_everything():
    """A part costs the kernel a walk of the table; beyond a few the whole is cheaper."""
    node = world()
    node.plan(*(dns(f"s{n}", ip=f"172.30.1.{n}") for n in range(MOST_PARTS + 1)))
    node.clean()
    slices = [pods("10.180.0.1", service=f"s{n}") for n in range(MOST_PARTS + 1)]
    node.plan(*slices[:-1])
    assert len(node.stale.parts()) == MOST_PARTS
    node.plan(slices[-1])
    assert node.stale.parts() == WHOLE


def test_other_protocols_need_no_look():
    """TCP and SCTP are never cut, so nothing about them is worth a look."""
    node = world()
    node.plan(dns())
    node.clean()
    ports = (make_port("a", 53), make_port("b", 54, protocol=Protocol.SCTP))
    node.plan(make_service("svc2", ip="172.30.0.42", ports=ports))
    assert node.stale.parts() == []
    assert node.stale.judge([flow(f"{POD} > 172.30.0.42:53")]) == []


def test_a_plan_that_was_refused_counts():
    """Part of it may have been in force: what it brought and the next takes away is stale."""
    node = world()
    node.plan(dns(), ONE)
    node.clean()
    node.plan(dns("svc2", ip="172.30.0.42"), pods("10.180.9.9", service="svc2"))
    node.plan(gone=[dns("svc2")])
    assert node.is_stale(f"{POD} > 172.30.0.42:53 > 10.180.9.9:53")


def test_rules_of_a_former_life():
    """After a restart, flows of services deleted meanwhile go, and nobody else's."""
    node = world()
    node.plan(dns(), ONE)
    node.stale.remember(
        Former(
            vips=frozenset({("172.30.0.99", 53), ("172.30.0.41", 53)}),
            node_ports=frozenset({30099}),
            endpoints=frozenset({("10.180.9.9", 53), ("10.180.0.1", 53)}),
        )
    )
    assert node.is_stale(f"{POD} > 172.30.0.99:53 > 10.180.9.9:53")
    assert node.is_stale(f"{OUTSIDE} > 192.168.0.2:30099 > 10.180.9.9:53 as {ITSELF}")
    assert not node.is_stale(f"{POD} > {VIP} > 10.180.0.1:53")
    assert not node.is_stale(f"{POD} > 172.30.0.99:53 > 172.17.0.2:53")
    assert not node.is_stale(f"{POD} > 172.30.0.98:53 > 10.180.9.9:53")
    assert not node.is_stale(f"{POD} > 192.0.2.77:30099 > 10.180.9.9:53")


def test_what_was_cleaned_once_is_forgotten():
    """Whoever serves a withdrawn address after us, even with the same endpoints, is left alone."""
    node = world()
    node.plan(dns(), ONE)
    node.clean()
    node.plan(gone=[dns()])
    node.clean()
    node.stale.suspect_all()
    node.plan(dns("svc2", ip="172.30.0.42"))
    assert not node.is_stale(f"{POD} > {VIP} > 10.180.0.1:53")


@pytest.mark.parametrize(
    ("detector", "text", "stale"),
    [
        (CIDR, f"{POD} > {NODE} > 10.180.2.1:53", False),
        (CIDR, f"{OUTSIDE} > {NODE} > 10.180.2.1:53", True),
        (None, f"{POD} > {NODE} > 10.180.2.1:53", True),
        (None, f"{ITSELF} > {NODE} > 10.180.2.1:53 as {ITSELF}", False),
        # Nobody can tell a pod's flow from an interface that is not in the table: it stays.
        (LocalDetector(bridge="cni0"), f"{OUTSIDE} > {NODE} > 10.180.2.1:53", False),
        (LocalDetector(prefix="veth"), f"{OUTSIDE} > {NODE} > 10.180.7.7:53", True),
        # But one that is masqueraded was made under policy Cluster.
        (LocalDetector(bridge="cni0"), f"{OUTSIDE} > {NODE} > 10.180.2.1:53 as {ITSELF}", True),
    ],
)
def test_clients_under_local_policy(detector, text, stale):
    """This node's pods and the node itself may have any endpoint, others those of this node."""
    node = world(detector=detector)
    node.plan(dns(**EVERY), TWO)
    node.clean()
    node.plan(dns(external_policy=LOCAL, **EVERY))
    assert node.is_stale(text) is stale


@pytest.mark.parametrize(
    ("targets", "answering"),
    [
        (NodePortTargets(), {"192.168.0.2", "10.180.0.254", "127.0.0.1", "127.9.9.9"}),
        (NodePortTargets(localhost=False), {"192.168.0.2", "10.180.0.254"}),
        (NodePortTargets(False, ("192.168.0.2",), False), {"192.168.0.2"}),
        (NodePortTargets(False, ("192.168.0.2",), True), {"192.168.0.2", "127.0.0.1", "127.9.9.9"}),
    ],
)
def test_node_ports_answer_where_they_should(targets, answering):
    """A flow to a node port on any other address is not ours."""
    node = world(node_port_targets=targets)
    node.plan(dns(node_port=30053), ONE)
    everywhere = ("192.168.0.2", "10.180.0.254", "127.0.0.1", "127.9.9.9", "192.0.2.77")
    found = {ip for ip in everywhere if node.is_stale(f"{OUTSIDE} > {ip}:30053")}
    assert found == answering


def test_an_address_that_comes_here():
    """Node ports of a new address were another machine's; a link-local one is no reason to look."""
    node = world()
    node.plan(dns(node_port=30053), ONE)
    node.clean()
    node.addresses = (*ADDRESSES, "192.0.2.77", "169.254.1.1")
    node.plan()
    assert node.stale.parts() == [Part(packed("192.0.2.77"))]
    assert node.is_stale(f"{POD} > 192.0.2.77:30053")


def test_load_balancer_address_on_this_node():
    """The node's packets to it have it as their source, and pass when the node's address does."""
    for ranges, stale in ((("192.168.0.0/24",), False), (("192.0.2.0/24",), True)):
        node = world()
        restricted = {"source_ranges": ranges, "source_ranges_set": True}
        node.plan(dns(**EVERY, **restricted), ONE)
        assert node.is_stale(f"203.0.113.7 > {LB} > 10.180.0.1:53 as {ITSELF}") is stale


def test_an_endpoint_that_is_the_way_in():
    """A flow to a node port or external IP whose endpoint has that very place is healthy."""
    node = world()
    host = pods("198.51.100.7@node1")
    node.plan(dns(external_ips=("198.51.100.7",)), host)
    assert not node.is_stale(f"{POD} > {OUT}")


def test_ipv6():
    """The same with sixteen bytes."""
    node = World(Family.IPV6, make_settings(addresses=("2001:db8::2",)), ADDRESSES)
    service = dns(ip="fd00:30::41", node_port=30053)
    node.plan(service, pods("fd00:10::1", "fd00:10::2"))
    node.clean()
    node.plan(pods("fd00:10::1"))
    client = "2001:db8:9::9"
    assert node.is_stale(f"{client} > [fd00:30::41]:53 > [fd00:10::2]:53")
    assert node.is_stale(f"{client} > [2001:db8::2]:30053 > [fd00:10::2]:53 as 2001:db8::2")
    assert not node.is_stale(f"{client} > [::1]:30053 > [fd00:10::2]:53")
    assert not node.is_stale(f"{client} > [fd00:30::41]:53 > [fd00:10::1]:53")
