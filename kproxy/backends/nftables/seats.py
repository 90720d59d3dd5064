"""Which endpoint has which slot: it stays there while others come and go. Pure.

A slot is an element of a map, so an order that follows the endpoints would write all of them anew
when the first one is replaced. What decides instead is which slots they had: a value
(:class:`Past`), handed from one plan to the next and read from the kernel by a new process. Packets
choose slots by chance, so the order means nothing to them. Where the client decides, all nodes have
to choose alike, whatever each of them went through: there the order of the plan holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd

from kproxy.backends.nftables import elements
from kproxy.core.objects import Value
from kproxy.core.policy import Use
from kproxy.core.snapshot import Endpoint, EndpointSets, PortPlan

#: An endpoint's address and port, packed.
Place = bytes
#: Places by slot.
Slots = tuple[Place, ...]
#: Of those sets that are not in the order of the plan.
Seats = Mapping[Use, Slots]


def in_order(sets: EndpointSets, use: Use) -> Slots:
    """The endpoints of a set in the order of the plan, each as often as its weight says."""
    endpoints: Sequence[Endpoint] = (sets.cluster if use is Use.CLUSTER else sets.local) or ()
    places = [elements.address(one.ip) + elements.port(one.port) for one in endpoints]
    weights = {one.weight: _rounded(one.weight) for one in endpoints}
    if len(weights) < 2:
        return tuple(places)
    unit = gcd(*weights.values())
    return tuple([
        place
        for place, one in zip(places, endpoints, strict=True)
        for _ in range(weights[one.weight] // unit)
    ])  # fmt: skip


def _rounded(weight: int) -> int:
    """To a multiple of five: no endpoint then has more than twenty slots. A weight of 33 among ones
    of 100 would cost a hundred for each."""
    return max(5, 5 * round(weight / 5))


class Past(Value, frozen=True):
    """The slots that a service port's endpoints had: what ``seats`` says, else the order of
    ``plan``."""

    seats: Seats
    plan: PortPlan | None = None

    def of(self, use: Use) -> Slots:
        found = self.seats.get(use)
        if found is not None or self.plan is None:
            return found or ()
        return in_order(self.plan.endpoints, use)


#: Of a service port that is new.
NO_PAST = Past({})


def seated(wanted: Slots, before: Slots) -> Slots:
    """``wanted`` in the slots of ``before`` as far as that goes. The others, those beyond the last
    slot among them, take the free ones."""
    if wanted == before or not before:
        return wanted
    if len(wanted) == len(before) and (swapped := _swapped(wanted, before)):
        return swapped
    waiting: dict[Place, int] = {}
    for place in wanted:
        waiting[place] = waiting.get(place, 0) + 1
    slots, free = [*before[: len(wanted)]], []
    for slot, place in enumerate(slots):
        if left := waiting.get(place, 0):
            waiting[place] = left - 1
        else:
            free.append(slot)
    free.extend(range(len(slots), len(wanted)))
    slots.extend([b""] * (len(wanted) - len(slots)))
    rest = [place for place, count in waiting.items() for _ in range(count)]
    for slot, place in zip(free, rest, strict=True):
        slots[slot] = place
    return tuple(slots)


def _swapped(wanted: Slots, before: Slots) -> Slots:
    """The same where some gave way to as many others, in a third of the time; () for anything
    else."""
    now, had = set(wanted), set(before)
    if len(now) != len(wanted) or len(had) != len(before):
        return ()
    come = iter([place for place in wanted if place not in had])
    return tuple([place if place in now else next(come) for place in before])
