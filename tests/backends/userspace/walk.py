"""Packets against the typed rules of service ports, in the order in which the kernel asks chains.

Within a chain all rules that a packet meets are looked at: the mode promises that their order says
nothing, so that they must agree.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from kproxy.backends.userspace import chains
from kproxy.backends.userspace.rules import Draft, Found, finished
from kproxy.backends.xtables.rules import Accept, Drop, Reject, Rule
from kproxy.core.policy import Use


class Packet(NamedTuple):
    """The first of a connection; ``here``: this node sends it. ``device``: where it came in."""

    source: str
    destination: str
    port: int
    protocol: str
    here: bool = False
    device: str = "eth0"


#: What becomes of a packet: the list whose front serves it, or a verdict.
REFUSED, DROPPED, LEFT_ALONE = "refused", "dropped", "left alone"
Outcome = Use | str

_VERDICTS = {Reject: REFUSED, Drop: DROPPED, Accept: LEFT_ALONE}


class DisagreementError(AssertionError):
    """Two rules of one chain treat a packet differently."""


def outcome(
    drafts: Iterable[Draft],
    packet: Packet,
    local: frozenset[str],
    missing: frozenset[Use] = frozenset(),
) -> Outcome:
    """``local`` are the node's addresses; all of 127.0.0.0/8 and ::1 are as well. ``missing`` are
    the fronts that could not be opened."""
    found = Found(tuple([(use, 1) for use in Use if use not in missing]))
    drafts = [draft for draft in drafts if finished(draft, found) is not None]
    here = packet.here
    to_node = is_local(packet.destination, local)
    nat = [chains.PORTALS_HOST if here else chains.PORTALS_CONTAINER, chains.PORTALS_UNSERVED]
    if to_node:
        nat.append(chains.NODEPORT_HOST if here else chains.NODEPORT_CONTAINER)
    for chain in nat:
        met = _in_chain(drafts, chain, packet, local)
        if met == LEFT_ALONE:
            break
        if met is not None:
            return met
    for chain in (chains.PORTALS_FILTER, *([chains.NODEPORT_FILTER] if to_node else [])):
        met = _in_chain(drafts, chain, packet, local)
        if met is not None:
            return met
    return LEFT_ALONE


def _in_chain(
    drafts: Iterable[Draft], chain: str, packet: Packet, local: frozenset[str]
) -> Outcome | None:
    met = {
        draft.front if draft.rule.target is None else _VERDICTS[type(draft.rule.target)]
        for draft in drafts
        if draft.rule.chain == chain and meets(draft.rule, packet, local)
    }
    if len(met) > 1:
        raise DisagreementError(f"{packet} meets {met} in {chain}")
    return next(iter(met), None)


def meets(rule: Rule, packet: Packet, local: frozenset[str]) -> bool:
    """Whether a packet meets all matches of a rule."""
    tests = {
        "source": not rule.source or _within(packet.source, rule.source),
        "original_source": not rule.original_source or _within(packet.source, rule.original_source),
        "destination": not rule.destination or _within(packet.destination, rule.destination),
        "source_local": not rule.source_local or is_local(packet.source, local),
        "in_interface": not rule.in_interface or _device(packet.device, rule.in_interface),
    }
    held = all(result != (name in rule.negated) for name, result in tests.items())
    return held and (rule.protocol, rule.dport) == (packet.protocol, packet.port)


def is_local(address: str, local: frozenset[str]) -> bool:
    return address in local or ip_address(address).is_loopback


def _within(address: str, cidr: str) -> bool:
    return ip_address(address) in ip_network(cidr)


def _device(name: str, wanted: str) -> bool:
    return name.startswith(wanted[:-1]) if wanted.endswith("+") else name == wanted
