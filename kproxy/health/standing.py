"""How the endpoints of service ports with checks stand, for the status file and those who read it.

As many entries as there are such service ports; of endpoints only those that are not plainly up.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from kproxy.core.health.values import FULL_WEIGHT
from kproxy.core.health.verdict import Cause, Judged, PortHealth
from kproxy.core.objects import Family, PortName, Value
from kproxy.core.snapshot import Snapshot


class State(StrEnum):
    """What an endpoint is that is not plainly up."""

    DOWN = "down"
    EJECTED = "ejected"
    #: Up, and on its way to its full share.
    STARTING = "starting"


class EndpointStanding(Value, frozen=True):
    """``address`` has the port with it. ``since`` is in seconds since the epoch, 0.0 unknown;
    ``weight`` of 100."""

    address: str
    state: State
    reason: str = ""
    since: float = 0.0
    weight: int = FULL_WEIGHT


class PortStanding(Value, frozen=True):
    """Of ``of`` endpoints that the cluster calls usable ``up`` are up. ``panic``: all of them are
    used all the same. ``endpoints`` are those of which there is more to say."""

    name: str
    protocol: str
    family: int
    up: int
    of: int
    panic: bool = False
    endpoints: tuple[EndpointStanding, ...] = ()


class Standings:
    """Makes them, and keeps those of verdicts that have not changed."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Family, PortName], tuple[PortHealth, PortStanding]] = {}

    def of(self, plans: Iterable[Snapshot]) -> tuple[PortStanding, ...]:
        """Of the plans in force, one of each family; sorted."""
        kept = {}
        for plan in plans:
            for name, health in plan.health.items():
                known = self._kept.get((plan.family, name))
                if known is None or known[0] is not health:
                    known = health, standing(name, plan.family, health)
                kept[plan.family, name] = known
        self._kept = kept
        return tuple([kept[key][1] for key in sorted(kept, key=lambda key: (key[1], key[0]))])


def standing(name: PortName, family: Family, health: PortHealth) -> PortStanding:
    """Of one service port."""
    return PortStanding(
        name=str(name),
        protocol=name.protocol.value,
        family=int(family),
        up=sum(each.up for each in health.judged),
        of=len(health.judged),
        panic=health.panic and bool(health.judged),
        endpoints=tuple(
            [
                EndpointStanding(
                    str(each.endpoint), state, each.reason, each.at, each.weight if each.up else 0
                )
                for each in health.judged
                if (state := state_of(each)) is not None
            ]
        ),
    )


def state_of(judged: Judged) -> State | None:
    """None: plainly up."""
    if not judged.up:
        return State.EJECTED if judged.cause is Cause.PASSIVE else State.DOWN
    return State.STARTING if judged.weight < FULL_WEIGHT else None
