"""Names of chains and jumps are kube-proxy's."""

from __future__ import annotations

import pytest

from kproxy.backends.iptables import chains
from kproxy.backends.iptables.layout import LAYOUT
from kproxy.backends.xtables.rules import Jump, Table
from kproxy.core.objects import PortName, Protocol


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (PortName("ns1", "svc1", "p80", Protocol.TCP), "XPGD46QRK7WJZT7O"),
        (PortName("ns2", "svc2", "p80", Protocol.TCP), "GNZBNJ2PO5MGZ6GT"),
        (PortName("ns4", "svc4", "p80", Protocol.TCP), "4SW47YFZTEDKD3PK"),
        (PortName("ns5", "svc5", "p80", Protocol.TCP), "NUKIZ6OKUXPJNT4C"),
    ],
)
def test_port_hash_is_kube_proxys(name: PortName, expected: str) -> None:
    """The sixteen characters equal those that kube-proxy gives the same service port."""
    assert chains.port_hash(name) == expected


@pytest.mark.parametrize(
    ("service", "end", "expected"),
    [
        ("1", "10.180.0.1:80", "KUBE-SEP-SXIVWICOYRO3J4NJ"),
        ("4", "10.180.0.4:80", "KUBE-SEP-UKSFD7AGPMPPLUHC"),
        ("4", "10.180.0.5:80", "KUBE-SEP-C6EBXVWJJZMIWKLZ"),
    ],
)
def test_endpoint_chain_is_kube_proxys(service: str, end: str, expected: str) -> None:
    """The chain of an endpoint equals kube-proxy's."""
    name = PortName(f"ns{service}", f"svc{service}", "p80", Protocol.TCP)
    assert chains.endpoint_chains(name, [end]) == [expected]


def test_protocol_and_port_name_tell_chains_apart() -> None:
    """Ports that differ in protocol or name only have chains of their own."""
    names = [PortName("ns", "dns", port, protocol) for port in ("", "dns") for protocol in Protocol]
    assert len({chains.port_hash(name) for name in names}) == len(names)


def test_names_fit_the_kernel() -> None:
    """The kernel takes 28 characters."""
    longest = max(len(prefix) for prefix in chains.SERVICE_PREFIXES) + 16
    assert longest <= 28
    assert all(len(chain) <= 28 for own in LAYOUT.own.values() for chain in own)


def test_every_chain_of_ours_that_needs_it_is_reached() -> None:
    """Each own chain is the canary, reached from a base chain, or from other rules of ours."""
    reached = {
        (rule.table, rule.target.chain) for rule in chains.JUMPS if isinstance(rule.target, Jump)
    }
    elsewhere = {(Table.NAT, chains.NODE_PORTS), (Table.NAT, chains.MARK_MASQ)}
    own = {(table, chain) for table, names in LAYOUT.own.items() for chain in names}
    canaries = {(table, chains.CANARY) for table in Table}
    assert own - reached == elsewhere | canaries
    assert reached - own == {(Table.FILTER, chains.KUBELET_FIREWALL)}
