"""What a comparison found, as values, and the file that it is kept in (``results.json``).

::

    Results ── Section (the host's kernel, or user-mode Linux) ── Row (one point of one measure)
                                                                   └─ rounds: subject -> Figure

Sections are never mixed: figures of two kernels are not compared. All figures of a row were taken
in the same rounds, so ratios are taken within a round (:mod:`kproxy.bench.rounds`). Units are
seconds, bits and operations a second, bytes; what a unit is and which way is better a row's
:class:`Measure` says. A result names no host, user, path or time zone.
"""

from __future__ import annotations

from typing import Literal

from msgspec import field

from kproxy.bench.rounds import Figure
from kproxy.core.objects import Value

#: Of the file. A reader refuses what it does not know.
FORMAT = 1

Unit = Literal["1/s", "bit/s", "s", "B", "share", ""]


class Measure(Value, frozen=True):
    """One thing that is measured. ``axis`` names what its points differ by ("services"), empty when
    it has one point; ``where`` of a point names a place on it ("first", "last")."""

    name: str
    title: str
    unit: Unit
    better: Literal["higher", "lower"]
    group: Literal["traffic", "first-packet", "programming", "survival"]
    axis: str = ""


class Point(Value, frozen=True):
    """``at`` is a number on the measure's axis."""

    measure: str
    at: float | None = None
    where: str = ""


class Cost(Value, frozen=True):
    """What a subject used, per turn: ``proxy`` seconds of CPU of its own processes, ``kernel``
    seconds of all others but client and server, in ``seconds`` of wall clock; ``memory`` bytes of
    its own processes (PSS), ``kernel_memory`` bytes that the kernel held more than without it."""

    seconds: float = 0.0
    proxy: float = 0.0
    kernel: float = 0.0
    memory: float = 0.0
    kernel_memory: float = 0.0


class Row(Value, frozen=True):
    """One point, all subjects. ``base`` is the subject that ratios are taken to ("": none).
    ``distributions``: subject -> bucket -> count of all rounds (:mod:`kproxy.bench.histogram`);
    ``costs``: subject -> medians of its turns."""

    point: Point
    base: str
    rounds: tuple[dict[str, Figure], ...]
    distributions: dict[str, dict[int, int]] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)


class Absent(Value, frozen=True):
    """A subject that a measure has no figure of, and why."""

    subject: str
    measure: str
    reason: str


class Section(Value, frozen=True):
    """All that was measured in one kernel. ``subjects``: name -> what it is, with its version and
    variant. ``notes``: sentences that a reader of its figures has to know."""

    name: Literal["host", "uml"]
    kernel: str
    subjects: dict[str, str]
    measures: tuple[Measure, ...]
    rows: tuple[Row, ...]
    absent: tuple[Absent, ...] = ()
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


class Fingerprint(Value, frozen=True):
    """The machine, as far as it decides about figures. ``memory`` in bytes, ``tools``: name ->
    version, ``sysctls``: of the measured namespaces, ``load``: mean number of running processes
    before it began."""

    cpu: str
    cores: int
    memory: int
    kernel: str
    python: str
    tools: dict[str, str]
    sysctls: dict[str, str]
    load: float


class Results(Value, frozen=True):
    """``date`` is the day (UTC, YYYY-MM-DD), ``command`` what was asked for without paths.
    ``partial`` says why there are fewer rounds than could have been ("interrupted"), "" if not."""

    format: int
    date: str
    kproxy: str
    profile: str
    command: str
    fingerprint: Fingerprint
    sections: tuple[Section, ...]
    partial: str = ""
