"""Survival: what clients notice while something is done to the proxy.

A node under an open loop of new connections (:data:`RATE` a second, whatever becomes of the earlier
ones) and :data:`HELD` connections that are asked every 20 ms. Then one thing happens
(:data:`EVENTS`). Four of them happen to a daemon on a path (:mod:`kproxy.bench.events`), a switch
of modes to the node of a lab (:mod:`kproxy.bench.modeswitch`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Self

from kproxy.bench.events import Node
from kproxy.bench.measures.base import Reading
from kproxy.bench.modeswitch import Stand
from kproxy.bench.ours import MODES
from kproxy.bench.results import Absent, Measure, Point, Unit
from kproxy.bench.rounds import Figure
from kproxy.bench.subjects import DIRECT, SUBJECTS, parted
from kproxy.bench.window import Seen

#: New connections a second, those that are held, and pods that are replaced.
RATE, HELD, ROLLED = 500.0, 20, 2

#: What happens, in this order: event -> title.
EVENTS: Mapping[str, str] = {
    "restart": "restart, as an upgrade does",
    "kill": "SIGKILL, a new process a second later",
    "wipe": "all rules deleted by somebody else",
    "rolling": "pods replaced one by one",
    "switch": "another mode takes over",
}

#: What is read of each: suffix -> (title, unit, better).
_READINGS: Mapping[str, tuple[str, Unit, str]] = {
    "failed": ("new connections that failed", "share", "lower"),
    "gap": ("longest time without an answer", "s", "lower"),
    "slowest": ("longest that an answered new connection took", "s", "lower"),
    "held": ("held connections that live on", "share", "higher"),
    "both": ("time in which the rules of both modes stand", "s", "lower"),
}

#: What is read of one event only, and why those that nothing happens to have none.
_OF_ONE: Mapping[str, str] = {"both": "switch"}
_NO_MODE = "it has no rules that others could stand beside"

#: What relays have besides modes, and why nothing else happens to them.
_RELAYS = ("haproxy", "nginx")
_OF_RELAYS: Mapping[str, str] = {
    "wipe": "it has no rules",
    "rolling": "its pods are in its configuration: it follows no service",
    "switch": "it has no other mode",
}
_NOTHING: Mapping[str, str] = {
    "direct again": "what happens to direct is the machine's own: nothing",
    "relay": "it is a relay without a daemon: nobody starts it again",
    "nft-dnat": "it is a rule without a daemon: nothing can be restarted, nobody repairs it",
    "ipvsadm": "it is a server without a daemon: nothing can be restarted, nobody repairs it",
}
_UNKNOWN = "how it is restarted is not known"
_ALONE = "there is no other mode to switch to"


def _measures(event: str) -> Iterator[Measure]:
    for name, (title, unit, better) in _READINGS.items():
        if _OF_ONE.get(name, event) != event:
            continue
        yield Measure(
            name=f"{event}-{name}",
            title=f"{EVENTS[event]}: {title}",
            unit=unit,
            better="higher" if better == "higher" else "lower",
            group="survival",
        )


#: All of them, in the order of tables.
MEASURES: Sequence[Measure] = [measure for event in EVENTS for measure in _measures(event)]


class Survival:
    """Modes of kproxy; relays that can be reloaded; and ``direct``, to which nothing happens: what
    is read of it is the machine's own, the same at all events.

    ``events`` of :data:`EVENTS` happen; in each round a mode is switched to the next one of the
    others. Points are ``Point("restart-failed")``, ``Point("restart-gap")``,
    ``Point("restart-slowest")``, ``Point("restart-held")`` and so on, ``Point("switch-both")``
    beside them; of a switch there are the same with the mode that it led to,
    ``Point("switch-gap", where="userspace")``. ``-failed`` and ``-held`` have attempts and
    failures; nothing is compared with a base.
    """

    name = "survival"
    base = ""

    def __init__(
        self,
        subjects: Sequence[str],
        *,
        events: Sequence[str] = tuple(EVENTS),
        rate: float = RATE,
        held: int = HELD,
        rolled: int = ROLLED,
    ) -> None:
        self._events = tuple(event for event in EVENTS if event in events)
        #: Mode -> how many switches it has had.
        self._switches: Counter[str] = Counter()
        self._rate, self._held, self._rolled = rate, held, rolled
        self.measures: Sequence[Measure] = [
            measure for event in self._events for measure in _measures(event)
        ]
        able, missing = parted(subjects)
        self._modes = [name for name in able if name in MODES]
        reasons = {
            (name, event): why
            for name in subjects
            for event in self._events
            if (why := missing.get(name) or self._reason(name, event))
        }
        self._happens = {
            name: events
            for name in able
            if (events := [each for each in self._events if (name, each) not in reasons])
        }
        self.subjects: Sequence[str] = tuple(self._happens)
        self.absent: Sequence[Absent] = [
            Absent(name, measure.name, why)
            for (name, event), why in reasons.items()
            for measure in _measures(event)
        ]
        if DIRECT in self._happens and "switch" in self._happens[DIRECT]:
            self.absent = [*self.absent, Absent(DIRECT, "switch-both", _NO_MODE)]
        self._stack = ExitStack()
        self._stand: Stand | None = None

    def _reason(self, name: str, event: str) -> str:
        """Why an event does not happen to a subject that is there; "": it does."""
        if name in MODES:
            return _ALONE if event == "switch" and len(self._modes) == 1 else ""
        if name in _RELAYS:
            return _OF_RELAYS.get(event, "")
        return "" if name == DIRECT else _NOTHING.get(name, _UNKNOWN)

    def __enter__(self) -> Self:
        if "switch" in self._events and len(self._modes) > 1:
            stand = Stand(self._modes[0], rate=self._rate, held=self._held)
            self._stand = self._stack.enter_context(stand)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stand = None
        self._stack.close()

    def turn(self, subject: str) -> Mapping[Point, Reading]:
        """All that happens to it, one after the other. CheckFailed: it does not serve afterwards;
        the reading of a gap would be as long as the load was."""
        happens = self._happens[subject]
        if subject == DIRECT:
            with self._node(subject) as node:
                seen = node.seen("nothing")
            return {
                point: reading
                for event in happens
                for point, reading in _readings(event, seen).items()
            }
        found: dict[Point, Reading] = {}
        if on_node := [event for event in happens if event != "switch"]:
            with self._node(subject) as node:
                for event in on_node:
                    found |= _readings(event, node.seen(event))
        if "switch" in happens:
            found |= self._switched(subject)
        return found

    def _node(self, subject: str) -> Node:
        made = SUBJECTS[subject]()
        return Node(made, rate=self._rate, held=self._held, rolled=self._rolled)

    def _switched(self, old: str) -> dict[Point, Reading]:
        assert self._stand is not None
        at = self._modes.index(old)
        others = [*self._modes[at + 1 :], *self._modes[:at]]
        new = others[self._switches[old] % len(others)]
        self._switches[old] += 1
        seen = self._stand.seen(old, new)
        return _readings("switch", seen) | _readings("switch", seen, where=new)


def _readings(event: str, seen: Seen, where: str = "") -> dict[Point, Reading]:
    started, failed = seen.started, seen.failed
    held = seen.held.connections
    lost = held - seen.held.survived
    figures = {
        "failed": Figure(failed / started if started else 1.0, started, failed),
        "gap": Figure(seen.gap),
        "slowest": Figure(seen.slowest),
        "held": Figure(1 - lost / held if held else 1.0, held, lost),
    }
    if seen.both is not None:
        figures["both"] = Figure(seen.both)
    return {
        Point(f"{event}-{name}", where=where): Reading(figure) for name, figure in figures.items()
    }
