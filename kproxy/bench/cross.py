"""The generator beside other people's: wrk for requests, iperf3 for streams, in paired rounds.

    python -m kproxy.bench.cross [SUBJECT ...] [--seconds S] [--rounds N] [-o json]

In each round the generator, the other tool and the other tool once more are measured one after the
other, each on a path of its own, in an order that turns. So there are two ratios: ours to the
tool's, and the tool's to its own. How far the second is from 1 is the noise of this check on this
machine.

Two clients do not do the same work for a request, and where the client is what limits, the rates
differ by that: wrk parses HTTP and asks epoll several times, which is 2.4 us of CPU for a request
on a kept connection where ours takes 1.75. What each uses is measured as well. So the two agree
when the interval of ours to theirs comes as near as the noise to somewhere between 1 (the clients
do not matter) and the ratio of their costs (nothing else does). Where the tool is more than half of
itself away from itself nearly everything would agree: then this is too noisy to tell. Status 1
unless all agree.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from functools import partial
from statistics import median

import msgspec

from kproxy.bench import rounds
from kproxy.bench.clients import (
    KEPT,
    SHORT,
    Seen,
    by_iperf3,
    by_requests,
    by_streams,
    by_wrk,
)
from kproxy.bench.load import Place
from kproxy.bench.path import Path
from kproxy.bench.peers import Subject, running
from kproxy.bench.rounds import Figure
from kproxy.bench.subjects import COMPARED, made
from kproxy.core.objects import Family, Value
from kproxy.errors import KproxyError, MachineError
from kproxy.kernel import command

#: Of the intervals; what stands for the noise where there are too few rounds for one; and the noise
#: with which nobody can be said to agree.
_LEVEL, _FEW, _NOISY = 0.95, 0.25, 0.5

OURS, THEIRS, AGAIN = "ours", "theirs", "theirs again"


#: Measures at a place of a path for so many seconds.
Ask = Callable[[Path, Place, int], Seen]


class Check(Value, frozen=True):
    """One load and both who make it. ``answers``: the generator's server is in the pod, else the
    tool brings its own."""

    name: str
    tool: str
    unit: str
    ours: Ask
    theirs: Ask
    answers: bool = True


class Found(StrEnum):
    """What a check shows, in the last column of the table."""

    AGREE = ""
    APART = "apart"
    NOISY = "too noisy"


#: The same in a sentence.
_SAID: Mapping[Found, str] = {
    Found.AGREE: "agree",
    Found.APART: "do NOT agree",
    Found.NOISY: "are too noisy to tell whether they agree",
}


class Crossed(Value, frozen=True):
    """What the rounds show: medians, and the ratio ours / theirs with its interval. ``noise`` is
    how far the tool is from itself (the wider end of that interval), ``cost`` the median ratio of
    what a request or a bit costs the clients themselves, theirs / ours."""

    subject: str
    check: str
    tool: str
    unit: str
    ours: Seen
    theirs: Seen
    ratio: float
    low: float
    high: float
    noise: float
    cost: float
    rounds: int

    @property
    def failed(self) -> int:
        return self.ours.failed + self.theirs.failed

    @property
    def found(self) -> Found:
        """Whether the two agree."""
        # Too few rounds have neither an interval nor a noise to speak of.
        few = not self.low or self.noise == float("inf")
        low, high, noise = (
            (self.ratio, self.ratio, _FEW) if few else (self.low, self.high, self.noise)
        )
        below, above = min(1.0, self.cost) / (1 + noise), max(1.0, self.cost) * (1 + noise)
        if self.failed or low > above or high < below:
            return Found.APART
        return Found.NOISY if noise > _NOISY else Found.AGREE

    @property
    def agree(self) -> bool:
        return self.found is Found.AGREE

    def __str__(self) -> str:
        return (
            f"{self.subject}, {self.check}: the generator and {self.tool} {_SAID[self.found]}:"
            f" {self.ours.rate:,.0f} and {self.theirs.rate:,.0f} {self.unit},"
            f" ratio {self.ratio:.2f} [{self.low:.2f}, {self.high:.2f}] in {self.rounds} rounds;"
            f" {self.tool} to itself within {self.noise:.2f}, its own work {self.cost:.2f} of ours"
            + (f"; FAILED: {self.failed}" if self.failed else "")
        )


def _requests(name: str, *, closes: bool) -> Check:
    ours, theirs = (partial(each, closes=closes) for each in (by_requests, by_wrk))
    return Check(name, "wrk", "1/s", ours, theirs)


def _streams(name: str, streams: int) -> Check:
    ours, theirs = (partial(each, streams=streams) for each in (by_streams, by_iperf3))
    return Check(name, "iperf3", "bit/s", ours, theirs, answers=False)


#: Every check.
CHECKS: tuple[Check, ...] = (
    _requests(f"requests on {KEPT} kept connections", closes=False),
    _requests(f"{SHORT} short connections at once", closes=True),
    _streams("one stream", 1),
    _streams("four streams", 4),
)


# --- rounds -------------------------------------------------------------------------------------


def crossed(name: str, check: Check, *, count: int, seconds: int) -> Crossed:
    """One check against one subject, in so many rounds after one that is left out. MachineError:
    the tool is not installed."""
    command.require(check.tool)
    (subject,) = made([name]).values()
    taken = rounds.take(
        lambda who: _one(check, subject, who, seconds), (OURS, THEIRS, AGAIN), rounds=count
    )
    figures = [{who: Figure(seen.rate) for who, seen in each.items()} for each in taken]
    ratio = rounds.compare(figures, OURS, THEIRS, level=_LEVEL)
    return Crossed(
        subject=subject.name,
        check=check.name,
        tool=check.tool,
        unit=check.unit,
        ours=_middle([each[OURS] for each in taken]),
        theirs=_middle([each[THEIRS] for each in taken]),
        ratio=ratio.ratio,
        low=ratio.low,
        high=ratio.high,
        noise=rounds.noise(figures, THEIRS, AGAIN, level=_LEVEL),
        cost=_costs(taken),
        rounds=len(taken),
    )


def notes(names: Sequence[str], *, count: int, seconds: int) -> Iterator[str]:
    """A sentence for each check and subject, as they come, for whoever reads the other figures; a
    tool that is missing, or a check that could not be made, is one as well. A check of a subject
    takes ``3 * (count + 1) * (seconds + 0.3)`` seconds, and a daemon's start each time."""
    for check in CHECKS:
        for name in names:
            try:
                yield f"Cross-check: {crossed(name, check, count=count, seconds=seconds)}."
            except MachineError as lacking:
                yield f"Cross-check with {check.tool} left out: {lacking}."
                break
            except KproxyError as failed:
                # Others wait for the rest of the run, which does not depend on this.
                yield f"Cross-check of {name}, {check.name}: {failed}."


def _costs(taken: Sequence[Mapping[str, Seen]]) -> float:
    """1 where one of the two is not known."""
    pairs = [(each[THEIRS].cost, each[OURS].cost) for each in taken]
    return median(theirs / ours for theirs, ours in pairs) if all(map(all, pairs)) else 1.0


def _one(check: Check, subject: Subject, who: str, seconds: int) -> Seen:
    ask = check.ours if who == OURS else check.theirs
    with Path(apart=who != OURS and not check.answers) as path, running(subject, path):
        subject.await_calm()
        return ask(path, subject.place(Family.IPV4), seconds)


def _middle(seen: Sequence[Seen]) -> Seen:
    """Medians, and all failures."""
    return Seen(
        rate=median(each.rate for each in seen),
        p50=median(each.p50 for each in seen),
        p99=median(each.p99 for each in seen),
        cost=median(each.cost for each in seen),
        failed=sum(each.failed for each in seen),
    )


# --- the command --------------------------------------------------------------------------------

_LINE = "{:15} {:38} {:>9} {:>9} {:>19} {:>6} {:>5}   {:>11} {:>11}  {}"


def shown(found: Sequence[Crossed]) -> str:
    """A table: one line for each check and subject."""
    head = (
        "subject",
        "load",
        "ours",
        "theirs",
        "ratio",
        "noise",
        "cost",
        "p50/99 us",
        "theirs",
        "",
    )
    lines = [_LINE.format(*head).rstrip()]
    for each in found:
        waits = [
            f"{1e6 * side.p50:.0f}/{1e6 * side.p99:.0f}" if side.p50 else ""
            for side in (each.ours, each.theirs)
        ]
        failed = f"FAILED {each.failed}" if each.failed else ""
        lines.append(
            _LINE.format(
                *(each.subject, f"{each.check} ({each.tool})"),
                *(_short(side.rate, each.unit) for side in (each.ours, each.theirs)),
                f"{each.ratio:.2f} [{each.low:.2f}, {each.high:.2f}]",
                *(
                    f"{each.noise:.2f}",
                    f"{each.cost:.2f}",
                    *waits,
                    failed or str(each.found),
                ),
            ).rstrip()
        )
    return "\n".join(lines)


def _short(rate: float, unit: str) -> str:
    return f"{rate / 1e9:.1f} Gb/s" if unit == "bit/s" else f"{rate:,.0f}"


def main(arguments: Sequence[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(COMPARED))
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15, help="6 or more have intervals")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    given = parser.parse_args(arguments)
    try:
        found = [
            crossed(name, check, count=given.rounds, seconds=given.seconds)
            for name in given.subjects or ["direct"]
            for check in CHECKS
        ]
    except KproxyError as failed:
        sys.stderr.write(f"kproxy.bench.cross: {failed}\n")
        return failed.exit_status
    text = msgspec.json.encode(found).decode() if given.output == "json" else shown(found)
    sys.stdout.write(text + "\n")
    return 0 if all(each.agree for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
