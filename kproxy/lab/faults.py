"""What can go wrong with a pod on purpose, as values, and how a person writes it. Pure.

::

    kill            its process dies: everything open is reset, nothing listens any more
    hang            connections are taken by the kernel, nothing is answered
    refuse          nothing listens, and a restart of the process does not help
    flap=UP,DOWN    in turn it answers for UP seconds and refuses for DOWN seconds
    slow=MS         every answer comes that much later
    loss=PERCENT    packets get lost, both ways
    heal            all of it ends

Of the first four a pod has one at a time, a later one takes the place of an earlier one; ``slow``
and ``loss`` go together with any of them. A pod that is started again (by its livenessProbe) is
rid of ``kill`` and ``hang``: these are its process's, the others those of what is around it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import msgspec

from kproxy.core.objects import Value
from kproxy.errors import UsageError


class Kind(StrEnum):
    KILL = "kill"
    HANG = "hang"
    REFUSE = "refuse"
    FLAP = "flap"
    SLOW = "slow"
    LOSS = "loss"
    HEAL = "heal"


#: How each kind is written: for completion, and for who wrote it in another way.
FORMS: dict[Kind, str] = {
    Kind.KILL: "kill",
    Kind.HANG: "hang",
    Kind.REFUSE: "refuse",
    Kind.SLOW: "slow=MS",
    Kind.LOSS: "loss=PERCENT",
    Kind.FLAP: "flap=UP,DOWN",
    Kind.HEAL: "heal",
}

#: At most one of these at a time.
_ANSWERING = frozenset({Kind.KILL, Kind.HANG, Kind.REFUSE, Kind.FLAP})

#: Gone with the process that had it.
_OF_THE_PROCESS = frozenset({Kind.KILL, Kind.HANG})

_NUMBER = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([a-z%]*)")

#: Of each kind that has numbers: how many, and units with what they are in seconds (or as a share).
_UNITS: dict[Kind, tuple[int, dict[str, float]]] = {
    Kind.SLOW: (1, {"": 1e-3, "ms": 1e-3, "s": 1.0}),
    Kind.LOSS: (1, {"": 1e-2, "%": 1e-2}),
    Kind.FLAP: (2, {"": 1.0, "ms": 1e-3, "s": 1.0}),
}

#: Seconds: more than any time-out, so that nothing is learned by more.
_LONGEST = 3600.0

#: Seconds for one half of a flap: shorter ones keep one busy opening sockets.
_SHORTEST_HALF = 0.02


class Fault(Value, frozen=True):
    """``numbers``: seconds of ``slow``, the share of 1 that ``loss`` is, seconds up and down of
    ``flap``."""

    kind: Kind
    numbers: tuple[float, ...] = ()

    def __str__(self) -> str:
        match self.kind:
            case Kind.SLOW:
                return f"slow={self.numbers[0] * 1000:g}ms"
            case Kind.LOSS:
                return f"loss={self.numbers[0] * 100:g}%"
            case Kind.FLAP:
                return f"flap={self.numbers[0]:g},{self.numbers[1]:g}"
            case _:
                return self.kind.value


def parse(text: str) -> Fault:
    """A fault as a person writes it. UsageError with the way to write it."""
    word, equals, rest = text.partition("=")
    try:
        kind = Kind(word)
    except ValueError:
        forms = ", ".join(FORMS.values())
        raise UsageError(f"{text!r} is no fault", hint=f"faults: {forms}") from None
    count, units = _UNITS.get(kind, (0, {}))
    written = rest.split(",") if equals else []
    found = [_number(part.strip(), units) for part in written]
    numbers = tuple(number for number in found if number is not None)
    if len(numbers) != count or len(found) != count or not _sensible(kind, numbers):
        raise UsageError(f"{text!r} is no fault", hint=f"write {FORMS[kind]}{_HINTS.get(kind, '')}")
    return Fault(kind, numbers)


_HINTS = {
    Kind.SLOW: ", as slow=200",
    Kind.LOSS: ", as loss=10%",
    Kind.FLAP: ", in seconds of 0.02 and more, as flap=2,0.5",
}


def _number(text: str, units: dict[str, float]) -> float | None:
    match = _NUMBER.fullmatch(text)
    if match is None or match[2] not in units:
        return None
    return float(match[1]) * units[match[2]]


def _sensible(kind: Kind, numbers: tuple[float, ...]) -> bool:
    if kind is Kind.LOSS:
        return 0 < numbers[0] <= 1
    least = _SHORTEST_HALF if kind is Kind.FLAP else 0
    return all(least <= number <= _LONGEST and number > 0 for number in numbers)


def added(there: Iterable[Fault], more: Iterable[Fault]) -> tuple[Fault, ...]:
    """What a pod has that had ``there`` and gets ``more``, in this order."""
    faults = list(there)
    for fault in more:
        if fault.kind is Kind.HEAL:
            faults = []
            continue
        rivals = _ANSWERING if fault.kind in _ANSWERING else {fault.kind}
        faults = [*(other for other in faults if other.kind not in rivals), fault]
    return tuple(faults)


def after_restart(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    """What is left when the pod's process has been started again."""
    return tuple(fault for fault in faults if fault.kind not in _OF_THE_PROCESS)


def loss_of(faults: Iterable[Fault]) -> float:
    """The share of packets that get lost, 0 to 1."""
    return next((fault.numbers[0] for fault in faults if fault.kind is Kind.LOSS), 0.0)


class Affliction(Value, frozen=True):
    """What a responder has to do for it. ``closed``: nothing listens, everything open is reset.
    ``hung``: the kernel takes connections and datagrams, nobody answers. ``slow``: seconds until an
    answer leaves. ``flap``: seconds open and seconds closed, in turn, beginning open."""

    closed: bool = False
    hung: bool = False
    slow: float = 0.0
    flap: tuple[float, float] | None = None

    def but(self, **changes: Any) -> Affliction:
        """The same with some of it changed."""
        return msgspec.structs.replace(self, **changes)


HEALTHY = Affliction()


def affliction(faults: Iterable[Fault]) -> Affliction:
    """Everything but the loss, which is not the responder's affair."""
    found = HEALTHY
    for fault in faults:
        match fault.kind:
            case Kind.KILL | Kind.REFUSE:
                found = found.but(closed=True)
            case Kind.HANG:
                found = found.but(hung=True)
            case Kind.FLAP:
                found = found.but(flap=(fault.numbers[0], fault.numbers[1]))
            case Kind.SLOW:
                found = found.but(slow=fault.numbers[0])
    return found
