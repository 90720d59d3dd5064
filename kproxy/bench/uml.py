"""A comparison's second section: the kernel's modes with IPVS, in user-mode Linux.

Where this host has no IPVS, one machine is booted and the same conductor runs in it, for those
subjects whose work a kernel does: its own iptables beside its own IPVS, with direct routing in it
as their base. Nothing of the section is compared with the host's figures: there is one processor,
and a system call takes several of the host's.

::

    here: section() ── Boot ── python -m kproxy.bench.inside ASKED    (there: the conductor)
                 ◄── a line of JSON for each step, and for what has been measured so far ──

Every line carries the machine's clock. The kernel there reads this host's clock instead of counting
ticks; that it did so is checked in every run (:class:`Clocks`), since each figure rests on it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import msgspec
from msgspec.structs import replace

from kproxy.bench.conductor import Step
from kproxy.bench.helper import ROOT
from kproxy.bench.inside import Line
from kproxy.bench.profiles import Asked
from kproxy.bench.results import Section
from kproxy.bench.subjects import AGAIN, DIRECT
from kproxy.core.objects import Family
from kproxy.errors import CheckFailed, KproxyError, LabError, MachineError
from kproxy.kernel import netns
from kproxy.kernel.ipvs import Ipvs
from kproxy.lab.uml.boot import Boot

#: Who is measured there. Its nf_tables has no chain type for NAT, so neither iptables-nft nor
#: nftables can be; what processes do (userspace, fastpath, relays) the host measures better.
SUBJECTS = (DIRECT, AGAIN, "iptables-legacy", "ipvs", "ipvsadm")

#: What a reader of the section has to know.
NOTES = (
    (
        "User-mode Linux is a kernel in a process: its figures are to be compared with each other "
        "and with none of the host's."
    ),
    (
        "It has one processor, so client, proxy and pod take turns, and its system calls take "
        "several of the host's each."
    ),
    (
        "Its clock is the host's (checked in this run). CPU seconds are what its own kernel counts "
        "of its one processor, which is a process of the host."
    ),
)

#: How far two clocks may be apart: a share of the time that both have measured, and the seconds
#: that a line may be on its way.
_SKEW, _DELAY = 0.01, 0.25

#: Seconds that a machine takes to boot, which are not counted; those beyond are.
BOOTING = 5.0

#: Seconds in which the machine may say nothing: no turn takes as long.
PATIENCE = 900.0


def host_has_ipvs() -> bool:
    """Whether this kernel has IPVS: then its figures belong to the host's section."""
    try:
        with netns.fresh(), Ipvs(Family.IPV4):
            return True
    except KproxyError:
        return False


def subjects(wanted: Iterable[str]) -> tuple[str, ...]:
    """Those of ``wanted`` that are measured there, with direct routing; () when these are all."""
    found = frozenset(wanted) & frozenset(SUBJECTS) - {DIRECT, AGAIN}
    return tuple(name for name in SUBJECTS if found and name in {DIRECT, AGAIN, *found})


class Clocks:
    """This host's clock and the machine's, read at the same moments."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        #: Between the first and the last reading.
        self._here = self._there = 0.0

    def read(self, here: float, there: float) -> None:
        """Both monotonic, in seconds."""
        if self._first is None:
            self._first = here, there
        self._here, self._there = here - self._first[0], there - self._first[1]

    def check(self) -> None:
        """CheckFailed: the machine's seconds are none."""
        if abs(self._there - self._here) > _SKEW * self._here + _DELAY:
            raise CheckFailed(
                f"the clock of user-mode Linux measured {self._there:.2f} s where "
                f"{self._here:.2f} s went by: its figures mean nothing",
                hint="run again on a quieter machine",
            )


class Listener:
    """Makes sense of what the machine writes."""

    def __init__(self, told: Callable[[Step], None], kept: Callable[[Section], None]) -> None:
        self.clocks = Clocks()
        self.whole = False
        self.section: Section | None = None
        self.words = b""
        self.heard = threading.Event()
        self._told = told
        self._kept = kept
        self._line = b""

    def take(self, stream: int, data: bytes) -> None:
        """A piece of its standard output or error."""
        here = time.monotonic()
        self.heard.set()
        if stream != 1:
            self.words += data
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._hear(msgspec.json.decode(line, type=Line), here)

    def _hear(self, said: Line, here: float) -> None:
        if said.clock is not None:
            self.clocks.read(here, said.clock)
        if said.step is not None:
            self._told(said.step)
        if said.section is not None:
            self.section = replace(said.section, notes=(*NOTES, *said.section.notes))
            try:
                self.clocks.check()
            except CheckFailed:
                # What was kept before was taken by the same clock.
                self._kept(replace(self.section, rows=()))
                raise
            self.whole = said.whole
            self._kept(self.section)


def section(
    asked: Asked,
    *,
    told: Callable[[Step], None] = lambda step: None,
    kept: Callable[[Section], None] = lambda section: None,
) -> Section:
    """Boot a machine, measure what is asked for in it (:func:`subjects` of it), end it.

    ``told`` hears each step of the conductor there, ``kept`` gets what it has measured so far,
    again and again: whoever is interrupted, or gets an error, has that. MachineError: this host
    cannot run a machine; LabError: it ended too early; CheckFailed: its clock was wrong.
    """
    asked = replace(asked, kernel="uml", subjects=subjects(asked.subjects))
    begun = time.monotonic()
    with Boot() as boot:
        asked = _late(asked, time.monotonic() - begun)
        words = msgspec.json.encode(asked).decode()
        argv = [sys.executable, "-P", "-m", "kproxy.bench.inside", words]
        listener = Listener(told, kept)
        with watched(listener.heard, boot.abandon):
            status = boot.run(argv, take=listener.take, directory=ROOT)
    if status or not listener.whole or listener.section is None:
        raise _broken_off(status, listener.words)
    return listener.section


def _late(asked: Asked, booted: float) -> Asked:
    """With less time where the machine took long to boot."""
    late = booted - BOOTING
    if asked.seconds is None or late <= 0:
        return asked
    return replace(asked, seconds=max(1.0, asked.seconds - late))


@contextmanager
def watched(heard: threading.Event, give_up: Callable[[], None]) -> Iterator[None]:
    """Within, a machine that says nothing for too long is given up (LabError). ``heard`` is set
    whenever it says something."""
    over, given_up = threading.Event(), threading.Event()

    def watch() -> None:
        while heard.wait(PATIENCE):
            heard.clear()
            if over.is_set():
                return
        given_up.set()
        give_up()

    thread = threading.Thread(target=watch, name="patience", daemon=True)
    thread.start()
    try:
        yield
    except LabError:
        if given_up.is_set():
            raise LabError(f"user-mode Linux has said nothing for {PATIENCE:g} s") from None
        raise
    finally:
        over.set()
        heard.set()
        thread.join()


def _broken_off(status: int, words: bytes) -> KproxyError:
    """The error that it ended with, which its last line tells."""
    lines = words.decode(errors="replace").strip().splitlines()
    why = lines[-1].removeprefix("kproxy: ") if lines else f"it ended with status {status}"
    kind = MachineError if status == MachineError.exit_status else LabError
    return kind(f"in user-mode Linux: {why}")
