"""Walks a new connection's first packet through typed rules, over every chance."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kproxy.backends.iptables import chains
from kproxy.backends.xtables.rules import Accept, Dnat, Drop, Jump, Reject, Return, Rule, Table


class Packet(NamedTuple):
    source: str
    destination: str
    port: int
    protocol: str = "tcp"
    interface: str = "eth0"


class Outcome(NamedTuple):
    """``ends``: endpoint -> masqueraded, for every endpoint that chance may choose. ``verdict``
    REJECT, DROP or ACCEPT (nothing of ours kept it)."""

    ends: dict[str, bool]
    verdict: str


class Walker:
    """``local`` are the node's own addresses."""

    def __init__(self, rules: Iterable[Rule], local: Iterable[str]) -> None:
        self.chains: dict[tuple[Table, str], list[Rule]] = {}
        for rule in rules:
            self.chains.setdefault((rule.table, rule.chain), []).append(rule)
        self.local = frozenset(local)

    def outcome(
        self, packet: Packet, hook: str = "PREROUTING", routes: tuple[str, ...] = ("FORWARD",)
    ) -> Outcome:
        """Through nat at ``hook``, and untranslated through filter at each of ``routes``."""
        ends = dict(self._nat(hook, packet, marked=False))
        if ends:
            return Outcome({end: marked for end, marked in ends.items() if end}, "ACCEPT")
        verdicts = (self._filter(route, packet) for route in routes)
        kept = (verdict for verdict in verdicts if verdict not in ("", "ACCEPT"))
        return Outcome({}, next(kept, "ACCEPT"))

    def _nat(self, chain: str, packet: Packet, *, marked: bool) -> Iterator[tuple[str, bool]]:
        """(endpoint, masqueraded) of each leaf; a chain that is left without one gives nothing."""
        for rule in self.chains.get((Table.NAT, chain), ()):
            if not self._matches(rule, packet):
                continue
            if isinstance(rule.target, Dnat):
                yield rule.target.to, marked
                return
            if rule.target == Jump(chains.MARK_MASQ):
                marked = True
            elif isinstance(rule.target, Jump):
                below = list(self._nat(rule.target.chain, packet, marked=marked))
                yield from below
                if below and not rule.probability:
                    return

    def _filter(self, chain: str, packet: Packet) -> str:
        for rule in self.chains.get((Table.FILTER, chain), ()):
            if not self._matches(rule, packet):
                continue
            if isinstance(rule.target, Jump):
                verdict = self._filter(rule.target.chain, packet)
                if verdict:
                    return verdict
            elif isinstance(rule.target, Reject | Drop | Accept):
                return type(rule.target).__name__.upper()
            elif isinstance(rule.target, Return):
                return ""
        return ""

    def _matches(self, rule: Rule, packet: Packet) -> bool:
        """The packet is new, carries no mark, and is on no list of recent clients."""
        if rule.recent is not None and rule.recent.seconds is not None:
            return False
        prefix = rule.in_interface.removesuffix("+")
        tests = (
            ("source", bool(rule.source), lambda: _within(packet.source, rule.source)),
            (
                "destination",
                bool(rule.destination),
                lambda: _within(packet.destination, rule.destination),
            ),
            ("in_interface", bool(prefix), lambda: packet.interface.startswith(prefix)),
            ("mark", rule.mark is not None, lambda: False),
            ("ctstate", bool(rule.ctstate), lambda: "NEW" in rule.ctstate),
            ("protocol", bool(rule.protocol), lambda: packet.protocol == rule.protocol),
            ("dport", bool(rule.dport), lambda: packet.port == rule.dport),
            ("source_local", rule.source_local, lambda: packet.source in self.local),
            ("destination_local", rule.destination_local, lambda: packet.destination in self.local),
        )
        return all(test() != (name in rule.negated) for name, given, test in tests if given)


def _within(address: str, cidr: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(cidr)
