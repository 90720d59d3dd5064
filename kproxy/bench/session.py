"""One run of ``kproxy bench``: what is asked for, section by section, and the result of it.

The host's kernel first; then user-mode Linux for IPVS, where the host has none and somebody wants
it (:mod:`kproxy.bench.uml`). A run that is ended early has the rounds that were whole.
"""

from __future__ import annotations

import platform
import re
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Literal

from msgspec.structs import replace

import kproxy
from kproxy.bench import cross, fingerprint, profiles, subjects, uml
from kproxy.bench.conductor import Conductor, Step
from kproxy.bench.ours import MODES
from kproxy.bench.profiles import ALWAYS, PEERS, Asked, Kernel, Profile
from kproxy.bench.results import FORMAT, Absent, Results, Section
from kproxy.bench.subjects import DIRECT
from kproxy.core.objects import Value
from kproxy.errors import KproxyError, UsageError
from kproxy.lab.uml import machine

#: Names that stand for others.
_ALL, _NONE = "all", "none"

#: Of what user-mode Linux should have, the least that is worth booting it for, where the host's
#: section has taken some of it.
_WORTH = 0.4

#: Of each load of a cross-check: wrk counts in whole seconds.
_CROSSED_SECONDS = 1

#: Whose figures belong to user-mode Linux where the host's kernel has no IPVS.
_IPVS = ("ipvs", "ipvsadm")


class Request(Value, frozen=True):
    """What a user asks for. ``modes`` and ``peers`` are names, ``all`` or ``none``; () is what the
    profile has. ``measures`` are names of measures or groups; ``rounds`` and ``seconds`` None are
    the profile's as well."""

    profile: str = "quick"
    modes: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    rounds: int | None = None
    seconds: float | None = None
    kernel: Literal["auto", "host", "uml"] = "auto"

    @property
    def command(self) -> str:
        """As it could be typed. A class of the user's own stands there without its file."""
        options = {
            "profile": self.profile,
            "modes": ",".join(self.modes),
            "peers": ",".join(map(_without_path, self.peers)),
            "measures": ",".join(self.measures),
            "rounds": "" if self.rounds is None else str(self.rounds),
            "time": "" if self.seconds is None else f"{self.seconds:g}",
            "kernel": self.kernel if self.kernel != "auto" else "",
        }
        given = (f"--{name} {value}" for name, value in options.items() if value)
        return " ".join(["kproxy bench", *given])


def _without_path(name: str) -> str:
    """``NAME=DIR/FILE.py:CLASS`` as ``NAME=FILE.py:CLASS``."""
    called, equals, where = name.partition("=")
    if not equals or "/" in called:
        return name.rpartition("/")[2]
    return called + equals + where.rpartition("/")[2]


class Session:
    """Measures a request; ``told`` hears each Step with the section that it belongs to.

    UsageError: it names something that there is not, or nothing is left to measure.
    """

    def __init__(
        self, request: Request, told: Callable[[Kernel, Step], None] = lambda kernel, step: None
    ) -> None:
        self._request = request
        self._told = told
        self._asked = {
            kernel: asked for kernel in _kernels(request) if (asked := _of(request, kernel))
        }
        self._sections: dict[Kernel, Callable[[], Section | None]] = {}
        #: Seconds that the host's section has taken more than it should have.
        self._over = 0.0
        self._begun = time.strftime("%Y-%m-%d", time.gmtime())
        self._machine = fingerprint.taken()

    @property
    def seconds(self) -> float:
        """How long measuring may take."""
        return sum(asked.seconds or 0.0 for asked in self._asked.values())

    def run(self) -> None:
        """Measure all of it; :meth:`results` has what came of it, also when this is ended by an
        exception."""
        for kernel, asked in self._asked.items():
            _RUNS[kernel](self, asked)

    def results(self, partial: str = "") -> Results:
        """So far; ``partial`` is why there is no more."""
        sections = [found for give in self._sections.values() if (found := give()) is not None]
        return Results(
            format=FORMAT,
            date=self._begun,
            kproxy=kproxy.__version__,
            profile=self._request.profile,
            command=self._request.command,
            fingerprint=self._machine,
            sections=tuple(map(_placeless, sections)),
            partial=partial,
        )

    # --- sections -------------------------------------------------------------------------------

    def _here(self, asked: Asked) -> None:
        """On this host's kernel."""
        present, _ = subjects.parted(asked.subjects)
        versions = {name: subject.version() for name, subject in present.items()}
        conductor = Conductor(
            profiles.jobs(asked),
            seconds=asked.seconds,
            told=lambda step: self._told("host", step),
        )
        notes = list(filter(None, (self._of_ipvs(present),)))
        self._sections["host"] = lambda: _noted(
            conductor.section("host", platform.release(), versions), tuple(notes)
        )
        begun = time.monotonic()
        conductor.run()
        self._over = max(0.0, time.monotonic() - begun - (asked.seconds or float("inf")))
        for note in _cross_checks(profiles.of(asked.profile, "host"), asked):
            notes.append(note)  # one by one: what ends this early leaves those that are there
            self._told("host", _remark(note))

    def _of_ipvs(self, present: Collection[str]) -> str:
        """Where its figures are when they are not here; "" when nobody wants any, or they are."""
        if "uml" in self._asked:
            return "IPVS is in a section of its own: this kernel has none."
        wanted = set(names(self._request, "host")) & set(_IPVS)
        lacking = machine.lacking() if self._request.kernel == "auto" else None
        if not wanted - set(present) or lacking is None:
            return ""
        return f"IPVS is not measured in user-mode Linux either: {lacking}."

    def _inside(self, asked: Asked) -> None:
        """In user-mode Linux. What ends it early is a reason in the section, as a group's is. On a
        slow machine it has less time: a round that was begun on the host was finished."""
        kept: list[Section] = []
        self._sections["uml"] = lambda: kept[-1] if kept else None
        if asked.seconds is not None and self._over:
            left = asked.seconds - self._over
            if left < _WORTH * asked.seconds:
                reason = f"no time was left: the host's section took {self._over:.0f} s too much"
                kept.append(_broken_off(None, asked, reason))
                return
            asked = replace(asked, seconds=left)
        try:
            uml.section(asked, told=lambda step: self._told("uml", step), kept=kept.append)
        except KproxyError as failed:
            if not kept and "host" not in self._sections:
                raise
            kept.append(_broken_off(kept[-1] if kept else None, asked, str(failed)))


_RUNS: dict[Kernel, Callable[[Session, Asked], None]] = {
    "host": Session._here,
    "uml": Session._inside,
}


def _cross_checks(profile: Profile, asked: Asked) -> Iterator[str]:
    """Those of a profile, on the path without a proxy: it is the generators that are compared."""
    if profile.crossed and not asked.measures:
        yield from cross.notes((DIRECT,), count=profile.crossed, seconds=_CROSSED_SECONDS)


def _remark(note: str) -> Step:
    return Step("note", "cross-checks", 0, 1, 0, 0, 0.0, 0.0, 0.0, note=note)


def _placeless(section: Section) -> Section:
    """What a tool said, without the folders that it named: they are the machine's."""
    absent = (replace(each, reason=_without_folders(each.reason)) for each in section.absent)
    notes = map(_without_folders, section.notes)
    return replace(section, absent=tuple(absent), notes=tuple(notes))


def _without_folders(text: str) -> str:
    """``/a/b/c.cfg`` as ``c.cfg``; what has a slash within (a rate, a range) stays."""
    return re.sub(r"(?<![\w./])/(?:[^\s/'\"]+/)+([^\s/'\"]*)", r"\1", text)


def _noted(section: Section, notes: tuple[str, ...]) -> Section:
    return replace(section, notes=(*section.notes, *notes))


def _broken_off(section: Section | None, asked: Asked, reason: str) -> Section:
    """What was measured until then, and why it is no more."""
    if section is not None:
        return replace(section, notes=(*section.notes, f"It ended early: {reason}"))
    absent = tuple(Absent(name, "", reason) for name in asked.subjects if name in _IPVS)
    return Section("uml", "", {}, (), (), absent, notes=(f"IPVS was not measured: {reason}",))


# --- what is asked for --------------------------------------------------------------------------


def check(request: Request) -> None:
    """UsageError: it names something that there is not. Looks at no machine."""
    profiles.of(request.profile, "host")
    profiles.resolved(request.measures)
    names(request, "host")


def _kernels(request: Request) -> tuple[Kernel, ...]:
    """Where is measured. ``auto``: IPVS is measured in user-mode Linux where the host has none."""
    if request.kernel != "auto":
        return (request.kernel,)
    wanted = set(names(request, "host")) & set(_IPVS)
    inside = wanted and not uml.host_has_ipvs() and machine.lacking() is None
    return ("host", "uml") if inside else ("host",)


def _of(request: Request, kernel: Kernel) -> Asked | None:
    """What is measured on a kernel; None: nothing."""
    every = [*ALWAYS, *names(request, kernel)]
    if kernel == "uml":
        every = list(uml.subjects(every))
    elif len(_kernels(request)) > 1:
        every = [name for name in every if name not in _IPVS]
    shares = _seconds(request)
    whole = request.seconds or sum(shares.values())
    asked = Asked(
        profile=request.profile,
        subjects=tuple(every),
        measures=profiles.resolved(request.measures),
        rounds=request.rounds,
        seconds=whole * shares[kernel] / sum(shares.values()),
        kernel=kernel,
    )
    return asked if every else None  # nobody whose work that kernel does


def _seconds(request: Request) -> dict[Kernel, float]:
    """What the profile gives to each kernel that is measured."""
    found = {kernel: profiles.of(request.profile, kernel) for kernel in _kernels(request)}
    shared = sum(each.seconds for each in found.values() if each.shared)
    seconds = {kernel: each.seconds for kernel, each in found.items()}
    if "host" in seconds:
        seconds["host"] -= shared
    return seconds


def names(request: Request, kernel: Kernel) -> list[str]:
    """Modes and peers by name. UsageError: unknown ones."""
    modes = _expanded(request.modes or (_ALL,), tuple(MODES))
    unknown = [name for name in modes if name not in MODES]
    if unknown:
        raise UsageError(f"no mode {', '.join(unknown)}", hint=f"there are {', '.join(MODES)}")
    peers = _expanded(request.peers or profiles.of(request.profile, kernel).peers, PEERS)
    unknown = [name for name in peers if name not in PEERS and ":" not in name]
    if unknown:
        raise UsageError(
            f"no peer {', '.join(unknown)}",
            hint=f"there are {', '.join(PEERS)}, or a class of yours as FILE.py:CLASS",
        )
    subjects.made(peers)
    return [*modes, *peers]


def _expanded(asked: Sequence[str], every: tuple[str, ...]) -> tuple[str, ...]:
    """``all``, ``none``, and a mode by its name without the variant, which stands for both."""
    found: list[str] = []
    for name in asked:
        variants = [each for each in every if each.startswith(f"{name}-")]
        match name:
            case "all":
                found += every
            case "none":
                continue
            case _ if name not in every and variants and name == "iptables":
                found += variants
            case _:
                found.append(name)
    return tuple(dict.fromkeys(found))


# --- ending early -------------------------------------------------------------------------------


@contextmanager
def ended_once() -> Iterator[None]:
    """Within, the first SIGINT, SIGTERM or SIGHUP unwinds the stack (KeyboardInterrupt, SystemExit
    with 128 and its number); from then on they are ignored to the end of the block: whoever presses
    Ctrl-C twice would leave half of it standing, or lose what was measured. For the main thread."""

    def end(number: int, frame: FrameType | None) -> None:
        for each in _ENDING:
            signal.signal(each, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
