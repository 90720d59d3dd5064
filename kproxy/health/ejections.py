"""Passive detection of all service ports that want it: findings of the data path in, ejections out.

Told the time (seconds since the epoch); :mod:`kproxy.core.health.outlier` decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kproxy.backends.base import Finding, Outcome
from kproxy.core.health.outlier import Found, Outliers
from kproxy.core.health.values import Ejected, Place
from kproxy.core.health.verdict import Cause, Judged, PortHealth
from kproxy.core.objects import family_of
from kproxy.health.roster import Owner

#: What failed, in the words of events.
_REASONS = {
    Outcome.REFUSED: "connection refused",
    Outcome.TIMEOUT: "no answer",
    Outcome.UNREACHABLE: "unreachable",
    Outcome.RESET: "connection reset before any answer",
    Outcome.OK: "",
}


class Ejections:
    """The machines of :mod:`kproxy.core.health.outlier`, one for each service port and family."""

    def __init__(self) -> None:
        self._machines: dict[Owner, Outliers] = {}
        #: Those of them that have somebody out: few of thousands.
        self._busy: dict[Owner, None] = {}
        #: Who is out, as that was told.
        self._out: dict[Owner, dict[Place, Ejected]] = {}
        #: Whom we have let in while the plan in force has them out yet.
        self._let_in: dict[Owner, set[Place]] = {}

    def __bool__(self) -> bool:
        """Whether any service port wants passive detection."""
        return bool(self._machines)

    def follow(self, owner: Owner, health: PortHealth | None, now: float) -> list[Ejected]:
        """The verdict on a service port as it is now."""
        passive = health.policy.passive if health is not None else None
        if health is None or passive is None:
            for gone in (self._machines, self._busy, self._out, self._let_in):
                gone.pop(owner, None)
            return []
        machine = self._machines.get(owner)
        if machine is None or machine.passive != passive:
            machine = self._machines[owner] = Outliers(owner[1], passive)
        down = {_place(each): each.cause for each in health.judged if not each.up}
        out = {place for place, cause in down.items() if cause is Cause.PASSIVE}
        places = [_place(each) for each in health.judged]
        told = machine.stand(places, now, down.keys() - out)
        kept = self._out.get(owner, {})
        for place in kept.keys() - set(places):
            del kept[place]
        self._let_in.get(owner, set()).intersection_update(out)
        self._note(owner, told)
        # A predecessor's, or those of a machine with other settings.
        machine.adopt(out - self._let_in.get(owner, set()), now)
        self._mark(owner)
        return told

    def believe(self, ejected: Iterable[Ejected]) -> None:
        """Before the first plan: who was out already."""
        for each in ejected:
            self._note((family_of(each.ip), each.name), [each])

    @property
    def known(self) -> Iterator[Ejected]:
        """Who is out, for a successor."""
        for owner, out in self._out.items():
            if owner in self._machines:
                yield from out.values()

    def _note(self, owner: Owner, told: list[Ejected]) -> list[Ejected]:
        out, let_in = self._out.setdefault(owner, {}), self._let_in.setdefault(owner, set())
        for each in told:
            place = each.ip, each.port
            if each.out:
                out[place] = each
                let_in.discard(place)
            else:
                out.pop(place, None)
                let_in.add(place)
        if told:
            self._mark(owner)
        return told

    def _mark(self, owner: Owner) -> None:
        machine = self._machines.get(owner)
        if machine is not None and machine.out:
            self._busy[owner] = None
        else:
            self._busy.pop(owner, None)

    def heard(self, findings: Iterable[Finding], now: float) -> list[Ejected]:
        """What the data path found, in its order."""
        found: dict[Owner, list[Found]] = {}
        for each in findings:
            owner = family_of(each.ip), each.name
            if owner in self._machines:
                good = each.outcome is Outcome.OK
                entry = Found((each.ip, each.port), good, _REASONS[each.outcome])
                found.setdefault(owner, []).append(entry)
        return [
            ejected
            for owner, entries in found.items()
            for ejected in self._note(owner, self._machines[owner].found(entries, now))
        ]

    def passed(self, owner: Owner, place: Place, now: float) -> list[Ejected]:
        """The active check of an endpoint has succeeded."""
        machine = self._machines.get(owner)
        return self._note(owner, machine.passed(place, now)) if machine is not None else []

    def tick(self, now: float) -> list[Ejected]:
        """Let in whose time is over."""
        return [
            ejected
            for owner in list(self._busy)
            for ejected in self._note(owner, self._machines[owner].tick(now))
        ]

    @property
    def due(self) -> float | None:
        """When to call :meth:`tick` next; None: nobody is out."""
        times = (self._machines[owner].due for owner in self._busy)
        return min((time for time in times if time is not None), default=None)


def _place(judged: Judged) -> Place:
    return judged.endpoint.ip, judged.endpoint.port
