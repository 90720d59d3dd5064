"""The engine at the queues of its device: what it was told, and the threads that carry packets.

One engine for a family and its device, one thread for each queue. A thread ends when it is told to
or when its queue fails, which is when somebody takes the device away: then the alarm rings, and the
next sync brings everything back.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Collection, Iterable, Mapping

import msgspec

from kproxy import logs
from kproxy._fastpath import Engine, Pump, leave_flows, take_flows
from kproxy.backends.base import Finding, Outcome
from kproxy.backends.fastpath import tables
from kproxy.backends.fastpath.alarm import ALARM
from kproxy.backends.fastpath.plan import range_of
from kproxy.backends.fastpath.render import text_of
from kproxy.backends.fastpath.steer import DEVICES
from kproxy.core.objects import Family, PortName
from kproxy.core.snapshot import FastpathSettings
from kproxy.core.twin.values import EngineSettings, NodeTable, ServiceTable
from kproxy.errors import ContentError
from kproxy.kernel import tun

_log = logs.get("fastpath")

#: More threads than that wait for each other: the engine's lock is held for each batch. And no more
#: than half of the processors, for each packet is followed by what the kernel does with it, and
#: clients and servers want to run as well.
MOST_WORKERS = 4

#: Nanoseconds that a thread looks for the next packet before it sleeps. Waking it takes longer than
#: a connection's next packet, which is usually there by then.
SPIN = 20_000

#: Of the threads that carry packets. Who sends and who receives on the same processors waits for
#: them anyway: without precedence a stream loses an eighth of its speed to turns that come late.
NICE = -10

#: The engine's findings in the words of all modes, in the order of core.twin.retry.Finding.
OUTCOMES = (Outcome.REFUSED, Outcome.TIMEOUT, Outcome.UNREACHABLE, Outcome.OK)

#: Seconds between two looks whether endpoints that are gone have no flows left.
REAP = 5.0


def workers_of(settings: FastpathSettings) -> int:
    """Threads of a family, each with its queue."""
    return settings.workers or min(MOST_WORKERS, max(1, (os.cpu_count() or 1) // 2))


class Carrier:
    """One family's engine, and what it was told. Made by the backend, in its threads.

    ``seed`` are 16 bytes that decide which endpoint a client gets, the same everywhere.
    """

    def __init__(self, family: Family, settings: FastpathSettings, seed: bytes) -> None:
        self.family = family
        self.engine: Engine = tables.make_engine(_engine_settings(settings, seed))
        self._workers = workers_of(settings)
        self._pumps: list[Pump] = []
        self._threads: list[threading.Thread] = []
        self._queues: list[int] = []
        self._ending = False
        self._numbers: dict[PortName, int] = {}
        self._services: dict[PortName, ServiceTable] = {}
        self._retired: dict[int, PortName] = {}
        self.node: NodeTable | None = None
        self.pods: tuple[str, ...] = ()

    # --- threads ---

    @property
    def running(self) -> bool:
        """Whether every thread is at its queue."""
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        """Open the queues of the device, which is made if it is not there, and begin."""
        self.stop()
        self._queues = tun.open_queues(DEVICES[self.family], self._workers)
        self._ending = False
        for number, queue in enumerate(self._queues):
            pump = Pump(self.engine, queue, spin=SPIN, keeps_time=number == 0)
            thread = threading.Thread(
                target=self._work,
                args=(pump,),
                name=f"{DEVICES[self.family]}-{number}",
                daemon=True,
            )
            self._pumps.append(pump)
            self._threads.append(thread)
            thread.start()

    def _work(self, pump: Pump) -> None:
        take_precedence(threading.get_native_id())
        failed = pump.run()
        if not self._ending:
            _log.warning("a queue has ended", device=DEVICES[self.family], why=os.strerror(failed))
            ALARM.ring()

    def stop(self) -> None:
        """No packet is taken any more. The device stays, without a carrier."""
        self._ending = True
        for pump in self._pumps:
            pump.stop()
        for thread in self._threads:
            thread.join()
        for queue in self._queues:
            os.close(queue)
        self._pumps, self._threads, self._queues = [], [], []

    # --- tables ---

    @property
    def services(self) -> Mapping[PortName, ServiceTable]:
        """What is in force."""
        return self._services

    def commit(
        self, changed: Mapping[PortName, ServiceTable], removed: Collection[PortName]
    ) -> None:
        """Put tables in force, all at once. ContentError when there is no room for them."""
        numbers = {name: self._number(name) for name in changed}
        gone = [self._numbers[name] for name in removed if name in self._numbers]
        try:
            tables.commit(
                self.engine,
                {numbers[name]: table for name, table in changed.items()},
                gone,
                time.monotonic_ns(),
            )
        except OverflowError as full:
            raise ContentError(f"no room in the engine: {full}") from full
        self._services = {**self._services, **changed}
        for name in removed:
            self._services.pop(name, None)
            if name in self._numbers:
                self._retired[self._numbers.pop(name)] = name

    def _number(self, name: PortName) -> int:
        if name not in self._numbers:
            # A number is free when no flow of its last service is left.
            free = next((n for n in self._retired if not self.engine.known(n)), None)
            if free is not None:
                del self._retired[free]
            else:
                free = len(self._numbers) + len(self._retired)
            self._numbers[name] = free
        return self._numbers[name]

    def leave(self) -> tuple[bytes, tuple[tuple[int, PortName], ...]]:
        """All flows and affinities, and the numbers of the service ports that they speak of."""
        names = {**self._retired, **{number: name for name, number in self._numbers.items()}}
        return leave_flows(self.engine, time.monotonic_ns()), tuple(sorted(names.items()))

    def take(self, records: bytes, names: Iterable[tuple[int, PortName]]) -> int:
        """What another process left, as :meth:`leave` gives it, when the tables of now are in
        force; how many flows and affinities there were. Flows of service ports that are gone have
        their time to drain as well."""
        numbers = {}
        for number, name in names:
            known = name in self._numbers
            numbers[number] = self._number(name)
            if not known:
                self._retired[self._numbers.pop(name)] = name
        return take_flows(self.engine, records, numbers, time.monotonic_ns())

    def set_node(self, node: NodeTable, pods: tuple[str, ...]) -> None:
        """``pods`` are ranges beside those that ``node`` names."""
        ranges = (*node.pods, *map(range_of, pods))
        tables.set_node(self.engine, msgspec.structs.replace(node, pods=ranges))
        self.node, self.pods = node, pods

    def reap(self) -> float | None:
        """Forget endpoints that are gone; seconds to the next look, None: none is left."""
        return REAP if self.engine.reap() else None

    # --- figures ---

    def figures(self) -> dict[str, int]:
        """What all threads have carried."""
        whole: dict[str, int] = {}
        for pump in self._pumps:
            for name, count in pump.figures().items():
                whole[name] = whole.get(name, 0) + count
        return whole

    def findings(self) -> list[Finding]:
        """What first SYNs told of endpoints since this was last asked; what they told of services
        that are gone is dropped. For any thread."""
        told = self.engine.take_verdicts()
        if not told:
            return []
        names = {number: name for name, number in list(self._numbers.items())}
        return [
            Finding(
                names[number],
                text_of(place[:-2]),
                int.from_bytes(place[-2:]),
                OUTCOMES[found],
            )
            for number, place, found in told
            if number in names
        ]

    def numbers(self) -> Iterable[tuple[PortName, int]]:
        """Service ports in force, with the engine's numbers of them."""
        return tuple(self._numbers.items())


def take_precedence(thread: int) -> None:
    """For a thread, and for those that it makes from now on."""
    try:
        os.setpriority(os.PRIO_PROCESS, thread, NICE)
    except PermissionError:
        _log.info("packets are carried without precedence", why="CAP_SYS_NICE is not there")


def _engine_settings(settings: FastpathSettings, seed: bytes) -> EngineSettings:
    return EngineSettings(
        flow_key=secrets.token_bytes(16),
        seed=seed,
        max_flows=settings.max_flows,
        drain_seconds=int(settings.drain_seconds),
    )
