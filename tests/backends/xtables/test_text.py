"""Text of rules: the order and the digits of iptables-save."""

from __future__ import annotations

import pytest

from kproxy.backends.xtables.rules import (
    NEGATABLE,
    Accept,
    Dnat,
    Drop,
    Goto,
    Jump,
    Mark,
    Masquerade,
    Recent,
    Redirect,
    Reject,
    Return,
    Rule,
    SetMark,
    SetMatch,
    Table,
    Target,
)
from kproxy.backends.xtables.text import comment, host, line, probability
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from tests.contract.namespaces import KERNEL, restored

NAT, FILTER = Table.NAT, Table.FILTER
V4, V6 = Family.IPV4, Family.IPV6

#: (family, rule, text). A field or target that is in no row fails a test below.
SHAPES: list[tuple[Family, Rule, str]] = [
    (V4, Rule(NAT, "A"), "-A A"),
    (V4, Rule(NAT, "A", Jump("B")), "-A A -j B"),
    (V4, Rule(NAT, "A", Goto("B")), "-A A -g B"),
    (V4, Rule(FILTER, "A", Accept()), "-A A -j ACCEPT"),
    (V4, Rule(NAT, "A", Return()), "-A A -j RETURN"),
    (V4, Rule(FILTER, "A", Reject()), "-A A -j REJECT --reject-with icmp-port-unreachable"),
    (V6, Rule(FILTER, "A", Reject()), "-A A -j REJECT --reject-with icmp6-port-unreachable"),
    (V4, Rule(NAT, "A", Masquerade(True)), "-A A -j MASQUERADE --random-fully"),
    (V6, Rule(NAT, "A", Masquerade(False)), "-A A -j MASQUERADE"),
    (V4, Rule(NAT, "A", SetMark(0x4000, 0x4000)), "-A A -j MARK --set-xmark 0x4000/0x4000"),
    (V4, Rule(NAT, "A", SetMark(0x4000, 0)), "-A A -j MARK --set-xmark 0x4000/0x0"),
    (V4, Rule(NAT, "A", SetMark(1 << 31, 0)), "-A A -j MARK --set-xmark 0x80000000/0x0"),
    (
        V4,
        Rule(NAT, "A", Return(), mark=Mark(1, 1), negated=("mark",)),
        "-A A -m mark ! --mark 0x1/0x1 -j RETURN",
    ),
    (
        V4,
        Rule(NAT, "A", Dnat("10.0.0.2:80"), protocol="sctp", comment="a/b:c"),
        '-A A -p sctp -m comment --comment "a/b:c" -m sctp -j DNAT --to-destination 10.0.0.2:80',
    ),
    (
        V6,
        Rule(NAT, "A", Dnat("[fd00::2]:80"), protocol="tcp", recent=Recent("KUBE-SEP-X")),
        (
            "-A A -p tcp -m recent --set --name KUBE-SEP-X --mask "
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -m tcp "
            "-j DNAT --to-destination [fd00::2]:80"
        ),
    ),
    (
        V4,
        Rule(NAT, "A", Jump("B"), comment="x y", recent=Recent("KUBE-SEP-X", 10800)),
        (
            '-A A -m comment --comment "x y" -m recent --rcheck --seconds 10800 --reap '
            "--name KUBE-SEP-X --mask 255.255.255.255 --rsource -j B"
        ),
    ),
    (
        V4,
        Rule(
            NAT,
            "A",
            Jump("B"),
            comment="a/b:c cluster IP",
            protocol="tcp",
            source="10.0.0.0/8",
            destination="172.30.0.41/32",
            dport=80,
            negated=("source",),
        ),
        (
            "-A A ! -s 10.0.0.0/8 -d 172.30.0.41/32 -p tcp "
            '-m comment --comment "a/b:c cluster IP" -m tcp --dport 80 -j B'
        ),
    ),
    (
        V4,
        Rule(NAT, "A", Jump("B"), in_interface="veth+", destination="127.0.0.0/8"),
        "-A A -d 127.0.0.0/8 -i veth+ -j B",
    ),
    (
        V6,
        Rule(
            NAT,
            "A",
            Jump("B"),
            in_interface="cbr0",
            destination="::1/128",
            negated=("in_interface", "destination"),
        ),
        "-A A ! -d ::1/128 ! -i cbr0 -j B",
    ),
    (
        V4,
        Rule(FILTER, "A", Drop(), ctstate=("RELATED", "DNAT"), negated=("ctstate",), comment="x y"),
        '-A A -m comment --comment "x y" -m conntrack ! --ctstate RELATED,DNAT -j DROP',
    ),
    (
        V4,
        Rule(FILTER, "A", Drop(), ctstate=("INVALID",), sets=(SetMatch("KP-4", ("src", "src")),)),
        "-A A -m conntrack --ctstate INVALID -m set --match-set KP-4 src,src -j DROP",
    ),
    (
        V6,
        Rule(FILTER, "A", Drop(), ctstate=("INVALID",), sets=(SetMatch("KP-6", ("src", "src")),)),
        "-A A -m conntrack --ctstate INVALID -m set --match-set KP-6 src,src -j DROP",
    ),
    (
        V4,
        Rule(
            NAT,
            "A",
            Return(),
            protocol="sctp",
            source="10.0.0.0/8",
            sets=(SetMatch("KP-1", ("dst", "dst", "src")), SetMatch("KP-2", ("src",), True)),
            source_local=True,
            negated=("source_local",),
        ),
        (
            "-A A -s 10.0.0.0/8 -p sctp -m set --match-set KP-1 dst,dst,src "
            "-m set ! --match-set KP-2 src -m addrtype ! --src-type LOCAL -m sctp -j RETURN"
        ),
    ),
    (
        V6,
        Rule(
            NAT,
            "A",
            Jump("B"),
            sets=(SetMatch("KP-6", ("dst", "dst")),),
            destination_local=True,
            negated=("destination_local",),
        ),
        "-A A -m set --match-set KP-6 dst,dst -m addrtype ! --dst-type LOCAL -j B",
    ),
    (
        V4,
        Rule(NAT, "A", Jump("B"), source_local=True, comment="x y"),
        '-A A -m comment --comment "x y" -m addrtype --src-type LOCAL -j B',
    ),
    (
        V4,
        Rule(FILTER, "A", Reject(), destination_local=True, protocol="udp", dport=53),
        (
            "-A A -p udp -m addrtype --dst-type LOCAL -m udp --dport 53 "
            "-j REJECT --reject-with icmp-port-unreachable"
        ),
    ),
    (V4, Rule(NAT, "A", Jump("B"), source="0.0.0.0/0"), "-A A -j B"),
    (
        V4,
        Rule(FILTER, "A", Drop(), protocol="tcp", dport=80, counter="kp_dropped"),
        "-A A -p tcp -m tcp --dport 80 -m nfacct --nfacct-name kp_dropped -j DROP",
    ),
    (
        V4,
        Rule(NAT, "A", Jump("B"), probability=probability(3)),
        "-A A -m statistic --mode random --probability 0.33333333349 -j B",
    ),
    (
        V4,
        Rule(NAT, "A", Redirect(4000), protocol="tcp"),
        "-A A -p tcp -m tcp -j REDIRECT --to-ports 4000",
    ),
    (
        V4,
        Rule(
            NAT,
            "A",
            Redirect(4000),
            protocol="udp",
            source="192.0.2.0/24",
            original_source="10.180.0.0/16",
            source_local=True,
            negated=("original_source", "source_local"),
        ),
        (
            "-A A -s 192.0.2.0/24 -p udp -m conntrack ! --ctorigsrc 10.180.0.0/16 "
            "-m addrtype ! --src-type LOCAL -m udp -j REDIRECT --to-ports 4000"
        ),
    ),
    (
        V6,
        Rule(FILTER, "A", Drop(), ctstate=("NEW",), original_source="fd00:10::/64"),
        "-A A -m conntrack --ctstate NEW --ctorigsrc fd00:10::/64 -j DROP",
    ),
    (
        V4,
        Rule(FILTER, "INPUT", Jump("B"), ctstate=("NEW",), comment="x y"),
        '-A INPUT -m conntrack --ctstate NEW -m comment --comment "x y" -j B',
    ),
]


@pytest.mark.parametrize(("family", "rule", "expected"), SHAPES)
def test_text_of_a_rule(family: Family, rule: Rule, expected: str) -> None:
    """Each shape has the text that iptables-save prints."""
    assert line(rule, family) == expected


def test_every_field_target_and_negation_has_a_row() -> None:
    """A new field or target cannot be forgotten in the table above."""
    blank = Rule(NAT, "A")
    rules = [rule for _, rule, _ in SHAPES]
    used = {
        name
        for rule in rules
        for name in Rule.__struct_fields__
        if getattr(rule, name) != getattr(blank, name)
    }
    assert used >= set(Rule.__struct_fields__) - {"table", "chain"}
    assert {type(rule.target) for rule in rules} - {type(None)} == set(Target.__args__)
    assert {name for rule in rules for name in rule.negated} == set(NEGATABLE)


@pytest.mark.kernel
@pytest.mark.parametrize(("family", "variant"), KERNEL)
def test_the_kernel_gives_the_text_back(family: Family, variant: Variant) -> None:
    """What both tools print after a restore is what was restored, for every shape."""
    rows = {
        table: [text for its, rule, text in SHAPES if its is family and rule.table is table]
        for table in (NAT, FILTER)
    }
    assert restored(family, variant, rows, chains=("A", "B")) == rows


@pytest.mark.kernel
@pytest.mark.parametrize(("family", "variant"), KERNEL)
def test_the_kernel_gives_probabilities_back(family: Family, variant: Variant) -> None:
    """All chances up to one in 5,000 endpoints have the digits of the kernel."""
    rule = "-A A -m statistic --mode random --probability {} -j ACCEPT"
    rows = {FILTER: [rule.format(probability(choices)) for choices in range(2, 5001)]}
    assert restored(family, variant, rows, chains=("A",)) == rows


@pytest.mark.parametrize("choices", range(1, 200))
def test_probability_is_kube_proxys(choices: int) -> None:
    """The number is the 32-bit one that the ten decimals of kube-proxy make."""
    share = 2**31
    assert round(float(probability(choices)) * share) == round(round(1 / choices, 10) * share)


@pytest.mark.parametrize(
    ("address", "family", "expected"),
    [
        ("10.0.0.1", V4, "10.0.0.1/32"),
        ("fd00::1", V6, "fd00::1/128"),
        ("::1", V6, "::1/128"),
        ("::ffff:102:304", V6, "::ffff:1.2.3.4/128"),
    ],
)
def test_host_is_spelled_as_the_tools_do(address: str, family: Family, expected: str) -> None:
    """One address as a CIDR, in inet_ntop's spelling."""
    assert host(address, family) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ns1/svc1:p80", "ns1/svc1:p80"),
        ('a" -j DROP', "a? -j DROP"),
        ("a\nCOMMIT", "a?COMMIT"),
        ("a\\", "a?"),
        ("å", "?"),
        ("x" * 300, "x" * 255),
    ],
)
def test_comment_cannot_leave_its_quotes(text: str, expected: str) -> None:
    """Nothing in a name can end a comment or a line."""
    assert comment(text) == expected
