"""One measurement: a load against a subject on a path of its own, with what it cost."""

from __future__ import annotations

import resource
import time
from collections.abc import Collection

from kproxy.bench import usage
from kproxy.bench.load import Load, Place, Result
from kproxy.bench.path import Path
from kproxy.bench.peers import Subject, running
from kproxy.bench.usage import Memory
from kproxy.core.objects import Family, Value

#: Of a relay's descriptors two go with each connection; HAProxy keeps another half of one for the
#: pipes that it may splice through, and refuses connections before it runs out.
_DESCRIPTORS_EACH = 8 / 3


class Taken(Value, frozen=True):
    """``cpu`` is the subject's CPU seconds while the load ran (``seconds``, warm-up included),
    ``memory`` its memory at the end; ``ends`` are the CPU seconds of client and pod, ``machine``
    those of everything that the machine did."""

    result: Result
    seconds: float
    cpu: float
    ends: float
    machine: float
    memory: Memory

    @property
    def others(self) -> float:
        """CPU seconds that neither subject nor ends had: kernel threads, and whatever else runs
        here. The machine's are counted in ticks of 10 ms: short loads need many rounds for it."""
        return max(0.0, self.machine - self.cpu - self.ends)

    @property
    def foreign(self) -> float:
        """How many processors had other work meanwhile. Near 0 on a quiet machine; a figure taken
        with much of it is one of that work."""
        return self.others / self.seconds


class Held(Value, frozen=True):
    """Memory of a subject ``before`` and ``after`` so many idle ``connections`` were open."""

    connections: int
    before: Memory
    after: Memory

    @property
    def each(self) -> float:
        """Bytes of the subject's own memory for each connection."""
        return (self.after.pss - self.before.pss) / self.connections


def measured(
    subject: Subject, load: Load, *, family: Family = Family.IPV4, settings: str = "tuned"
) -> Taken:
    """Run a load. Nothing that an earlier one has left is on the path."""
    with Path(settings=settings) as path, running(subject, path):
        return on(path, subject, load, family)


def on(
    path: Path,
    subject: Subject,
    load: Load,
    family: Family = Family.IPV4,
    *,
    place: Place | None = None,
) -> Taken:
    """Run a load against a subject that serves on this path, at the subject's place or another."""
    pids, ends = subject.pids(), (path.client.pid, path.pod.pid)
    before = _spent(pids, ends)
    result = path.run(load, place or subject.place(family))
    after = _spent(pids, ends)
    seconds, cpu, of_ends, machine = (late - early for early, late in zip(before, after))
    return Taken(result, seconds, cpu, of_ends, machine, usage.memory(pids))


def _spent(pids: Collection[int], ends: Collection[int]) -> tuple[float, ...]:
    """The time, and CPU seconds of the subject, of the ends, of everybody."""
    return (
        time.monotonic(),
        usage.cpu_seconds(pids),
        usage.cpu_seconds(ends),
        usage.machine_seconds(),
    )


def held(subject: Subject, wanted: int) -> Held:
    """Open ``wanted`` connections that have exchanged one request, or as many as a relay has
    descriptors for, and keep them idle."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    connections = min(wanted, int(limit / _DESCRIPTORS_EACH))
    with Path() as path, running(subject, path):
        place, sources = subject.place(Family.IPV4), path.client_addresses()
        # The first ones pay for what is made once.
        path.client.hold(10, place, sources=sources)
        before = usage.memory(subject.pids())
        path.client.hold(connections, place, sources=sources)
        after = usage.memory(subject.pids())
        path.client.release()
    return Held(connections, before, after)
