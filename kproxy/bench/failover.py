"""What clients see while a backend fails, and when the node has seen it; one measurement at a time.

Three namespaces as for every measurement (:mod:`kproxy.bench.path`), but each pod is a process of
its own, and something is done to one of them while new connections come at a steady rate.

    python -m kproxy.bench.failover failover MODE FAULT --rate RATE    # one row as JSON
    python -m kproxy.bench.failover rolling MODE --rate RATE
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path as File
from typing import Self

import msgspec

from kproxy import status
from kproxy.bench.agent import Agent
from kproxy.bench.load import Kind, Load, Lost
from kproxy.bench.ours import DRAINING, MODES, READY, Conditions, Mode
from kproxy.bench.path import PORT, Path
from kproxy.bench.peers import running
from kproxy.core.objects import Family, Value
from kproxy.errors import CheckFailed
from kproxy.health.journal import FILE, Event
from kproxy.health.journal import Kind as What
from kproxy.kernel import command
from kproxy.kernel.netns import entered

#: Of the service's check, in seconds. ``fastInterval`` is as long as the interval, so that the bar
#: of interval x fall + time-out is what it takes and not far above it. The generator's server
#: speaks HTTP: a check that only connects would not notice a process that hangs.
INTERVAL, TIMEOUT, FALL = 1.0, 0.5, 2
CHECK = (
    f"{{http: {{path: /64}}, interval: {INTERVAL:g}s, timeout: {TIMEOUT:g}s, fall: {FALL},"
    f" fastInterval: {INTERVAL:g}s}}"
)

PODS = 4
#: The last: deleting the first address of an interface would take the others with it.
VICTIM = PODS - 1

RATE = 1000.0
#: Seconds before and after the fault in which there is load. A request is lost when it has no
#: answer after ``PATIENCE``, which is longer than a SYN's first retransmission (1 s).
BEFORE, AFTER, PATIENCE = 2.0, 6.0, 3.0

#: Seconds between two looks at the daemon's status file.
_LOOK = 0.002

#: Seconds of load for a rolling replacement, more than it takes.
ROLLING = 15.0

#: Seconds that an old pod keeps serving after the rules no longer lead to it.
_DRAIN, _DRAINED_WITHIN = 0.3, 10.0


class Row(Value, frozen=True):
    """Seconds count from the fault's beginning. ``detected``: the event's time; ``in_force``: the
    end of the first sync without the endpoint. ``under_way`` requests had begun before the fault
    was complete; of those that began later ``failed`` were not answered within PATIENCE, the last
    of them began at ``window`` (0: none failed). ``gap`` is the longest time without an answer
    from anybody, ``longest`` the longest wait of a request that was answered."""

    mode: str
    fault: str
    started: int
    detected: float
    kind: str
    reason: str
    in_force: float
    under_way: int
    failed: int
    kinds: dict[str, int]
    window: float
    gap: float
    longest: float


# --- faults ------------------------------------------------------------------------------------


def kill(path: Path, pod: Agent) -> None:
    """Its process dies: its sockets are reset, and nothing listens any more."""
    os.kill(pod.pid, signal.SIGKILL)
    os.waitid(os.P_PID, pod.pid, os.WEXITED | os.WNOWAIT)


def refuse(path: Path, pod: Agent) -> None:
    """It listens no more, and lives."""
    pod.deafen()


def hang(path: Path, pod: Agent) -> None:
    """The kernel still takes connections for it, and nobody answers."""
    os.kill(pod.pid, signal.SIGSTOP)


def vanish(path: Path, pod: Agent) -> None:
    """Nobody has its address: packets are swallowed."""
    address = path.pod_place(Family.IPV4, VICTIM)[0]
    with entered(path.fd("pod")):
        command.run(["ip", "address", "del", f"{address}/24", "dev", "eth0"])


FAULTS: Mapping[str, Callable[[Path, Agent], None]] = {
    each.__name__: each for each in (kill, refuse, hang, vanish)
}


# --- one measurement ---------------------------------------------------------------------------


def failover(mode: str, fault: str, *, rate: float = RATE) -> Row:
    """One backend of :data:`PODS` fails under load."""
    subject = Mode.named(mode, check=CHECK)
    with _pods(range(PODS)) as (path, pods), running(subject, path):
        begin(path, subject, BEFORE + AFTER, rate)
        time.sleep(BEFORE)
        with _Watch(subject.state, f"{path.pod_place(Family.IPV4, VICTIM)[0]}:{PORT}") as watch:
            begun = time.monotonic_ns()
            FAULTS[fault](path, pods[VICTIM])
            complete = time.monotonic_ns()
            result = path.client.result()
        event = watch.event(begun)
    late = [each for each in result.lost if each.intended > complete]
    return Row(
        mode=mode,
        fault=fault,
        started=result.started,
        detected=event.time.timestamp() - _epoch(begun),
        kind=event.kind,
        reason=event.reason,
        in_force=watch.in_force - _epoch(begun),
        under_way=len(result.lost) - len(late),
        failed=len(late),
        kinds=_kinds(late),
        window=max(((each.intended - begun) / 1e9 for each in late), default=0.0),
        gap=result.quiet / 1e9,
        longest=result.latency.percentile(100),
    )


def begin(path: Path, subject: Mode, seconds: float, rate: float) -> None:
    """Start the load: more connections at once than may wait for PATIENCE."""
    load = Load(
        Kind.CRR,
        connections=int(2 * rate * PATIENCE),
        rate=rate,
        seconds=seconds,
        timeout=PATIENCE,
    )
    path.client.begin(load, [subject.place(Family.IPV4)], sources=path.client_addresses())


def _kinds(lost: list[Lost]) -> dict[str, int]:
    names = [f"{each.kind}{' of an open one' * each.connected}" for each in lost]
    return {name: names.count(name) for name in sorted(set(names))}


def _epoch(monotonic: int) -> float:
    return time.time() - (time.monotonic_ns() - monotonic) / 1e9


@contextmanager
def _pods(numbers: range, most: int = PODS) -> Iterator[tuple[Path, dict[int, Agent]]]:
    """A path with a process for each of these pods; one that was stopped goes on before it ends."""
    with Path(pods=most, apart=True) as path:
        pods = {number: path.serve(number) for number in numbers}
        try:
            yield path, pods
        finally:
            for pod in pods.values():
                if not pod.ended:
                    os.kill(pod.pid, signal.SIGCONT)


class _Watch:
    """Looks at the daemon's status file all the time, in a thread: when it is first without the
    endpoint."""

    def __init__(self, state: File, endpoint: str) -> None:
        self._state = state
        self._endpoint = endpoint
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.in_force = float("nan")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()

    def event(self, since: int) -> Event:
        """The first one that takes the endpoint out. CheckFailed: there is none."""
        with suppress(FileNotFoundError):
            for line in (self._state / FILE).read_bytes().splitlines():
                event = msgspec.json.decode(line, type=Event)
                if (
                    event.endpoint == self._endpoint
                    and event.kind in (What.DOWN, What.EJECTED)
                    and event.time.timestamp() >= _epoch(since)
                ):
                    return event
        raise CheckFailed(f"{self._endpoint} failed, and no event says so")

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK):
            known = status.read(self._state)
            if known is not None and any(
                each.address == self._endpoint and not each.weight
                for port in known.health
                for each in port.endpoints
            ):
                self.in_force = next(
                    family.synced_at for family in known.families if family.family == 4
                )
                return


# --- a rolling replacement ---------------------------------------------------------------------


class Rolled(Value, frozen=True):
    """What came of replacing so many pods under load, which took ``seconds``. ``gap`` and
    ``longest`` as above."""

    mode: str
    replaced: int
    seconds: float
    started: int
    failures: dict[str, int]
    gap: float
    longest: float


def rolling(
    mode: str, *, rate: float = RATE, pods: int = PODS, load_seconds: float = ROLLING
) -> Rolled:
    """Each pod gives way to a new one: the new one is ready; the old one terminates and serves;
    its connections have ended; its process ends; it is no endpoint any more."""
    subject = Mode.named(mode, check=CHECK)
    with _pods(range(pods), 2 * pods) as (path, agents):
        known: dict[int, Conditions] = dict.fromkeys(range(pods), READY)
        subject.start_with(path, known)
        try:
            begin(path, subject, load_seconds, rate)
            time.sleep(BEFORE)
            begun = time.monotonic()
            for old in range(pods):
                replace(path, subject, agents, known, old, old + pods)
            seconds = time.monotonic() - begun
            if seconds > load_seconds - BEFORE:
                raise CheckFailed(f"it took {seconds:.1f} s, longer than there was load")
            result = path.client.result()
        finally:
            subject.stop()
    return Rolled(
        mode,
        replaced=pods,
        seconds=seconds,
        started=result.started,
        failures=result.failures,
        gap=result.quiet / 1e9,
        longest=result.latency.percentile(100),
    )


def replace(
    path: Path,
    subject: Mode,
    agents: dict[int, Agent],
    known: dict[int, Conditions],
    old: int,
    new: int,
) -> None:
    """One pod gives way to a new one, by number of their addresses; ``agents`` are the processes of
    pods, ``known`` the endpoints, and both follow."""
    agents[new] = path.serve(new)
    known[new] = READY
    subject.set_endpoints(known)
    known[old] = DRAINING
    subject.set_endpoints(known)
    _drained(agents[old])
    agents.pop(old).close()
    del known[old]
    subject.set_endpoints(known)


def _drained(pod: Agent) -> None:
    """Until nobody has a connection to it, the checks aside: those are short."""
    deadline = time.monotonic() + _DRAINED_WITHIN
    time.sleep(_DRAIN)
    while pod.counters()["open"]:
        if time.monotonic() > deadline:
            raise CheckFailed(f"an old pod still has connections after {_DRAINED_WITHIN:g} s")
        time.sleep(_LOOK)


def main() -> None:
    asked = ArgumentParser(prog="python -m kproxy.bench.failover")
    asked.add_argument("what", choices=["failover", "rolling"])
    asked.add_argument("mode", choices=MODES)
    asked.add_argument("fault", choices=FAULTS, nargs="?", default="kill")
    asked.add_argument("--rate", type=float, default=RATE)
    given = asked.parse_args()
    row: Row | Rolled
    if given.what == "rolling":
        row = rolling(given.mode, rate=given.rate)
    else:
        row = failover(given.mode, given.fault, rate=given.rate)
    sys.stdout.buffer.write(msgspec.json.encode(row) + b"\n")


if __name__ == "__main__":
    main()
