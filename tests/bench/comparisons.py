"""A comparison as it could have come out, for tests of what is made of it: seeded, no kernel.

It has what a real one has and a perfect one would not: a subject that fails, one that is absent,
one that drops out after some rounds, and a section of another kernel with too few rounds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from kproxy.bench.histogram import Histogram
from kproxy.bench.measures import first_packet, programming, survival, traffic
from kproxy.bench.results import (
    FORMAT,
    Absent,
    Cost,
    Fingerprint,
    Measure,
    Point,
    Results,
    Row,
    Section,
)
from kproxy.bench.rounds import Figure

MEASURES: Mapping[str, Measure] = {
    **traffic.MEASURES,
    **{measure.name: measure for measure in (first_packet.MEASURE, *programming.MEASURES)},
    **{measure.name: measure for measure in survival.Survival(()).measures},
}

MODES = ("userspace", "iptables-legacy", "iptables-nft", "nftables", "fastpath")
SUBJECTS: Mapping[str, str] = {
    "direct": "direct routing",
    "direct again": "direct routing",
    "userspace": "kproxy, relay with two threads",
    "iptables-legacy": "kproxy, iptables v1.8.9 (legacy)",
    "iptables-nft": "kproxy, iptables v1.8.9 (nf_tables)",
    "nftables": "kproxy, nftables v1.0.6",
    "fastpath": "kproxy, TUN with two queues",
    "haproxy": "HAProxy 2.6.12",
    "nginx": "nginx 1.22.1, stream module",
    "nft-dnat": "nftables v1.0.6",
}

#: Ratio of a rate to direct routing's, by subject: crr, rr, stream1, stream4, udp.
_RATES: Mapping[str, tuple[float, ...]] = {
    "direct": (1, 1, 1, 1, 1),
    "direct again": (1, 1, 1, 1, 1),
    "userspace": (0.6, 0.57, 0.97, 0.39, 1.44),
    "iptables-legacy": (0.8, 0.95, 0.99, 0.97, 0.85),
    "iptables-nft": (0.78, 0.94, 0.985, 0.98, 0.83),
    "nftables": (0.82, 0.96, 0.99, 0.97, 0.88),
    "fastpath": (0.66, 0.7, 0.7, 0.5, 0.6),
    "haproxy": (0.33, 0.37, 0.46, 0.18, 0),
    "nginx": (0.32, 0.53, 0.6, 0.16, 0.64),
    "nft-dnat": (0.84, 0.97, 0.99, 0.98, 0.9),
}
_DIRECT = {"crr": 52_300, "rr": 392_000, "stream1": 41e9, "stream4": 111e9, "udp": 352_000}

#: First packet (s) with so many services, to the last of them.
_FIRST: Mapping[str, Callable[[float], float]] = {
    "direct": lambda services: 22e-6,
    "direct again": lambda services: 22e-6,
    "userspace": lambda services: 61e-6 + services * 30e-9,
    "iptables-legacy": lambda services: 28e-6 + services * 85e-9,
    "iptables-nft": lambda services: 29e-6 + services * 120e-9,
    "nftables": lambda services: 28e-6,
    "fastpath": lambda services: 39e-6,
}

#: Programming (s) of so many services: cold sync, one change, burst, convergence.
_PROGRAMMING: Mapping[str, tuple[Callable[[float], float], ...]] = {
    "userspace": (
        lambda n: 0.02 + n * 0.3e-3,
        lambda n: 0.002 + n * 0.2e-6,
        lambda n: 0.08,
        lambda n: 0.06,
    ),
    "iptables-legacy": (
        lambda n: 0.02 + n * 0.2e-3 + n**2 * 2e-8,
        lambda n: 0.005 + n * 0.05e-3,
        lambda n: 0.1 + n * 0.08e-3,
        lambda n: 0.07 + n * 0.05e-3,
    ),
    "iptables-nft": (
        lambda n: 0.04 + n * 0.5e-3 + n**2 * 1e-8,
        lambda n: 0.01 + n * 0.02e-3,
        lambda n: 0.3 + n * 0.16e-3,
        lambda n: 0.08 + n * 0.02e-3,
    ),
    "nftables": (
        lambda n: 0.02 + n * 0.1e-3,
        lambda n: 0.006,
        lambda n: 0.09,
        lambda n: 0.06,
    ),
    "fastpath": (
        lambda n: 0.01 + n * 0.2e-3,
        lambda n: 0.0008,
        lambda n: 0.05,
        lambda n: 0.055,
    ),
}

#: Share failed, gap (s), share held for restart, kill, wipe, rolling, switch.
_SURVIVAL: Mapping[str, tuple[tuple[float, float, float], ...]] = {
    "userspace": ((0.02, 0.4, 0), (0.05, 0.9, 0), (0.01, 0.2, 1), (0, 0.013, 1), (0, 0.03, 1)),
    "iptables-legacy": ((0, 0.006, 1), (0, 0.004, 1), (0.3, 0.6, 0.9), (0, 0.008, 1), (0, 0.01, 1)),
    "iptables-nft": ((0, 0.006, 1), (0, 0.004, 1), (0.1, 0.11, 0.9), (0, 0.006, 1), (0, 0.01, 1)),
    "nftables": ((0, 0.005, 1), (0, 0.005, 1), (0.1, 0.09, 0.9), (0, 0.006, 1), (0, 0.012, 1)),
    "fastpath": ((0.001, 0.05, 1), (0.01, 0.6, 1), (0, 0.004, 1), (0, 0.012, 1), (0.02, 0.07, 1)),
}
_EVENTS = ("restart", "kill", "wipe", "rolling", "switch")

#: Part of survival that is another time -> what makes it of the gap.
_OTHER_TIMES: Mapping[str, float] = {"slowest": 1.5, "both": 3.0}


def make_fingerprint(**fields: object) -> Fingerprint:
    values: dict[str, object] = {
        "cpu": "AMD EPYC 7763 64-Core Processor",
        "cores": 2,
        "memory": 24 << 30,
        "kernel": "6.18.5",
        "python": "3.11.2",
        "tools": {"iptables": "v1.8.9", "nft": "v1.0.6", "haproxy": "2.6.12"},
        "sysctls": {"net.ipv4.tcp_tw_reuse": "1"},
        "load": 0.04,
    }
    return Fingerprint(**{**values, **fields})  # type: ignore[arg-type]


def make_row(
    measure: str,
    medians: Mapping[str, float],
    *,
    at: float | None = None,
    where: str = "",
    base: str = "direct",
    rounds: int = 12,
    scatter: float = 0.03,
    failing: Mapping[str, tuple[int, int]] = {},
    seed: int = 1,
) -> Row:
    """A row whose figures scatter round ``medians``; ``failing``: subject -> failures of attempts
    in each round."""
    luck = random.Random(f"{measure} {at} {where} {seed}")
    taken = []
    for _ in range(rounds):
        drift = luck.lognormvariate(0, scatter)
        taken.append(
            {
                subject: Figure(
                    value * drift * luck.lognormvariate(0, scatter / 3),
                    failures=failing.get(subject, (0, 0))[0],
                    attempts=failing.get(subject, (0, 1000))[1],
                )
                for subject, value in medians.items()
            }
        )
    return Row(Point(measure, at, where), base if base in medians else "", tuple(taken))


@cache
def make_histogram(median: float, *, tail: float = 0.02, seed: int = 1) -> dict[int, int]:
    """Of 5,000 operations around ``median`` seconds, some of them much longer."""
    luck = random.Random(f"{median} {seed}")
    return Histogram.of(
        int(median * 1e9 * luck.lognormvariate(0, 0.18) * (1 if luck.random() > tail else 6))
        for _ in range(5_000)
    ).counts


def traffic_rows(subjects: Sequence[str], rounds: int = 12) -> list[Row]:
    """haproxy serves no UDP; nginx loses requests in crr."""
    rows = []
    for index, name in enumerate(_DIRECT):
        medians = {it: _DIRECT[name] * _RATES[it][index] for it in subjects if _RATES[it][index]}
        failing = {"nginx": (7, 1000)} if name == "crr" else {}
        row = make_row(name, medians, rounds=rounds, failing=failing)
        costs = {
            it: Cost(
                1.0,
                0.0 if "direct" in it or "dnat" in it else 0.9 / (1 + index),
                # What is said of direct routing's is how busy the machine was.
                0.1 if "direct" in it else 0.4 * (1 + index),
                0 if "direct" in it else 38e6,
                0 if "direct" in it else 1.2e6,
            )
            for it in medians
        }
        rows.append(Row(row.point, row.base, row.rounds, costs=costs))
    waits = {"crr-p50": 150e-6, "crr-p99": 366e-6, "connect-p50": 40e-6}
    for name, wait in waits.items():
        row = make_row(name, {it: wait / _RATES[it][0] for it in subjects}, rounds=rounds)
        distributions = (
            {}
            if name == "crr-p99"
            else {it: make_histogram(wait / _RATES[it][0]) for it in subjects}
        )
        rows.append(Row(row.point, row.base, row.rounds, distributions))
    return rows


def first_packet_rows(subjects: Sequence[str], rounds: int = 12) -> list[Row]:
    """To the first service, and to the last one of so many."""
    return [
        make_row(
            "first-packet",
            {it: _FIRST[it](size if where == "last" else 1) for it in subjects if it in _FIRST},
            at=size,
            where=where,
            rounds=rounds,
            scatter=0.05,
        )
        for size in (1, 100, 1_000, 10_000)
        for where in ("first", "last")
    ]


def programming_rows(subjects: Sequence[str], rounds: int = 12) -> list[Row]:
    """iptables-nft is the base, and leaves something out of the largest cold sync."""
    places = {"convergence": ("moved", "new")}
    return [
        make_row(
            name,
            {it: _PROGRAMMING[it][index](size) for it in subjects if it in _PROGRAMMING},
            at=size,
            where=where,
            base="iptables-nft",
            rounds=rounds,
            failing={"iptables-legacy": (2, size)} if (name, size) == ("cold-sync", 10_000) else {},
            scatter=0.08,
        )
        for index, name in enumerate(("cold-sync", "one-change", "burst", "convergence"))
        for size in (100, 1_000, 10_000)
        for where in places.get(name, ("",))
        if not (name == "burst" and size < 1_000)
    ]


def survival_rows(subjects: Sequence[str], rounds: int = 12) -> list[Row]:
    """As clients noticed it; of mode switches the worst, and those into userspace mode."""
    return [
        _noticed(f"{event}-{what}", index, part, where, subjects, rounds)
        for index, event in enumerate(survival.EVENTS)
        for where in (("", "userspace", "nftables") if event == "switch" else ("",))
        for part, what in enumerate(("failed", "gap", "held"))
    ] + [
        _noticed(f"{event}-{what}", index, 1, where, subjects, rounds, times)
        for index, event in enumerate(survival.EVENTS)
        for where in (("", "userspace", "nftables") if event == "switch" else ("",))
        for what, times in _OTHER_TIMES.items()
        if what != "both" or event == "switch"
    ]


def _noticed(
    measure: str,
    index: int,
    part: int,
    where: str,
    subjects: Sequence[str],
    rounds: int,
    times: float = 1.0,
) -> Row:
    """Counted parts have attempts and failures, of 1,000 new connections or 20 held ones."""
    medians = {it: _SURVIVAL[it][index][part] for it in subjects if it in _SURVIVAL and it != where}
    if part == 1:
        medians = {it: times * gap for it, gap in medians.items()}
        return make_row(measure, medians, where=where, base="", rounds=rounds, scatter=0.1)
    attempts = 1000 if part == 0 else 20
    figures = {
        name: Figure(share, attempts, round(attempts * (share if part == 0 else 1 - share)))
        for name, share in medians.items()
    }
    return Row(Point(measure, where=where), "", (figures,) * rounds)


def make_section(name: str = "host", *, rounds: int = 12, **fields: object) -> Section:
    """All groups of the host's kernel."""
    names = tuple(SUBJECTS)
    rows = (
        *traffic_rows(names, rounds),
        *first_packet_rows(names, rounds),
        *programming_rows(names, rounds),
        *survival_rows(names, rounds),
    )
    values: dict[str, object] = {
        "name": name,
        "kernel": "6.18.5",
        "subjects": dict(SUBJECTS),
        "measures": tuple(MEASURES.values()),
        "rows": rows,
        "absent": (
            Absent("ipvs", "", "this kernel has no IPVS; it is measured in user-mode Linux"),
            Absent("haproxy", "udp", "it relays no UDP"),
        ),
        "seconds": 1_260.0,
    }
    return Section(**{**values, **fields})  # type: ignore[arg-type]


def make_uml_section(rounds: int = 4) -> Section:
    """IPVS beside the others; too few rounds for any verdict."""
    subjects = {"direct": "direct routing", "iptables-legacy": "kproxy", "ipvs": "kproxy"}
    rows = (
        make_row("crr", {"direct": 900, "iptables-legacy": 610, "ipvs": 640}, rounds=rounds),
        *(
            make_row(
                "first-packet",
                {
                    "direct": 0.8e-3,
                    "iptables-legacy": 1.1e-3 + size * 2e-6,
                    "ipvs": 1.2e-3,
                },
                at=size,
                where="last",
                rounds=rounds,
            )
            for size in (1, 100, 1_000)
        ),
    )
    return Section(
        name="uml",
        kernel="6.1.0",
        subjects=subjects,
        measures=tuple(MEASURES[name] for name in ("crr", "first-packet")),
        rows=rows,
        absent=(Absent("nftables", "", "this kernel has no nftables"),),
        seconds=240.0,
    )


def make_results(*sections: Section, **fields: object) -> Results:
    """The host's section and that of user-mode Linux, if none is given."""
    values: dict[str, object] = {
        "format": FORMAT,
        "date": "2026-11-21",
        "kproxy": "0.8.0",
        "profile": "full",
        "command": "kproxy bench --profile full",
        "fingerprint": make_fingerprint(),
        "sections": sections or (make_section(), make_uml_section()),
    }
    return Results(**{**values, **fields})  # type: ignore[arg-type]
