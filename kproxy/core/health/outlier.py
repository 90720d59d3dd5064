"""Passive detection: an endpoint on which real connections fail is left out for a while. Pure.

One :class:`Outliers` for each service port that has it. It is told what the data path found and
what time it is, and answers with :class:`~kproxy.core.health.values.Ejected`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from kproxy.core.health.values import Ejected, Passive, Place
from kproxy.core.objects import PortName


class Found(NamedTuple):
    """One connection attempt: where to, whether it was ``good``, and what was wrong."""

    place: Place
    good: bool
    reason: str = ""


class Outliers:
    """The endpoints of one service port."""

    def __init__(self, name: PortName, passive: Passive) -> None:
        self.name = name
        self.passive = passive
        self._places: frozenset[Place] = frozenset()
        self._down: frozenset[Place] = frozenset()
        self._failures: dict[Place, int] = {}
        self._out: dict[Place, _Sentence] = {}
        #: Those let in again, with what they have served: a relapse soon after makes the next
        #: sentence longer.
        self._served: dict[Place, _Sentence] = {}

    def stand(
        self, places: Collection[Place], now: float, down: Collection[Place] = ()
    ) -> list[Ejected]:
        """``places`` are the endpoints that the API lets serve, ``down`` those of them that the
        active check has put out.

        What is not among ``places`` is forgotten. When fewer are left, some may have to be let in.
        """
        self._places, self._down = frozenset(places), frozenset(down)
        for kept in (self._failures, self._out, self._served):
            _keep_only(kept, self._places)
        told = []
        while self._out and self._is_too_much():
            first = min(self._out, key=lambda place: (self._out[place].until, place))
            told.append(self._let_in(first, "too few others are left", now))
        return told

    def adopt(self, places: Iterable[Place], now: float) -> None:
        """These (of those that stand) are out already: by a predecessor, or other settings."""
        for place in places:
            if place in self._places and place not in self._out:
                self._out[place] = _Sentence(1, self.passive.base, now + self.passive.base)

    def found(self, findings: Iterable[Found], now: float) -> list[Ejected]:
        """Take in what the data path found, in its order.

        An endpoint that has failed too often and must stay, for the cap, is looked at again by its
        next failure. What comes in about one that is out already says nothing new.
        """
        told = []
        for place, good, reason in findings:
            if place not in self._places or place in self._out:
                continue
            if good:
                self._failures.pop(place, None)
                continue
            failures = self._failures[place] = self._failures.get(place, 0) + 1
            if failures >= self.passive.failures and self._may_go(place):
                told.append(self._put_out(place, failures, reason, now))
        return told

    def passed(self, place: Place, now: float) -> list[Ejected]:
        """The active check of an endpoint succeeded: if it is out, it is let in."""
        return [self._let_in(place, "its check succeeds", now)] if place in self._out else []

    def tick(self, now: float) -> list[Ejected]:
        """Let those in whose time is over."""
        over = [place for place, sentence in self._out.items() if sentence.until <= now]
        return [self._let_in(place, "its time is over", now) for place in sorted(over)]

    @property
    def due(self) -> float | None:
        """When to call :meth:`tick` next; None: nobody is out."""
        return min((sentence.until for sentence in self._out.values()), default=None)

    @property
    def out(self) -> Collection[Place]:
        """Who is out now."""
        return self._out.keys()

    def _may_go(self, place: Place) -> bool:
        """The cap allows one more, and somebody else is left. One that the check has put out stays
        out by that."""
        if place in self._down or len(self._out) >= self._cap():
            return False
        return any(
            other != place and other not in self._out and other not in self._down
            for other in self._places
        )

    def _is_too_much(self) -> bool:
        return len(self._out) > self._cap() or not (self._places - self._down - self._out.keys())

    def _cap(self) -> int:
        """How many may be out. One may be wherever there are two: a small share of few endpoints
        would otherwise be none, and the detection without any effect."""
        count = len(self._places)
        # 0.29 * 100 is 28.999… to a machine.
        return min(max(1, int(self.passive.share * count + 1e-9)), max(0, count - 1))

    def _put_out(self, place: Place, failures: int, reason: str, now: float) -> Ejected:
        before = self._served.pop(place, None)
        # In a row: when it was in for less time than it had been out before.
        relapse = before is not None and now - before.until < before.seconds
        times = before.times + 1 if before is not None and relapse else 1
        seconds = min(self.passive.base * times, self.passive.most)
        self._out[place] = _Sentence(times, seconds, now + seconds)
        del self._failures[place]
        what = f"{failures} failures in a row, the last: {reason or 'no connection'}"
        return Ejected(self.name, *place, True, f"{what}; out for {seconds:g} s", now)

    def _let_in(self, place: Place, reason: str, now: float) -> Ejected:
        sentence = self._out.pop(place)
        self._served[place] = sentence._replace(until=now)
        return Ejected(self.name, *place, False, reason, now)


class _Sentence(NamedTuple):
    """``times`` in a row, ``seconds`` long; ``until``: its end, the planned or the real one."""

    times: int
    seconds: float
    until: float


def _keep_only(kept: dict[Place, int] | dict[Place, _Sentence], places: Collection[Place]) -> None:
    for place in [place for place in kept if place not in places]:
        del kept[place]
