"""Addresses of the node against node ports of the same number: rules only where they meet."""

from __future__ import annotations

import pytest

from kproxy.backends.iptables.overlap import overlap
from kproxy.backends.iptables.render import context_of, render
from kproxy.backends.xtables.text import line
from kproxy.core.objects import Family, Protocol
from kproxy.core.snapshot import PortPlan
from tests.backends.iptables.plans import LOCAL, V4, V6, context, port, snapshot, successor
from tests.backends.iptables.test_render import filled, texts

#: What stands before the services' lines, and after them, for one address.
REFUSED = "-A KUBE-EXTERNAL-SERVICES -d {0}{1}30080 -j REJECT --reject-with icmp-port-unreachable"
DROPPED = "-A KUBE-EXTERNAL-SERVICES -d {0}{1}30080 -j DROP"
UNACCEPTED = "-A KUBE-NODEPORTS -d {0}{1}30080 -j RETURN"
LEFT = "-A KUBE-SERVICES -d {0}{1}30080 -j RETURN"

EXTERNAL_IP, BALANCER = "198.51.100.7/32", "203.0.113.7/32"
NODE_PORT = port("b", ways="cn")
CASES: list[tuple[str, tuple[PortPlan, ...], str, list[str]]] = [
    ("no endpoints", (port("a", pods=0, ways="e", number=30080), NODE_PORT), EXTERNAL_IP,
     [REFUSED, LEFT]),
    ("none here", (port("a", local_pods=0, ways="e", external=LOCAL, number=30080), NODE_PORT),
     EXTERNAL_IP, [DROPPED, LEFT]),
    ("source ranges", (port("a", ways="l", restricted=True, number=30080), NODE_PORT), BALANCER,
     [LEFT]),
    ("source ranges, its own node port",
     (port("a", ways="nl", restricted=True, number=30080),), BALANCER, [LEFT]),
    ("health checks", (port("a", pods=0, ways="e", number=30080),
                       port("b", ways="l", external=LOCAL, health=30080)), EXTERNAL_IP,
     [UNACCEPTED]),
    ("everything is translated", (port("a", ways="e", number=30080), NODE_PORT), EXTERNAL_IP, []),
    ("its own node port", (port("a", local_pods=0, ways="nl", external=LOCAL, number=30080),),
     BALANCER, [DROPPED]),
    ("another number", (port("a", pods=0, ways="el"), NODE_PORT), EXTERNAL_IP, []),
    ("another protocol",
     (port("a", pods=0, ways="e", number=30080, protocol=Protocol.UDP), NODE_PORT),
     EXTERNAL_IP, []),
    ("a cluster IP is no address of the node", (port("a", pods=0, number=30080), NODE_PORT),
     EXTERNAL_IP, []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("plans", "address", "wanted"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_rules_where_numbers_meet(
    plans: tuple[PortPlan, ...], address: str, wanted: list[str]
) -> None:
    """The owner's verdict first, and no way from its address to the node port behind it."""
    found = overlap(plans, context())
    short = [
        line(rule, V4).replace(f'-m comment --comment "{rule.comment}" ', "")
        for rule in (*found.head, *found.tail)
    ]
    assert short == [text.format(address, " -p tcp -m tcp --dport ") for text in wanted]


@pytest.mark.parametrize("family", [V4, V6])
def test_text_and_typed_rules_agree(family: Family) -> None:
    """In a whole Snapshot, and when a change makes the numbers meet or part."""
    by_port = port("b", family, ways="cn")
    apart = snapshot(port("a", family, pods=0, ways="e"), by_port, family=family)
    meeting = successor(apart, port("a", family, pods=0, ways="e", number=30080))
    parted = successor(meeting, port("a", family, pods=2, ways="e", number=30080))
    desired = None
    for whole in (apart, meeting, parted):
        desired = render(whole, context_of(whole), desired)
        assert filled(desired) == texts(desired.rules(), family)
        meets = "before node ports" in "".join(desired.dispatch.values())
        assert meets == (whole is meeting)
