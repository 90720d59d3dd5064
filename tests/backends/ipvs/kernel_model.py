"""The plainest kernel that a Patch of IPVS mode can be carried out on: dictionaries and sets."""

from __future__ import annotations

from kproxy.backends.ipvs.diff import Patch
from kproxy.backends.ipvs.held import FULL_PREFIX, Held
from kproxy.backends.xtables import ruleset
from kproxy.backends.xtables.ruleset import RulesHeld
from kproxy.core.objects import Family
from kproxy.core.servers import HeldReal, HeldServer, Order, Scheduling, Verb


class Model:
    """``connections``: what real servers have, by (server key, real key)."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.servers: dict[bytes, tuple[Scheduling, dict[bytes, HeldReal]]] = {}
        self.sets: dict[str, set[bytes]] = {}
        self.addresses: set[str] | None = None
        self.rules = RulesHeld()
        self.sysctls: dict[str, str | None] = {}
        self.connections: dict[tuple[bytes, bytes], int] = {}

    def held(self) -> Held:
        prefix = FULL_PREFIX[self.family]
        return Held(
            servers={
                key: HeldServer(scheduling, prefix, dict(reals))
                for key, (scheduling, reals) in self.servers.items()
            },
            sets={name: set(members) for name, members in self.sets.items()},
            addresses=None if self.addresses is None else frozenset(self.addresses),
            rules=self.rules,
            sysctls=dict(self.sysctls),
        )

    def apply(self, patch: Patch) -> None:
        """Strictly: what is there is not added, what is not there is not edited or taken away."""
        for change in patch.sets:
            if change.make:
                assert change.name not in self.sets
                self.sets[change.name] = set()
            assert self.sets[change.name].isdisjoint(change.added)
            self.sets[change.name] |= change.added
        if patch.rules is not None:
            self.rules = ruleset.settled(patch.desired.rules)
        for order in patch.orders:
            self.carry_out(order)
        for server, real in patch.let_go:
            reals = self.servers[server][1]
            if self.connections.get((server, real)):
                reals[real] = HeldReal(0)
            else:
                del reals[real]
        self._move(patch)
        for order in patch.removals:
            self.carry_out(order)
        for change in patch.sets:
            assert self.sets[change.name] >= change.gone
            self.sets[change.name] -= change.gone
        self.sysctls.update(patch.sysctls)

    def _move(self, patch: Patch) -> None:
        if patch.device:
            assert self.addresses is None
            self.addresses = set()
        assert self.addresses is not None or not (patch.bound or patch.unbound)
        if self.addresses is not None:
            assert self.addresses.isdisjoint(patch.bound)
            assert self.addresses >= patch.unbound
            self.addresses = (self.addresses | patch.bound) - patch.unbound

    def carry_out(self, order: Order) -> None:
        verb, server, real, weight, scheduling = order
        if verb is Verb.ADD_SERVER:
            assert server not in self.servers
            self.servers[server] = scheduling, {}
        elif verb is Verb.SET_SERVER:
            self.servers[server] = scheduling, self.servers[server][1]
        elif verb is Verb.REMOVE_SERVER:
            del self.servers[server]
        else:
            reals = self.servers[server][1]
            if verb is Verb.ADD_REAL:
                # One that drains is there already: the backend edits it instead.
                assert real not in reals or not reals[real].weight
                reals[real] = HeldReal(weight)
            elif verb is Verb.SET_REAL:
                assert real in reals
                reals[real] = HeldReal(weight)
            else:
                del reals[real]
