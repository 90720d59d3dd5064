"""``python -m kproxy.bench.inside ASKED``: the conductor in the kernel that this process runs on.

What :mod:`kproxy.bench.uml` starts in user-mode Linux. ASKED is a
:class:`~kproxy.bench.profiles.Asked` as JSON. Standard output has one line of JSON for each thing
that is said (:class:`Line`), and nothing else; standard error is for people: an error is its last
line.
"""

from __future__ import annotations

import os
import platform
import sys
import time

import msgspec

from kproxy.bench import profiles
from kproxy.bench.conductor import Conductor, Step
from kproxy.bench.profiles import Asked
from kproxy.bench.results import Section
from kproxy.bench.subjects import parted
from kproxy.core.objects import Value
from kproxy.errors import KproxyError

#: Seconds between two sections that are said while a group goes on: each is a few hundred kB, and
#: to write them is the machine's own work.
_EVERY = 5.0


class Line(Value, frozen=True, omit_defaults=True):
    """``clock`` is CLOCK_MONOTONIC (s) when it was written: of short lines, since long ones take
    their time. ``section`` is all that was measured so far, and when ``whole`` all that will be."""

    clock: float | None = None
    step: Step | None = None
    section: Section | None = None
    whole: bool = False


class Teller:
    """Conducts what is asked for, and says what comes of it on a descriptor."""

    def __init__(self, asked: Asked, out: int) -> None:
        self._out = out
        there, _ = parted(asked.subjects)
        self._subjects = {name: subject.version() for name, subject in there.items()}
        seconds = asked.seconds
        if seconds is None:
            seconds = profiles.of(asked.profile, asked.kernel).seconds
        self._conductor = Conductor(profiles.jobs(asked), seconds=seconds, told=self._step)
        self._last = time.monotonic()

    def run(self) -> None:
        """Measure; the last line has the whole section."""
        self._say(Line(time.monotonic()))
        self._conductor.run()
        self._say(Line(time.monotonic()))
        self._say(Line(section=self._section(), whole=True))

    def _step(self, step: Step) -> None:
        self._say(Line(time.monotonic(), step))
        late = step.kind == "round" and time.monotonic() >= self._last + _EVERY
        if step.kind == "ended" or late:
            self._say(Line(section=self._section()))
            self._last = time.monotonic()

    def _section(self) -> Section:
        return self._conductor.section("uml", platform.release(), self._subjects)

    def _say(self, line: Line) -> None:
        left = msgspec.json.encode(line) + b"\n"
        while left:
            left = left[os.write(self._out, left) :]


def main() -> int:
    # What is measured may print: only lines of ours are to be on standard output.
    out = os.dup(1)
    os.dup2(2, 1)
    try:
        Teller(msgspec.json.decode(sys.argv[1], type=Asked), out).run()
    except KproxyError as error:
        print(f"kproxy: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
