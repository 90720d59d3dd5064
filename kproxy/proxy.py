"""One node's proxy, without a clock: tracker → planner → syncer for each family it serves.

:class:`NodeProxy` acts in the network namespace of the thread that calls it; the two families are
synced side by side, because most of a sync is waiting for the tool. :mod:`kproxy.daemon` says when.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kproxy import logs
from kproxy.backends import registry
from kproxy.backends.base import Finding
from kproxy.config import Config
from kproxy.core.events import Delta
from kproxy.core.health.book import Book
from kproxy.core.health.values import Observation
from kproxy.core.objects import Family, Node
from kproxy.core.settings import mode_settings, node_settings, primary_family
from kproxy.core.snapshot import Snapshot
from kproxy.core.tracker import Changes, Counts, Tracker
from kproxy.errors import KernelError, MachineError
from kproxy.family import FamilyProxy, SyncRecord
from kproxy.kernel.addresses import host_addresses
from kproxy.others import Others
from kproxy.status import FamilyStatus

if TYPE_CHECKING:
    from kproxy.backends.fastpath.figures import EngineFigures
    from kproxy.backends.userspace.door import RelayDoor

_log = logs.get("proxy")


class NodeProxy:
    """Knows the cluster's objects and keeps the kernel in step with them."""

    def __init__(self, config: Config, node_name: str, choice: registry.Choice) -> None:
        self.choice = registry.resolve(choice)
        #: Of the last sync, one for each family.
        self.records: tuple[SyncRecord, ...] = ()
        #: Whether the last sync left nothing of what others were known to have changed.
        self.mended = False
        self._started = time.time()
        self._config = config
        self._node_name = node_name
        self._tracker = Tracker()
        self._book = Book()
        self._addresses: tuple[str, ...] = ()
        self._families: tuple[FamilyProxy, ...] = ()
        self._skipped: tuple[FamilyStatus, ...] = ()
        self._pool = ThreadPoolExecutor(len(Family), thread_name_prefix="family")

    def begin(self, first: Delta) -> None:
        """Take in the first listing and find the families that this machine can serve.

        A family that it cannot is left out with a warning; MachineError when it is the node's
        primary one, or when none is left.
        """
        self._tracker.apply(first)
        self._addresses = host_addresses()
        primary = primary_family(self._config, self.node, self._addresses)
        served, skipped = [], []
        for family in Family:
            asked = mode_settings(self._config, family)
            backend = registry.create(self.choice, family, asked)
            try:
                backend.probe()
            except MachineError as lacking:
                if family is primary:
                    raise
                _log.warning("family is not served", family=int(family), why=lacking)
                skipped.append(FamilyStatus(family=int(family), skipped=str(lacking)))
            else:
                served.append(FamilyProxy(family, backend))
        self._families, self._skipped = tuple(served), tuple(skipped)
        self.others = Others(self.choice, self.served, self._config.ipvs.exclude_cidrs)

    def believe(self, observations: Iterable[Observation]) -> None:
        """Before the first sync: what was known of endpoints' health."""
        self._book.restore(observations)

    def keep(self, folder: Path) -> None:
        """Before the first sync: where modes that carry packets keep what outlives the process."""
        for family in self._families:
            family.keep(folder)

    def sync(
        self,
        deltas: Iterable[Delta] = (),
        *,
        observations: Iterable[Observation] = (),
        full: bool = False,
        mends: bool = False,
        moved: bool = False,
    ) -> bool:
        """Take changes in and bring the kernel to them, in every family. True when all went well.

        ``observations`` are news of endpoints' health, each later than those before.

        ``full``: addresses and kernel are read and everything is compared; ``mends``: that is done
        where others were at work; ``moved``: the addresses are read.
        """
        for delta in deltas:
            self.take_in(delta)
        mends = self.others.before_sync() or mends or full
        harm = self.others.harm if mends else {}
        # Who changed something anywhere may have changed anything.
        full = full or harm is None
        if full or moved:
            self._read_addresses()
        changes = self._changes(observations)
        node = self.node
        jobs = [
            self._pool.submit(
                family.sync,
                self._tracker,
                node_settings(self._config, node, self._node_name, family.family, self._addresses),
                changes,
                full,
                (harm or {}).get(family.family),
                self._addresses,
                self._book,
            )
            for family in self._families
        ]
        # Every job is waited for, whatever happened in another one.
        self.records = tuple([job.result() for job in jobs])
        ok = all(record.ok for record in self.records)
        self.mended = ok and mends
        self.others.after_sync(
            [record.transactions for record in self.records],
            {each.family: each.entries for each in self.records if each.entries is not None},
            ok=ok,
            mended=mends,
        )
        return ok

    def _changes(self, observations: Iterable[Observation]) -> Changes:
        """All that may be planned otherwise now."""
        judged = self._book.hear(observations)
        changes = self._tracker.take()
        if not judged:
            return changes
        return msgspec.structs.replace(changes, services=changes.services | judged)

    @property
    def witnesses(self) -> bool:
        """Whether the mode sees which endpoints do not take connections."""
        return any(family.witnesses for family in self._families)

    def findings(self) -> list[Finding]:
        """What connections told of endpoints, in a mode that sees it. For any thread."""
        return [finding for family in self._families for finding in family.findings()]

    def tend(self) -> None:
        """Between syncs: let every family finish what :attr:`tend_delay` told of."""
        for job in [self._pool.submit(family.tend) for family in self._families]:
            job.result()

    @property
    def tend_delay(self) -> float | None:
        """Seconds after which to call :meth:`tend`, sync or not; None: nothing waits for it."""
        delays = [family.tend_delay for family in self._families]
        return min((delay for delay in delays if delay is not None), default=None)

    def leave(self) -> int:
        """Another mode's rules stand beside ours: what is carried here goes on without them; how
        many connections are the kernel's from now on."""
        return sum([job.result() for job in [self._pool.submit(f.leave) for f in self._families]])

    def take_in(self, delta: Delta) -> None:
        """Know of a change; the next sync brings it to the kernel."""
        for family in self._families:
            family.note_triggers(self._tracker, delta, self._started)
        self._tracker.apply(delta)

    def _read_addresses(self) -> None:
        """Those known before stay in force when the kernel does not answer."""
        try:
            self._addresses = host_addresses()
        except KernelError as refused:
            _log.warning("addresses are not known anew", why=refused)

    @property
    def node(self) -> Node | None:
        """The Node that this process stands for, when it is known."""
        return self._tracker.node(self._node_name)

    @property
    def served(self) -> tuple[Family, ...]:
        """The families that this machine serves."""
        return tuple(family.family for family in self._families)

    @property
    def doors(self) -> tuple[RelayDoor, ...]:
        """Of the families that are carried by a relay of ours."""
        doors = (family.door for family in self._families)
        return tuple([door for door in doors if door is not None])

    @property
    def engines(self) -> tuple[EngineFigures, ...]:
        """What packet engines have counted, of the families that are carried by one."""
        return tuple([each for family in self._families for each in family.engine_figures()])

    @property
    def plans(self) -> tuple[tuple[Snapshot, Any], ...]:
        """Of each family what is in force: the plan, and what the mode made of it."""
        return tuple(family.in_force for family in self._families if family.in_force is not None)

    @property
    def seen(self) -> Counts:
        """How many changes of objects were ever taken in."""
        return self._tracker.total

    @property
    def statuses(self) -> tuple[FamilyStatus, ...]:
        """Of every family, served or skipped."""
        both = (*(family.status for family in self._families), *self._skipped)
        return tuple(sorted(both, key=lambda status: status.family))

    @property
    def refusals(self) -> tuple[str, ...]:
        """What the plans and the kernel leave out, without repeats."""
        return tuple(dict.fromkeys(line for one in self._families for line in one.refusals))

    @property
    def ready(self) -> bool:
        """Every family that is served has had a good sync."""
        return all(family.status.synced_at for family in self._families)

    @property
    def objects(self) -> dict[str, int]:
        """How many objects are known, by kind."""
        return {
            "services": len(self._tracker.services()),
            "slices": sum(1 for _ in self._tracker.slices()),
            "nodes": len(self._tracker.nodes()),
        }

    @property
    def totals(self) -> dict[str, int]:
        """What is in force, over all families."""
        return {
            "service ports": sum(one.status.service_ports for one in self._families),
            "endpoints": sum(one.status.endpoints for one in self._families),
        }

    @property
    def flows_retry_delay(self) -> float:
        """Seconds after which to sync again because stale flows may be left; 0: none are."""
        return max((family.flows_retry_delay for family in self._families), default=0.0)

    @property
    def error(self) -> str:
        """Why the last sync failed, of each family where it did."""
        lines = (f"IPv{one.family}: {one.error}" for one in self.statuses if one.error)
        return "; ".join(lines)

    def rest(self) -> None:
        """Nothing is synced or watched any more; the rules stay, and what is carried goes on."""
        self._pool.shutdown()
        if self._families:
            self.others.close()

    def close(self) -> None:
        """End all of it; the rules stay."""
        self.rest()
        for door in self.doors:
            door.close()
        for family in self._families:
            family.close()
