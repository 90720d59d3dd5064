"""Programming: how long rules take to be in force, of everything, of one change, of a thousand.

``cold-sync``, ``one-change`` and ``burst`` are syncs of a mode's backend without a daemon, from a
finished Snapshot to the kernel's last acknowledgement (:mod:`kproxy.bench.programming_agent`).
``convergence`` is what a user waits for: ``kproxy run`` as it comes, from the moment in which a
manifest is replaced to the first good answer at a client (:mod:`kproxy.bench.convergence`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from kproxy.bench import convergence, programming_agent
from kproxy.bench.measures.base import Reading
from kproxy.bench.ours import MODES
from kproxy.bench.results import Absent, Measure, Point
from kproxy.bench.rounds import Figure
from kproxy.bench.subjects import parted

#: Services that one sync changes in a burst: smaller clusters have none.
BURST = programming_agent.BURST

#: What ratios are taken to, the first that takes part: kube-proxy's own default.
BASES = ("iptables-nft", "iptables-legacy")


def _measure(name: str, title: str) -> Measure:
    return Measure(
        name=name, title=title, unit="s", better="lower", group="programming", axis="services"
    )


MEASURES = (
    _measure("cold-sync", "all services, from nothing"),
    _measure("one-change", "one endpoint of one service replaced"),
    _measure("burst", f"{BURST:,} services changed in one sync"),
    _measure("convergence", "file replaced to first good packet"),
)

#: Why others have no figure.
_NO_RULES = "it follows no services: nothing is programmed"


class Programming:
    """Modes of kproxy at ``sizes`` (numbers of services of 10 endpoints each); ``converging`` are
    the sizes at which a daemon is run as well, all of them when left out.

    Points: ``Point("cold-sync", at=N)`` and so on; ``Point("convergence", at=N, where="moved")`` is
    a service whose endpoint moves, ``where="new"`` one that was not there before. A cold sync's
    cost is that of the syncing process and of the tools that it starts; what the kernel holds more
    afterwards is in it where it can be told. A convergence's cost is the daemon's from its start
    until it is in force, its memory then.
    """

    name = "programming"
    measures: Sequence[Measure] = MEASURES

    def __init__(
        self,
        subjects: Sequence[str],
        *,
        sizes: Sequence[int],
        converging: Sequence[int] | None = None,
    ) -> None:
        able, missing = parted([name for name in subjects if name in MODES])
        missing |= {name: _NO_RULES for name in subjects if name not in MODES}
        self._sizes = tuple(sizes)
        self._converging = self._sizes if converging is None else tuple(converging)
        self.base = next((mode for mode in BASES if mode in able), "")
        self.subjects: Sequence[str] = sorted(able, key=lambda mode: mode != self.base)
        self.absent: Sequence[Absent] = [
            Absent(subject, measure.name, why)
            for subject, why in missing.items()
            for measure in MEASURES
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def turn(self, subject: str) -> Mapping[Point, Reading]:
        """Every size, one after the other. CheckFailed: a sync or a daemon failed."""
        found: dict[Point, Reading] = {}
        for services in self._sizes:
            found |= _synced(subject, services)
        for services in self._converging:
            found |= _converged(subject, services)
        return found


def _synced(mode: str, services: int) -> dict[Point, Reading]:
    took = programming_agent.measured(mode, services)

    def figure(seconds: float) -> Figure:
        # A cluster of which services were left out says nothing of its changes either.
        return Figure(seconds, services, took.refused)

    found = {
        Point("cold-sync", services): Reading(figure(took.cold), cost=took.cost),
        Point("one-change", services): Reading(figure(took.one)),
    }
    if took.burst is not None:
        found[Point("burst", services)] = Reading(figure(took.burst))
    return found


def _converged(mode: str, services: int) -> dict[Point, Reading]:
    took = convergence.measured(mode, services)
    return {
        Point("convergence", services, where): Reading(Figure(seconds), cost=took.cost)
        for where, seconds in (("moved", took.moved), ("new", took.new))
    }
