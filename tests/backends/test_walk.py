"""The walker: each move of netfilter on hand-made rules, then whole paths against the kernel."""

from __future__ import annotations

from fractions import Fraction

import pytest

from kproxy.backends.iptables.walk import (
    Fate,
    Packet,
    Walker,
    inside,
    probability_of,
    recent_lists,
    split_endpoint,
    steps_of,
)
from kproxy.backends.xtables.rules import (
    Accept,
    Dnat,
    Drop,
    Goto,
    Jump,
    Mark,
    Masquerade,
    Recent,
    Reject,
    Return,
    Rule,
    SetMark,
    Table,
)
from kproxy.backends.xtables.text import probability
from kproxy.core.objects import Protocol
from kproxy.errors import UsageError

TCP, UDP = Protocol.TCP, Protocol.UDP
NODE = "192.168.0.2"
VIP = "172.30.0.1"
POD = "10.180.0.1:8080"

FROM_OUTSIDE = Packet("192.0.2.7", VIP, TCP, 80, "eth0")
FROM_NODE = Packet(NODE, VIP, TCP, 80)
TO_NODE = Packet("192.0.2.7", NODE, TCP, 30080, "eth0")
TO_ITSELF = Packet(NODE, NODE, TCP, 30080)


def nat(chain, target=None, **matches):
    return Rule(Table.NAT, chain, target, **matches)


def fil(chain, target=None, **matches):
    return Rule(Table.FILTER, chain, target, **matches)


def the_way(rules, packet, recent=()):
    """The only way that the packet can take."""
    (way,) = Walker(rules, [NODE]).walk(packet, recent).outcomes
    assert way.probability == 1
    return way


def marks(*names):
    """A rule in each hook that only counts: what the packet meets of them is its path."""
    return [Rule(Table(table), chain) for table, chain in (name.split() for name in names)]


EVERYWHERE = marks(
    "nat PREROUTING",
    "nat INPUT",
    "nat OUTPUT",
    "nat POSTROUTING",
    "filter INPUT",
    "filter FORWARD",
    "filter OUTPUT",
    "mangle PREROUTING",
)


@pytest.mark.parametrize(
    ("packet", "path"),
    [
        (FROM_OUTSIDE, ["nat PREROUTING", "filter FORWARD", "nat POSTROUTING"]),
        (TO_NODE, ["nat PREROUTING", "filter INPUT", "nat INPUT"]),
        (FROM_NODE, ["nat OUTPUT", "filter OUTPUT", "nat POSTROUTING"]),
        (TO_ITSELF, ["nat OUTPUT", "filter OUTPUT", "nat POSTROUTING", "filter INPUT"]),
        (
            Packet(NODE, "127.0.0.1", TCP, 1),
            ["nat OUTPUT", "filter OUTPUT", "nat POSTROUTING", "filter INPUT"],
        ),
        (Packet("192.0.2.7", VIP, TCP, 80, "eth0", "ESTABLISHED"), ["filter FORWARD"]),
        (Packet("192.0.2.7", VIP, TCP, 80, "eth0", "INVALID"), ["filter FORWARD"]),
    ],
)
def test_path(packet, path):
    """Hooks come in the order of the kernel; nat is asked for the first packet only."""
    way = the_way(EVERYWHERE, packet)
    assert [f"{step.rule.table} {step.rule.chain}" for step in way.steps] == path
    assert [step.hook for step in way.steps] == [name.split()[1] for name in path]
    assert way.fate is Fate.UNTOUCHED


@pytest.mark.parametrize(
    ("packet", "endpoint", "path"),
    [
        (FROM_OUTSIDE, POD, ["PREROUTING", "FORWARD", "POSTROUTING"]),
        (FROM_OUTSIDE, f"{NODE}:8080", ["PREROUTING", "INPUT", "INPUT"]),
        (TO_NODE, POD, ["PREROUTING", "FORWARD", "POSTROUTING"]),
        (FROM_NODE, f"{NODE}:8080", ["OUTPUT", "OUTPUT", "POSTROUTING", "INPUT"]),
        (TO_ITSELF, POD, ["OUTPUT", "OUTPUT", "POSTROUTING"]),
    ],
)
def test_routing_follows_the_translated_destination(packet, endpoint, path):
    """Where the packet goes after DNAT is decided by the endpoint, not by the address it was to."""
    rules = [nat("PREROUTING", Dnat(endpoint)), nat("OUTPUT", Dnat(endpoint)), *EVERYWHERE]
    way = the_way(rules, packet)
    assert [step.hook for step in way.steps] == path
    assert (way.fate, way.endpoint) == (Fate.TRANSLATED, endpoint)


@pytest.mark.parametrize(
    ("matches", "met"),
    [
        ({}, True),
        ({"protocol": "tcp", "dport": 80}, True),
        ({"protocol": "udp", "dport": 80}, False),
        ({"dport": 81}, False),
        ({"destination": "172.30.0.1/32"}, True),
        ({"destination": "172.30.0.2/32"}, False),
        ({"destination": "172.30.0.2/32", "negated": ("destination",)}, True),
        ({"source": "192.0.2.0/24"}, True),
        ({"source": "192.0.2.0/24", "negated": ("source",)}, False),
        ({"source": "0.0.0.0/0"}, True),
        ({"in_interface": "eth0"}, True),
        ({"in_interface": "eth"}, False),
        ({"in_interface": "eth+"}, True),
        ({"in_interface": "eth+", "negated": ("in_interface",)}, False),
        ({"in_interface": "cni0", "negated": ("in_interface",)}, True),
        ({"source_local": True}, False),
        ({"destination_local": True}, False),
        ({"mark": Mark(0x4000, 0x4000)}, False),
        ({"mark": Mark(0x4000, 0x4000), "negated": ("mark",)}, True),
        ({"ctstate": ("NEW",)}, True),
        ({"ctstate": ("RELATED", "ESTABLISHED")}, False),
        ({"ctstate": ("RELATED", "ESTABLISHED", "DNAT"), "negated": ("ctstate",)}, True),
        ({"recent": Recent("A", 30)}, False),
        ({"recent": Recent("B", 30)}, True),
        ({"recent": Recent("A")}, True),
    ],
)
def test_matches(matches, met):
    """Each match, plain and inverted, against one packet from outside to a VIP."""
    way = the_way([nat("PREROUTING", Dnat(POD), **matches)], FROM_OUTSIDE, {"B"})
    assert (way.endpoint == POD) is met


@pytest.mark.parametrize(
    ("packet", "met"),
    [
        (FROM_NODE, (True, False)),
        (TO_ITSELF, (True, True)),
        (Packet("127.0.0.1", "127.0.0.9", TCP, 1), (True, True)),
        (Packet("::1", "fd00::1", TCP, 1), (True, False)),
    ],
)
def test_local_addresses(packet, met):
    """The node's own addresses and all loopback ones are LOCAL; nobody lists the latter."""
    rules = [nat("OUTPUT", source_local=True), nat("OUTPUT", destination_local=True)]
    steps = the_way(rules, packet).steps
    assert (rules[0] in {s.rule for s in steps}, rules[1] in {s.rule for s in steps}) == met


@pytest.mark.parametrize(
    ("first", "second", "ends"),
    [
        (Jump("B"), Return(), ["A2", "after"]),
        (Jump("B"), None, ["A2", "after"]),
        (Goto("B"), Return(), ["after"]),
        (Goto("B"), None, ["after"]),
        (Jump("B"), Accept(), []),
        (Jump("nowhere"), None, ["A2", "after"]),
        (Return(), None, ["after"]),
    ],
)
def test_chains(first, second, ends):
    """A jump comes back to its caller, a goto to its caller's caller, ACCEPT ends the table."""
    rules = [
        nat("PREROUTING", Jump("A")),
        nat("PREROUTING", comment="after"),
        nat("A", first),
        nat("A", comment="A2"),
        nat("B", second),
    ]
    steps = the_way(rules, FROM_OUTSIDE).steps
    assert [step.rule.comment for step in steps if step.rule.comment] == ends


def test_a_verdict_in_nat_is_no_verdict_in_filter():
    """The first rule of nat that ends decides the translation; filter has its own say, later."""
    rules = [
        nat("PREROUTING", Dnat(POD)),
        nat("PREROUTING", Dnat("10.180.0.2:8080")),
        fil("FORWARD", Drop(), destination="172.30.0.1/32"),
        fil("FORWARD", Reject(), destination="10.180.0.1/32", dport=8080),
        nat("POSTROUTING", Masquerade(False)),
    ]
    way = the_way(rules, FROM_OUTSIDE)
    assert (way.fate, way.endpoint, way.masquerade) == (Fate.REJECTED, POD, False)
    assert [step.hook for step in way.steps] == ["PREROUTING", "FORWARD"]


@pytest.mark.parametrize(
    ("target", "fate", "accepted"),
    [
        (Drop(), Fate.DROPPED, False),
        (Reject(), Fate.REJECTED, False),
        (Accept(), Fate.UNTOUCHED, True),
        (None, Fate.UNTOUCHED, False),
    ],
)
def test_filter_verdicts(target, fate, accepted):
    """The first verdict of filter ends it."""
    way = the_way([fil("INPUT", target), fil("INPUT", Accept(), ctstate=("INVALID",))], TO_NODE)
    assert (way.fate, way.accepted) == (fate, accepted)


def test_translation_is_a_state():
    """DNAT is a state of what was translated, whatever else it is."""
    guard = fil("INPUT", Drop(), ctstate=("RELATED", "DNAT"), negated=("ctstate",))
    assert the_way([guard], TO_NODE).fate is Fate.DROPPED
    here = nat("PREROUTING", Dnat("127.0.0.1:8080"))
    assert the_way([here, guard], TO_NODE).fate is Fate.TRANSLATED


def test_mark_travels_to_postrouting():
    """A mark set in nat is seen behind routing; or-ing and clearing leave other bits alone."""
    rules = [
        nat("PREROUTING", SetMark(0x1, 0x0)),
        nat("PREROUTING", SetMark(0x4000, 0x4000)),
        fil("FORWARD", Accept(), mark=Mark(0x4001, 0x4001)),
        nat("POSTROUTING", Return(), mark=Mark(0x4000, 0x4000), negated=("mark",)),
        nat("POSTROUTING", SetMark(0x4000, 0x0)),
        nat("POSTROUTING", Return(), mark=Mark(0x4000, 0x4000)),
        nat("POSTROUTING", Masquerade(True), mark=Mark(0x1, 0xFFFF)),
    ]
    way = the_way(rules, FROM_OUTSIDE)
    assert (way.masquerade, way.accepted) == (True, True)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_chances(count):
    """Every branch of chance is walked; what is left over goes to the last, and nothing is lost."""
    odds = [probability(count - index) for index in range(count - 1)]
    rules = [
        nat("PREROUTING", Dnat(f"10.180.0.{index}:80"), probability=text)
        for index, text in enumerate([*odds, ""])
    ]
    walk = Walker(rules, []).walk(FROM_OUTSIDE)
    assert list(walk.endpoints) == [f"10.180.0.{index}:80" for index in range(count)]
    assert sum(walk.endpoints.values()) == 1
    assert all(abs(chance - Fraction(1, count)) < 1e-8 for chance in walk.endpoints.values())
    assert [len(way.steps) for way in walk.outcomes] == [1] * count
    assert len(steps_of(walk)) == count


def test_chance_is_the_kernels_number():
    """The digits of a third are not a third: the kernel compares 31 random bits."""
    rule = nat("A", probability=probability(3))
    assert probability_of(rule) == Fraction(715827883, 1 << 31)
    assert probability_of(nat("A", probability="0.50000000000")) == Fraction(1, 2)


def test_one_endpoint_by_two_ways():
    """Chances of one endpoint add up, and fates may differ by the endpoint."""
    rules = [
        nat("PREROUTING", Dnat(POD), probability="0.25"),
        nat("PREROUTING", Dnat("10.180.0.9:80"), probability="0.50"),
        nat("PREROUTING", Dnat(POD)),
        fil("FORWARD", Drop(), destination="10.180.0.9/32"),
    ]
    walk = Walker(rules, []).walk(FROM_OUTSIDE)
    assert walk.endpoints == {POD: Fraction(5, 8)}
    assert walk.fates == {Fate.TRANSLATED, Fate.DROPPED}


def test_affinity():
    """Who is on a list goes to its endpoint with certainty, and onto the list again."""
    rules = [
        nat("PREROUTING", Jump("A"), recent=Recent("A", 30)),
        nat("PREROUTING", Jump("B"), recent=Recent("B", 30)),
        nat("PREROUTING", Jump("A"), probability="0.50"),
        nat("PREROUTING", Jump("B")),
        nat("A", Dnat("10.180.0.1:80"), recent=Recent("A")),
        nat("B", Dnat("10.180.0.2:80"), recent=Recent("B")),
    ]
    free = Walker(rules, []).walk(FROM_OUTSIDE)
    assert [way.recorded for way in free.outcomes] == ["A", "B"]
    for name, endpoint in recent_lists(rules).items():
        way = the_way(rules, FROM_OUTSIDE, {name, "of another service"})
        assert (way.endpoint, way.recorded) == (endpoint, name)


def test_a_circle_is_refused():
    """Rules that no kernel takes end in an error that names a chain, not in a hang."""
    rules = [nat("PREROUTING", Jump("A")), nat("A", Jump("B")), nat("B", Jump("A"))]
    with pytest.raises(UsageError, match=r"nat [AB]: the chains jump in a circle"):
        Walker(rules, []).walk(FROM_OUTSIDE)


@pytest.mark.parametrize(
    ("address", "cidr", "expected"),
    [
        ("10.0.0.1", "10.0.0.0/8", True),
        ("11.0.0.1", "10.0.0.0/8", False),
        ("fd00::1", "fd00::/64", True),
        ("fd00::1", "0.0.0.0/0", False),
        ("10.0.0.1", "::/0", False),
    ],
)
def test_inside(address, cidr, expected):
    """A range holds addresses of its own family only."""
    assert inside(address, cidr) is expected


@pytest.mark.parametrize(
    ("text", "expected"), [(POD, ("10.180.0.1", 8080)), ("[fd00::1]:80", ("fd00::1", 80))]
)
def test_split_endpoint(text, expected):
    """Endpoints of both families come apart."""
    assert split_endpoint(text) == expected
