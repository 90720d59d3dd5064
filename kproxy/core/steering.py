"""Where packets are led to a device by policy, as values: what :mod:`kproxy.kernel.steering` brings
about, part by part. Pure.
"""

from __future__ import annotations

from enum import StrEnum

from kproxy.core.objects import Family, Value

#: The bit of packets that are led to fastpath's engine. Another mode that refuses what it has not
#: translated leaves these alone: while a node is switched, rules of both stand.
TO_ENGINE = 0x10000


class Plan(Value, frozen=True):
    """Where things are put. ``mark`` is the bit of packets that are led to ``device``; ``address``
    is a device's own ("" for none); ``marked`` and ``local`` are preferences of rules."""

    family: Family
    device: str
    mark: int
    table: int
    marked: int
    local: int
    address: str = ""
    queue_length: int = 1000


class Part(StrEnum):
    """In the order in which they are made."""

    UP = "device up"
    ADDRESS = "address of the device"
    NOWHERE = "route to nowhere"
    ROUTE = "route to the device"
    LATER = "later rule for local"
    MARKED = "rule for marked packets"
    NOT_FIRST = "no first rule for local"


def wanted(plan: Plan) -> frozenset[Part]:
    """All parts that a plan has."""
    return frozenset(Part) - (frozenset() if plan.address else {Part.ADDRESS})
