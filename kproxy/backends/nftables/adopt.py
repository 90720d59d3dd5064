"""What a new process finds: endpoints stay in the slots that they have in the kernel. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from kproxy.backends.nftables import elements
from kproxy.backends.nftables.elements import KINDS
from kproxy.backends.nftables.held import Held, Members
from kproxy.backends.nftables.plan import Block, block, leads
from kproxy.backends.nftables.render import Desired
from kproxy.backends.nftables.rules import Pick
from kproxy.backends.nftables.seats import Past, Place, Seats
from kproxy.core.objects import Family, PortName

#: Maps whose keys have slots in them.
_SLOTTED = tuple(name for name in KINDS if name.endswith(("endpoints", "ids", "known")))


def adopted(desired: Desired, held: Held) -> Desired:
    """The same plan, its endpoints in the slots that ``held`` has them in."""
    if not held.table or held.believed is desired:
        return desired
    there = held.elements
    moved = [name for name, one in desired.blocks.items() if not _stands(one, there)]
    if not moved:
        return desired
    found, snapshot = _Found(there, desired.frame.family), desired.snapshot
    fresh: dict[PortName, Block] = {}
    for name in moved:
        plan = snapshot.ports[name]
        seats: Seats = {
            use: found.places(pick, key)
            for use, (pick, key) in leads(plan, snapshot.settings, desired.choice).items()
        }
        fresh[name] = block(plan, snapshot.settings, desired.choice, Past(seats))
    return desired.with_blocks(fresh)


def _stands(one: Block, there: Members) -> bool:
    return all(there[name].issuperset(one.own.get(name, ())) for name in _SLOTTED)


class _Found:
    """The elements of maps by their keys, made for those that are asked for."""

    def __init__(self, there: Members, family: Family) -> None:
        self._there, self._family = there, family
        self._maps: dict[str, Mapping[bytes, bytes]] = {}

    def places(self, pick: Pick, key: bytes) -> tuple[Place, ...]:
        """By slot, as far as there are slots; b"" where somebody took the endpoint away."""
        slots = self._map(f"{pick.prefix}ids" if pick.stay else pick.places)
        found: list[bytes] = []
        while (data := slots.get(key + elements.number(len(found)))) is not None:
            found.append(data)
        if not pick.stay:
            return tuple(found)
        known = self._map(pick.places)
        return tuple([known.get(key + number, b"") for number in found])

    def _map(self, name: str) -> Mapping[bytes, bytes]:
        if name not in self._maps:
            made = elements.taken_apart(KINDS[name], self._there[name], self._family)
            self._maps[name] = made
        return self._maps[name]
