"""What rules found in the kernel say of an earlier life of the mode: relay ports, UDP flows. Pure.

A relay port that rules lead to is taken again if it can be had: then no rule has to change. The
flows that those rules made are ours to clean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from kproxy.backends.userspace import chains
from kproxy.backends.userspace.plan import Front
from kproxy.backends.xtables.found import Found
from kproxy.backends.xtables.rules import Table
from kproxy.core.objects import PortName, Protocol
from kproxy.core.policy import Use
from kproxy.core.stale_flows import Former

#: A guard's line names the service port, the list and the relay port, as
#: :mod:`kproxy.backends.userspace.rules` writes it.
_GUARD = re.compile(
    r'-p (?P<protocol>tcp|udp) -m comment --comment "(?P<namespace>[^/"]*)/(?P<name>[^:" ]*)'
    r'(?::(?P<port>[^" ]*))? (?P<use>cluster|local) relay" .*--dport (?P<number>\d+) '
).search

_TO_RELAY = r"(?:--to-ports |--to-destination \S+:)(\d+)"
_VIP = re.compile(rf"-d ([0-9a-f.:]+)/(?:32|128) -p udp .*--dport (\d+) .*{_TO_RELAY}").search
_NODE_PORT = re.compile(rf" -p udp .*--dport (\d+) .*{_TO_RELAY}").search


def ports_in(rules: Found) -> dict[Front, int]:
    """Relay port of each front that the rules guard."""
    return dict(_ports_in(rules))


def _ports_in(rules: Found) -> Iterator[tuple[Front, int]]:
    text = rules.tables.get(Table.FILTER, {}).get(chains.RELAY_GUARD, "")
    for row in text.splitlines():
        if found := _GUARD(row):
            protocol = Protocol(found["protocol"].upper())
            name = PortName(found["namespace"], found["name"], found["port"] or "", protocol)
            yield Front(name, Use(found["use"])), int(found["number"])


def former(rules: Found) -> Former:
    """The ways in of UDP service ports, and the relay ports that they led to: endpoints without
    an address, since these may be at any of this node's."""
    nat = rules.tables.get(Table.NAT, {})
    vips, node_ports, ports = set(), set(), set()
    for row in _rows(nat, chains.PORTALS_CONTAINER, chains.PORTALS_HOST):
        if found := _VIP(row):
            vips.add((found[1], int(found[2])))
            ports.add(int(found[3]))
    for row in _rows(nat, chains.NODEPORT_CONTAINER, chains.NODEPORT_HOST):
        if found := _NODE_PORT(row):
            node_ports.add(int(found[1]))
            ports.add(int(found[2]))
    return Former(
        vips=frozenset(vips),
        node_ports=frozenset(node_ports),
        endpoints=frozenset([("", port) for port in ports]),
    )


def _rows(nat: Mapping[str, str], *names: str) -> Iterator[str]:
    for name in names:
        yield from nat.get(name, "").splitlines()
