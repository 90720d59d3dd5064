"""What is measured for how long: profiles as tables, and the jobs that they make.

``quick`` is to be over in two minutes, the report included, so it gives up sizes that take long to
set up, events that take long to happen, and then rounds: each group takes as many as it can afford.
``medium`` is for a lesson: rounds enough for a verdict where they are short.
``full`` measures everything and has rounds enough for 99.9 % in every group.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

from kproxy.bench.conductor import Job
from kproxy.bench.measures import first_packet as first
from kproxy.bench.measures import programming, survival, traffic
from kproxy.bench.measures.base import Group
from kproxy.bench.ours import MODES
from kproxy.bench.subjects import AGAIN, COMPARED, DIRECT
from kproxy.core.objects import Value
from kproxy.errors import UsageError

Kernel = Literal["host", "uml"]

#: Group -> the names of its measures, in the order of tables.
MEASURES: Mapping[str, tuple[str, ...]] = {
    "traffic": tuple(traffic.MEASURES),
    "first-packet": tuple(measure.name for measure in (first.MEASURE,)),
    "programming": tuple(measure.name for measure in programming.MEASURES),
    "survival": tuple(measure.name for measure in survival.MEASURES),
}

#: Those that are always measured: the floor, and how far two equals are apart.
ALWAYS = (DIRECT, AGAIN)

#: Whom a mode can be compared with, in the order of tables.
PEERS = tuple(name for name in COMPARED if name not in (*ALWAYS, *MODES))


class Part(Value, frozen=True):
    """What a profile does with a group. ``make(subjects, measures)`` gives the group; ``rounds``
    are the most that it takes, after ``warmup`` ones; ``measures`` are those of the profile (none:
    the group is left out), unless others are asked for by name. ``each`` and ``standing``: see
    :class:`~kproxy.bench.conductor.Job`; seconds on the two-core machine of docs/report/."""

    make: Callable[[Sequence[str], Collection[str]], Group]
    rounds: int
    each: float
    measures: tuple[str, ...]
    standing: float = 0.0
    warmup: int = 0


class Profile(Value, frozen=True):
    """``seconds`` is what measuring may take when nobody says otherwise, the report not counted;
    ``peers`` those that are measured when nobody names others. ``shared``: the seconds are taken
    from the host's. ``crossed``: rounds of cross-checks with other load generators, beside the
    seconds (:mod:`kproxy.bench.cross`), 0: none."""

    title: str
    seconds: float
    peers: tuple[str, ...]
    parts: Mapping[str, Part]
    shared: bool = False
    crossed: int = 0


class Asked(Value, frozen=True):
    """What a run is to measure. ``measures`` () are the profile's; ``rounds`` and ``seconds`` None
    as well."""

    profile: str
    subjects: tuple[str, ...]
    measures: tuple[str, ...] = ()
    rounds: int | None = None
    seconds: float | None = None
    kernel: Kernel = "host"


# --- groups -------------------------------------------------------------------------------------


def _traffic(seconds: float, *, fresh: bool) -> Callable[[Sequence[str], Collection[str]], Group]:
    return lambda subjects, measures: traffic.Traffic(
        subjects, seconds=seconds, fresh=fresh, measures=_of("traffic", measures)
    )


def _first_packet(
    sizes: Sequence[int], connections: int
) -> Callable[[Sequence[str], Collection[str]], Group]:
    return lambda subjects, measures: first.FirstPacket(
        subjects, sizes=sizes, connections=connections
    )


def _programming(
    sizes: Sequence[int], converging: Sequence[int]
) -> Callable[[Sequence[str], Collection[str]], Group]:
    """Syncs come together, convergence is apart: what is not wanted is not measured."""
    return lambda subjects, measures: programming.Programming(
        subjects,
        sizes=sizes if set(measures) - {"convergence"} else (),
        converging=converging if "convergence" in measures else (),
    )


def _survival(subjects: Sequence[str], measures: Collection[str]) -> Group:
    return survival.Survival(subjects, events=_events(measures))


def _slow_survival(subjects: Sequence[str], measures: Collection[str]) -> Group:
    """With as many connections as user-mode Linux has room for: its table ends at 8,192 entries,
    each of which stays for two minutes."""
    return survival.Survival(subjects, events=_events(measures), rate=50.0)


def _of(group: str, measures: Collection[str]) -> tuple[str, ...]:
    """Those of the group, in its order."""
    return tuple(name for name in MEASURES[group] if name in measures)


def _events(measures: Collection[str]) -> tuple[str, ...]:
    """What has to happen for these measures."""
    wanted = {name.rpartition("-")[0] for name in measures}
    return tuple(event for event in survival.EVENTS if event in wanted)


# --- profiles -----------------------------------------------------------------------------------

#: Profile -> what it does on each kernel.
PROFILES: Mapping[str, Mapping[Kernel, Profile]] = {
    "quick": {
        # Survival takes 3 s for each event and subject: for a round of it a minute would be left.
        "host": Profile(
            title="a look, in less than two minutes",
            seconds=105.0,
            peers=("haproxy", "nginx"),
            parts={
                "traffic": Part(
                    _traffic(0.05, fresh=False),
                    rounds=11,
                    each=0.3,
                    measures=("crr", "rr", "stream1", "udp"),
                    standing=4.0,
                ),
                "first-packet": Part(
                    _first_packet((1, 1000), 200),
                    rounds=4,
                    each=0.3,
                    measures=MEASURES["first-packet"],
                    standing=9.0,
                ),
                "programming": Part(
                    _programming((100, 1000), (100, 1000)),
                    rounds=4,
                    each=1.4,
                    measures=("cold-sync", "one-change", "burst"),
                ),
                "survival": Part(
                    _survival,
                    rounds=1,
                    each=6.0,
                    measures=(),
                ),
            },
        ),
        # A machine takes 4 to 6 s to boot and to import what measures: two groups have time.
        "uml": Profile(
            title="a look at IPVS",
            seconds=25.0,
            peers=(),
            parts={
                "traffic": Part(
                    _traffic(0.1, fresh=False),
                    rounds=11,
                    each=0.2,
                    measures=("crr",),
                    standing=8.0,
                ),
                "first-packet": Part(
                    _first_packet((1, 1000), 100),
                    rounds=4,
                    each=0.8,
                    measures=(),
                    standing=9.0,
                ),
                "programming": Part(
                    _programming((1000,), (1000,)),
                    rounds=2,
                    each=2.5,
                    measures=("cold-sync", "one-change", "burst"),
                ),
                "survival": Part(
                    _slow_survival,
                    rounds=1,
                    each=12.0,
                    measures=(),
                ),
            },
            shared=True,
        ),
    },
    # Each group has 11 rounds but survival, of which a round takes three minutes.
    "medium": {
        "host": Profile(
            title="speeds with rounds for 99.9 %, in twenty minutes",
            seconds=960.0,
            peers=PEERS,
            parts={
                "traffic": Part(
                    _traffic(0.15, fresh=False),
                    rounds=13,
                    each=2.0,
                    measures=MEASURES["traffic"],
                    standing=5.0,
                ),
                "first-packet": Part(
                    _first_packet((1, 100, 1000, 10_000), 300),
                    rounds=13,
                    each=0.8,
                    measures=MEASURES["first-packet"],
                    standing=45.0,
                    warmup=1,
                ),
                "programming": Part(
                    _programming((100, 1000), (1000,)),
                    rounds=11,
                    each=4.5,
                    measures=MEASURES["programming"],
                ),
                "survival": Part(
                    _survival,
                    rounds=2,
                    each=18.0,
                    measures=MEASURES["survival"],
                ),
            },
        ),
        "uml": Profile(
            title="IPVS beside iptables, with rounds for 99.9 %",
            seconds=300.0,
            peers=("ipvsadm",),
            parts={
                "traffic": Part(
                    _traffic(0.15, fresh=False),
                    rounds=11,
                    each=2.5,
                    measures=MEASURES["traffic"],
                    standing=10.0,
                ),
                "first-packet": Part(
                    _first_packet((1, 1000), 200),
                    rounds=11,
                    each=0.5,
                    measures=MEASURES["first-packet"],
                    standing=20.0,
                    warmup=1,
                ),
                "programming": Part(
                    _programming((100, 1000), (100,)),
                    rounds=11,
                    each=3.0,
                    measures=("cold-sync", "one-change", "burst"),
                ),
            },
        ),
    },
    "full": {
        "host": Profile(
            title="everything, with rounds for 99.9 %",
            seconds=2700.0,
            peers=PEERS,
            crossed=7,
            parts={
                "traffic": Part(
                    _traffic(0.3, fresh=True),
                    rounds=31,
                    each=2.9,
                    measures=MEASURES["traffic"],
                ),
                "first-packet": Part(
                    _first_packet((1, 100, 1000, 10_000), 500),
                    rounds=15,
                    each=0.3,
                    measures=MEASURES["first-packet"],
                    standing=30.0,
                    warmup=1,
                ),
                "programming": Part(
                    _programming((100, 1000, 5000), (100, 1000)),
                    rounds=11,
                    each=7.0,
                    measures=MEASURES["programming"],
                ),
                "survival": Part(
                    _survival,
                    rounds=11,
                    each=12.0,
                    measures=MEASURES["survival"],
                ),
            },
        ),
        "uml": Profile(
            title="IPVS beside the older iptables, with rounds for 99.9 %",
            seconds=1200.0,
            peers=("ipvsadm",),
            parts={
                "traffic": Part(
                    _traffic(0.3, fresh=True),
                    rounds=15,
                    each=5.0,
                    measures=MEASURES["traffic"],
                ),
                "first-packet": Part(
                    _first_packet((1, 100, 1000), 200),
                    rounds=11,
                    each=0.6,
                    measures=MEASURES["first-packet"],
                    standing=30.0,
                    warmup=1,
                ),
                "programming": Part(
                    _programming((100, 1000), (100,)),
                    rounds=11,
                    each=4.0,
                    measures=MEASURES["programming"],
                ),
                "survival": Part(
                    _slow_survival,
                    rounds=11,
                    each=14.0,
                    measures=MEASURES["survival"],
                ),
            },
        ),
    },
}


def jobs(asked: Asked) -> list[Job]:
    """The jobs of a profile, those without any measure or subject left out. UsageError: an unknown
    profile, measure or subject, or nothing to do."""
    profile = of(asked.profile, asked.kernel)
    wanted = resolved(asked.measures)
    found = []
    for name, part in profile.parts.items():
        measures = _of(name, wanted if asked.measures else part.measures)
        if not measures:
            continue
        found.append(
            Job(
                part.make(asked.subjects, measures),
                rounds=asked.rounds or part.rounds,
                each=part.each,
                warmup=part.warmup,
                standing=part.standing,
                measures=measures,
            )
        )
    return found


def of(profile: str, kernel: Kernel) -> Profile:
    """UsageError: there is none of that name."""
    if profile not in PROFILES:
        raise UsageError(f"no profile {profile}", hint=f"there are {', '.join(PROFILES)}")
    kernels = PROFILES[profile]
    return kernels.get(kernel, kernels["host"])


def resolved(names: Sequence[str]) -> tuple[str, ...]:
    """Measures by their names, or a whole group's by its own, in the order of tables. UsageError:
    an unknown name."""
    known = {name for of_group in MEASURES.values() for name in of_group}
    unknown = [name for name in names if name not in known and name not in MEASURES]
    if unknown:
        everything = "; ".join(f"{group}: {', '.join(of)}" for group, of in MEASURES.items())
        raise UsageError(f"no measure {', '.join(unknown)}", hint=f"there are {everything}")
    return tuple(
        name
        for group, of_group in MEASURES.items()
        for name in of_group
        if name in names or group in names
    )
