"""All that is known of endpoints' health: opinions by target, ejections and weights by endpoint.

The Book belongs to the node's proxy. It hears observations at the start of a sync, and nothing
changes in it otherwise but what the planners enter: which service port looks at which endpoints.
Every planner touches its own family's part only, so the two may plan side by side.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from kproxy.core.health.ramp import LEAST_WEIGHT
from kproxy.core.health.values import (
    FULL_WEIGHT,
    Check,
    Checked,
    Ejected,
    Observation,
    Opinion,
    Place,
    Policy,
    Ramped,
    Target,
    portless,
)
from kproxy.core.objects import Family, ObjectKey, PortName, family_of


class Book:
    """Observations of one subject (a target, an endpoint of a port) may come in any order: the
    latest by ``at`` counts. What nobody registered is not kept."""

    def __init__(self) -> None:
        self._parts = {family: _Part() for family in Family}

    def hear(self, observations: Iterable[Observation]) -> set[ObjectKey]:
        """Take observations in; returns the services to plan again.

        In a port with slow start an endpoint that comes up again starts at the least weight.
        """
        touched: set[PortName] = set()
        for observation in observations:
            match observation:
                case Checked(target=target):
                    touched.update(self._parts[family_of(target.ip)].checked(observation))
                case Ejected(ip=ip):
                    touched.update(self._parts[family_of(ip)].ejected(observation))
                case Ramped(ip=ip):
                    touched.update(self._parts[family_of(ip)].ramped(observation))
        return {name.service for name in touched}

    def restore(self, observations: Iterable[Observation]) -> None:
        """Before the first plan: what a predecessor knew. What the first plans do not name goes."""
        for observation in observations:
            match observation:
                case Checked(target=target, up=up, reason=reason, at=at):
                    part = self._parts[family_of(target.ip)]
                    found = part.opinions.setdefault(target.check, {})
                    found[target.ip, target.port] = Opinion(up, reason, at)
                case Ejected(name=name, ip=ip, port=port, out=out, reason=reason, at=at):
                    out_of = self._parts[family_of(ip)].ejections.setdefault(name, {})
                    out_of[ip, port] = Opinion(not out, reason, at)

    def known(self) -> tuple[Observation, ...]:
        """What a successor should know (for :meth:`restore`): checks' states, who is ejected."""
        return tuple([each for part in self._parts.values() for each in part.known()])

    def register(
        self, family: Family, name: PortName, policy: Policy, places: Collection[Place]
    ) -> None:
        """From now on the service port looks at these endpoints, under ``policy``.

        Replaces what was registered for it; opinions that nobody looks at any more are forgotten.
        With slow start an endpoint that a known port gets starts at the least weight.
        """
        self._parts[family].register(name, _watch(policy, places))

    def forget(self, family: Family, name: PortName) -> None:
        """The service port is gone, or has no policy any more."""
        self._parts[family].register(name, None)

    def settle(self, family: Family, names: Collection[PortName]) -> None:
        """Only these service ports are left: all else of that family is forgotten."""
        self._parts[family].settle(names)

    def opinions(self, family: Family, check: Check) -> Mapping[Place, Opinion]:
        """What the check says, by target. ``check`` is as in Target: without a port."""
        return self._parts[family].opinions.get(check, _NOTHING)

    def ejections(self, family: Family, name: PortName) -> Mapping[Place, Opinion]:
        """What passive detection says of endpoints of a service port; up: let in again."""
        return self._parts[family].ejections.get(name, _NOTHING)

    def weights(self, family: Family, name: PortName) -> Mapping[Place, int]:
        """Weights of endpoints that start slowly; the others have the full one."""
        found = self._parts[family].weights.get(name)
        return {place: each.weight for place, each in found.items()} if found else {}


_NOTHING: Mapping[Place, Opinion] = {}


class _Watch(NamedTuple):
    """What a service port looks at: its endpoints, by a check (as in Target) of ``port``, 0 their
    own."""

    places: frozenset[Place]
    check: Check | None
    port: int
    passive: bool
    slow: bool

    def targets(self) -> set[Place]:
        """What its check speaks to."""
        if self.check is None:
            return set()
        return {(ip, self.port) for ip, _ in self.places} if self.port else set(self.places)

    def at(self, target: Place) -> Iterable[Place]:
        """The endpoints that stand or fall with a target."""
        if not self.port:
            return (target,)
        return [place for place in self.places if place[0] == target[0]]


_NOBODY = _Watch(frozenset(), None, 0, passive=False, slow=False)


def _watch(policy: Policy, places: Collection[Place]) -> _Watch:
    check = policy.check
    return _Watch(
        frozenset(places),
        portless(check) if check is not None else None,
        check.probe.port if check is not None else 0,
        passive=policy.passive is not None,
        slow=policy.slow_start > 0,
    )


class _Weight(NamedTuple):
    """``at`` 0.0: since the endpoint is known."""

    weight: int
    at: float = 0.0


class _Part:
    """One family. ``watchers`` are the ports that look at a target."""

    def __init__(self) -> None:
        self.watches: dict[PortName, _Watch] = {}
        self.watchers: dict[Check, dict[Place, set[PortName]]] = {}
        self.opinions: dict[Check, dict[Place, Opinion]] = {}
        self.ejections: dict[PortName, dict[Place, Opinion]] = {}
        self.weights: dict[PortName, dict[Place, _Weight]] = {}

    def checked(self, told: Checked) -> Collection[PortName]:
        """The service ports for which something is different now; so below."""
        check, place = told.target.check, (told.target.ip, told.target.port)
        names = self.watchers.get(check, {}).get(place)
        if not names:
            return ()
        known = self.opinions.setdefault(check, {})
        before, new = known.get(place), Opinion(told.up, told.reason, told.at)
        if not _is_newer(before, new):
            return ()
        known[place] = new
        if new.up and not (before.up if before is not None else check.pace.initial):
            for name in names:
                self._came_up(name, self.watches[name].at(place), told.at)
        return names

    def ejected(self, told: Ejected) -> Collection[PortName]:
        name, place = told.name, (told.ip, told.port)
        watch = self.watches.get(name, _NOBODY)
        if not watch.passive or place not in watch.places:
            return ()
        known = self.ejections.setdefault(name, {})
        before, new = known.get(place), Opinion(not told.out, told.reason, told.at)
        if not _is_newer(before, new):
            return ()
        known[place] = new
        if new.up and before is not None and not before.up:
            self._came_up(name, (place,), told.at)
        return (name,)

    def ramped(self, told: Ramped) -> Collection[PortName]:
        place = told.ip, told.port
        if place not in self.watches.get(told.name, _NOBODY).places:
            return ()
        return (told.name,) if self._weigh(told.name, place, told.weight, told.at) else ()

    def register(self, name: PortName, watch: _Watch | None) -> None:
        before = self.watches.get(name)
        if watch == before:
            return
        self._look(name, before or _NOBODY, watch or _NOBODY)
        if watch is None:
            for gone in (self.watches, self.ejections, self.weights):
                gone.pop(name, None)
            return
        self.watches[name] = watch
        _keep_only(self.ejections, name, watch.places if watch.passive else ())
        _keep_only(self.weights, name, watch.places if watch.slow else ())
        # Not for a port that is new itself: its endpoints have served before this process came.
        for place in watch.places - before.places if before is not None else ():
            self._weigh(name, place, LEAST_WEIGHT, 0.0)

    def settle(self, names: Collection[PortName]) -> None:
        for name in [name for name in self.watches if name not in names]:
            self.register(name, None)
        for name in [name for name in self.ejections if name not in self.watches]:
            del self.ejections[name]
        for check in list(self.opinions):
            watched = self.watchers.get(check, {})
            kept = {place: one for place, one in self.opinions[check].items() if place in watched}
            if kept:
                self.opinions[check] = kept
            else:
                del self.opinions[check]

    def known(self) -> Iterator[Observation]:
        for check, opinions in self.opinions.items():
            for (ip, port), one in opinions.items():
                yield Checked(Target(check, ip, port), one.up, one.reason, one.at)
        for name, ejections in self.ejections.items():
            for (ip, port), one in ejections.items():
                if not one.up:
                    yield Ejected(name, ip, port, True, one.reason, one.at)

    def _look(self, name: PortName, before: _Watch, now: _Watch) -> None:
        """Enter whom the port's check looks at, and drop what nobody looks at any more."""
        old, new = before.targets(), now.targets()
        same = before.check == now.check
        if now.check is not None:
            for place in new - old if same else new:
                self.watchers.setdefault(now.check, {}).setdefault(place, set()).add(name)
        if before.check is None:
            return
        watchers = self.watchers.get(before.check, {})
        for place in old - new if same else old:
            watchers[place].discard(name)
            if not watchers[place]:
                del watchers[place]
                self.opinions.get(before.check, {}).pop(place, None)
        if not watchers:
            # A port without endpoints has a check and nothing to look at.
            self.watchers.pop(before.check, None)
            self.opinions.pop(before.check, None)

    def _came_up(self, name: PortName, places: Iterable[Place], at: float) -> None:
        for place in places:
            self._weigh(name, place, LEAST_WEIGHT, at)

    def _weigh(self, name: PortName, place: Place, weight: int, at: float) -> bool:
        """Whether that is news: the port starts its endpoints slowly, and knew nothing later."""
        if not self.watches[name].slow:
            return False
        known = self.weights.setdefault(name, {})
        new = _Weight(weight, at)
        before = known.get(place, _Weight(FULL_WEIGHT))
        # Of two at the same moment the smaller one: coming up ends an older ramp.
        if before.at > at or (before.at == at and before.weight <= weight):
            return False
        known[place] = new
        return before.weight != weight


def _keep_only(
    kept: dict[PortName, dict[Place, Opinion]] | dict[PortName, dict[Place, _Weight]],
    name: PortName,
    places: Collection[Place],
) -> None:
    """Drop what is kept of other endpoints of the port."""
    found = kept.get(name)
    if found is None:
        return
    for place in [place for place in found if place not in places]:
        del found[place]
    if not found:
        del kept[name]


def _is_newer(before: Opinion | None, new: Opinion) -> bool:
    """Later; of two at the same moment the one that is down, then by text: any order will do."""
    if before is None:
        return True
    if before.at != new.at:
        return before.at < new.at
    return (new.up, new.reason) < (before.up, before.reason)
