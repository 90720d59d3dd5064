"""What the kernel holds of IPVS mode: servers, sets, addresses, rules, sysctls. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from kproxy.backends.ipvs import sets
from kproxy.backends.ipvs.plan import Virtual
from kproxy.backends.ipvs.render import Desired
from kproxy.backends.xtables import ruleset
from kproxy.backends.xtables.ruleset import RulesHeld
from kproxy.core import servers as forms
from kproxy.core.objects import Family
from kproxy.core.servers import HeldReal, HeldServer, Timeouts

Servers = Mapping[bytes, HeldServer]
Sets = Mapping[str, AbstractSet[bytes] | None]

#: The protocol number at the end of a server key.
TCP = 6

#: Bits of a client's address that persistence looks at.
FULL_PREFIX = {Family.IPV4: 32, Family.IPV6: 128}


class Held:
    """What is in force.

    ``servers`` are all of the family, others' too. ``sets``: name in the kernel -> members, None
    where there is no set of that name and kind. ``addresses`` on the dummy device, None when there
    is none. ``hosts``: the node's own addresses. ``sysctls`` None where the kernel has no such one.
    ``desired``: what is believed to be
    in force after a good apply; then the others are made of it when somebody looks.
    """

    __slots__ = (
        *("_addresses", "_rules", "_servers", "_sets"),
        *("desired", "hosts", "sysctls", "timeouts"),
    )

    def __init__(
        self,
        *,
        servers: Servers | None = None,
        sets: Sets | None = None,
        addresses: AbstractSet[str] | None = None,
        hosts: Collection[str] = (),
        rules: RulesHeld | None = None,
        sysctls: Mapping[str, str | None] | None = None,
        timeouts: Timeouts | None = None,
        desired: Desired | None = None,
    ) -> None:
        self._servers = servers
        self._sets = sets
        self._addresses = addresses
        self._rules = rules
        self.hosts = hosts
        self.sysctls = sysctls or {}
        self.timeouts = timeouts
        self.desired = desired

    @property
    def servers(self) -> Servers:
        if self._servers is None:
            self._servers = _servers(self.desired) if self.desired is not None else {}
        return self._servers

    @property
    def sets(self) -> Sets:
        if self._sets is None:
            self._sets = wanted_sets(self.desired) if self.desired is not None else {}
        return self._sets

    @property
    def addresses(self) -> AbstractSet[str] | None:
        return self._addresses if self.desired is None else self.desired.addresses.all

    @property
    def rules(self) -> RulesHeld:
        if self._rules is None:
            desired = self.desired
            self._rules = RulesHeld() if desired is None else ruleset.settled(desired.rules)
        return self._rules

    def __eq__(self, other: object) -> bool:
        """The same in force. How many connections there are, sysctls and foreign rules are looked
        at, but are not ours; real servers that drain are on their way out."""
        if not isinstance(other, Held):
            return NotImplemented
        return self._ours() == other._ours()

    __hash__ = None  # type: ignore[assignment]

    def _ours(self) -> tuple[Any, ...]:
        servers = {
            key: (
                server.scheduling,
                server.prefix,
                {
                    real: (held.weight, held.forwarding)
                    for real, held in server.reals.items()
                    if held.weight or key[-1] != TCP
                },
            )
            for key, server in self.servers.items()
        }
        sets = {name: members for name, members in self.sets.items() if members is not None}
        return servers, sets, self.addresses, self.rules.chains, self.rules.jumps

    def __repr__(self) -> str:
        members = sum(len(found) for found in self.sets.values() if found)
        return f"Held(servers={len(self.servers)}, members={members}, rules={self.rules})"


def settled(desired: Desired) -> Held:
    """What reading gives once ``desired`` is in force."""
    return Held(desired=desired)


def _servers(desired: Desired) -> dict[bytes, HeldServer]:
    prefix = FULL_PREFIX[desired.context.family]
    return {
        key: HeldServer(virtual.scheduling, prefix, _reals(virtual))
        for key, (virtual, _) in desired.servers.items()
    }


_USUAL = HeldReal(1, forms.MASQUERADE)


def _reals(virtual: Virtual) -> dict[bytes, HeldReal]:
    if not virtual.weights:
        return dict.fromkeys(virtual.reals, _USUAL)
    return {real: HeldReal(weight, forms.MASQUERADE) for real, weight in virtual.weighed}


def wanted_sets(desired: Desired) -> dict[str, AbstractSet[bytes]]:
    """Name in the kernel -> the members that it is to have, of every set."""
    family = desired.context.family
    found: dict[str, set[bytes]] = {name: set() for name in sets.names(family)}
    for name, member in desired.members.all:
        found[name].add(member)
    return {sets.in_family(name, family): members for name, members in found.items()}
