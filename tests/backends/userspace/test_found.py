"""What rules that are found say of an earlier life of the mode."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from kproxy.backends.userspace.found import former, ports_in
from kproxy.backends.userspace.held import rows_of
from kproxy.backends.userspace.render import render
from kproxy.backends.userspace.text import imagined
from kproxy.backends.xtables.found import Found
from kproxy.backends.xtables.rules import Table
from kproxy.core.objects import Family, PortName, Protocol
from kproxy.core.snapshot import PortPlan
from kproxy.core.stale_flows import Former
from tests.backends.iptables.plans import ADDRESSES, LOCAL, port, settings, snapshot

UDP = Protocol.UDP


def found(*plans: PortPlan, family: Family = Family.IPV4, to: bool = False) -> Found:
    """Rules as a proxy left them; ``to`` an address of the node, or by REDIRECT."""
    own = ADDRESSES[family][3]
    its = settings(family, local_addresses=(own,) if to else ())
    desired = render(snapshot(*plans, family=family, settings_=its), None)
    tables: dict[Table, dict[str, str]] = {table: {} for table in Table}
    for (table, chain), rows in rows_of(desired.blocks.values(), imagined(desired)).items():
        tables[table][chain] = "".join(f"{row}\n" for row in rows)
    return Found(tables)


@pytest.mark.parametrize("protocol", [Protocol.TCP, UDP])
def test_relay_ports_are_known_again(protocol: Protocol) -> None:
    """Of every front, whatever its service port is called."""
    plans = [
        port("web", ways="cn", external=LOCAL, protocol=protocol),
        port("other", number=81, protocol=protocol),
    ]
    nameless = PortName("ns1", "other", "", protocol)
    plans.append(replace(plans[1], name=nameless, port=82))
    desired = render(snapshot(*plans), None)
    wanted = {
        (name, use): number
        for name, serving in imagined(desired).serving.items()
        for use, number in serving.ports
    }
    assert len(wanted) == 4
    assert ports_in(found(*plans)) == wanted


def test_foreign_lines_say_nothing() -> None:
    """In our chain, of somebody else, or of a version that writes them differently."""
    text = '-A KUBE-RELAY-GUARD -p tcp -m comment --comment "web" -m tcp --dport 40000 -j REJECT\n'
    assert ports_in(Found({Table.FILTER: {"KUBE-RELAY-GUARD": text}})) == {}
    assert ports_in(Found({})) == {}


@pytest.mark.parametrize("to", [False, True])
@pytest.mark.parametrize("family", list(Family))
def test_udp_flows_of_an_earlier_life(family: Family, to: bool) -> None:
    """Every way in and every relay port, and nothing of TCP."""
    plans = (
        port("dns", family, ways="cnel", protocol=UDP, number=53),
        port("web", family, ways="cn"),
    )
    cluster_ip, external, balancer, *_ = ADDRESSES[family]
    relay_port = next(
        number
        for name, serving in imagined(render(snapshot(*plans, family=family), None)).serving.items()
        for _, number in serving.ports
        if name.protocol is UDP
    )
    assert former(found(*plans, family=family, to=to)) == Former(
        vips=frozenset({(cluster_ip, 53), (external, 53), (balancer, 53)}),
        node_ports=frozenset({30080}),
        endpoints=frozenset({("", relay_port)}),
    )
