"""What rules that still stand say of the UDP flows that they made."""

from __future__ import annotations

import pytest

from kproxy.backends.iptables.former import former
from kproxy.backends.iptables.held import held, settled
from kproxy.backends.iptables.render import context_of, render
from kproxy.backends.xtables.saved import parse
from kproxy.core.objects import Protocol
from kproxy.core.stale_flows import Former
from tests.backends.iptables.plans import ADDRESSES, V4, V6, port, snapshot

#: As kube-proxy 1.30 leaves them.
KUBE_PROXY = """\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SVC-TCOU7JCQXEZGVUNU - [0:0]
:KUBE-SEP-YIL6JZP7A3QYXJU2 - [0:0]
:KUBE-SEP-IT2ZTR26TO4XFPTO - [0:0]
:DOCKER - [0:0]
-A DOCKER -p udp -m udp --dport 53 -j DNAT --to-destination 172.17.0.2:53
-A KUBE-NODEPORTS -p udp -m comment --comment "kube-system/dns:udp" \
-m udp --dport 30053 -j KUBE-EXT-A
-A KUBE-NODEPORTS -p tcp -m comment --comment "shop/web" -m tcp --dport 30080 -j KUBE-EXT-B
-A KUBE-SERVICES -d 10.96.0.10/32 -p udp -m comment --comment "kube-system/dns:udp cluster IP" \
-m udp --dport 53 -j KUBE-SVC-TCOU7JCQXEZGVUNU
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "kube-system/dns:tcp cluster IP" \
-m tcp --dport 53 -j KUBE-SVC-ERIFXISQEP7F7OF4
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SEP-YIL6JZP7A3QYXJU2 -s 10.244.0.2/32 \
-m comment --comment "kube-system/dns:udp" -j KUBE-MARK-MASQ
-A KUBE-SEP-YIL6JZP7A3QYXJU2 -p udp -m comment --comment "kube-system/dns:udp" -m udp \
-j DNAT --to-destination 10.244.0.2:53
-A KUBE-SEP-IT2ZTR26TO4XFPTO -p tcp -m comment --comment "kube-system/dns:tcp" -m tcp \
-j DNAT --to-destination 10.244.0.2:5353
COMMIT
"""


def test_rules_of_kube_proxy():
    """UDP of the proxy's own chains, and nothing else."""
    assert former(held(parse(KUBE_PROXY.replace("\\\n", "")), V4)) == Former(
        frozenset({("10.96.0.10", 53)}), frozenset({30053}), frozenset({("10.244.0.2", 53)})
    )


@pytest.mark.parametrize("family", [V4, V6])
def test_rules_of_ours(family):
    """Every way in and every endpoint of a UDP service port, and none of TCP and SCTP."""
    cluster_ip, external_ip, balancer, _, pods, _ = ADDRESSES[family]
    ports = [
        port("svc1", family, ways="celn", protocol=Protocol.UDP),
        port("svc2", family, ways="c", protocol=Protocol.TCP),
        port("svc3", family, ways="c", protocol=Protocol.SCTP),
    ]
    plan = snapshot(*ports, family=family)
    found = former(settled(render(plan, context_of(plan), None)))
    number = ports[0].port
    assert found == Former(
        frozenset((ip, number) for ip in (cluster_ip, external_ip, balancer)),
        frozenset({30080}),
        frozenset((ip, 80) for ip in pods[:2]),
    )


def test_an_empty_kernel():
    """The first start on a machine."""
    assert former(held({}, V4)) == Former()
