"""One family's part of a node's proxy: plan, bring the kernel to the plan, clean flows, tell how it
went. It acts in the network namespace of the thread that calls it; :mod:`kproxy.proxy` puts the two
families together.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

from kproxy import logs
from kproxy.backends import registry
from kproxy.backends.base import (
    Applied,
    Backend,
    Counting,
    Finding,
    Judging,
    Keeping,
    Leaving,
    Scope,
    Tending,
    Witnessing,
)
from kproxy.backends.syncer import Syncer
from kproxy.core.events import Delta
from kproxy.core.health.book import Book
from kproxy.core.objects import EndpointSlice, Family, ObjectKey, Value
from kproxy.core.planner import Planner
from kproxy.core.snapshot import NodeSettings, Snapshot
from kproxy.core.tracker import Changes, Tracker
from kproxy.errors import ApplyError, CommandError, KproxyError
from kproxy.flows import Cleaned, FlowCleaner
from kproxy.status import FamilyStatus

if TYPE_CHECKING:
    from kproxy.backends.fastpath.figures import EngineFigures
    from kproxy.backends.userspace.door import RelayDoor

_log = logs.get("proxy")

#: Seconds to the next try when a backend could not finish what it has begun.
TEND_RETRY = 10.0


class SyncRecord(Value, frozen=True):
    """How one sync of one family went.

    ``at`` is when it ended (seconds since the epoch), ``seconds`` how long it took. ``full``: the
    kernel was read and everything compared. ``refused``: the kernel did not take a transaction.
    ``tables`` counts what was written, by table. ``latencies`` are the seconds from a change in
    the cluster to the kernel's acknowledgement, one for each slice that says when it changed.
    ``foreign``: the kernel was found changed by others, and was mended. ``transactions``: what the
    kernel committed, None when that is not known. ``entries``: how large the tables are then, where
    the mode counts them. ``cleaned`` is the look at the table of tracked flows that followed, None
    when there was none.
    """

    family: Family
    ok: bool
    at: float
    seconds: float
    full: bool
    refused: bool = False
    tables: tuple[tuple[str, int], ...] = ()
    latencies: tuple[float, ...] = ()
    foreign: bool = False
    transactions: int | None = None
    entries: Mapping[str, int] | None = None
    cleaned: Cleaned | None = None


@runtime_checkable
class Carrying(Protocol):
    """A backend with a packet engine of its own."""

    def figures(self) -> tuple[EngineFigures, ...]: ...


@runtime_checkable
class Relaying(Protocol):
    """A backend that carries connections itself. What it serves with can be handed to another
    process (:mod:`kproxy.succession`), and outlives no daemon."""

    @property
    def relay(self) -> RelayDoor:
        """The door to its relay."""


class FamilyProxy:
    """One family: plans, syncs, and keeps its own status."""

    def __init__(self, family: Family, backend: Backend[Any, Any, Any]) -> None:
        self.family = family
        self.status = FamilyStatus(family=int(family))
        self.refusals: tuple[str, ...] = ()
        self.in_force: tuple[Snapshot, Any] | None = None
        self._planner = Planner(family)
        self._syncer = Syncer(backend)
        judge = backend.flow_judge() if isinstance(backend, Judging) else None
        self._flows = FlowCleaner(family, backend.mode, judge)
        self._backend = backend
        #: Seconds after which to call :meth:`tend`, sync or not; None: nothing waits for it.
        self.tend_delay: float | None = None
        self._lost_plan = False
        #: Slice -> when the oldest change happened that the kernel has not acknowledged.
        self._triggers: dict[ObjectKey, float] = {}

    @property
    def door(self) -> RelayDoor | None:
        """To the relay, in modes that have one."""
        return self._backend.relay if isinstance(self._backend, Relaying) else None

    def engine_figures(self) -> tuple[EngineFigures, ...]:
        """What the packet engine has counted, in a mode that has one which runs."""
        return self._backend.figures() if isinstance(self._backend, Carrying) else ()

    @property
    def witnesses(self) -> bool:
        """Whether :meth:`findings` will ever give something."""
        return isinstance(self._backend, Witnessing)

    def findings(self) -> list[Finding]:
        """What connections told of endpoints, in a mode that sees it. For any thread."""
        return self._backend.findings() if isinstance(self._backend, Witnessing) else []

    def keep(self, folder: Path) -> None:
        """See :class:`kproxy.backends.base.Keeping`."""
        if isinstance(self._backend, Keeping):
            self._backend.keep(str(folder))

    def close(self) -> None:
        """The same."""
        if isinstance(self._backend, Keeping):
            self._backend.close()

    def leave(self) -> int:
        """See :class:`kproxy.backends.base.Leaving`; 0 in modes that need it not."""
        return self._backend.leave() if isinstance(self._backend, Leaving) else 0

    def note_triggers(self, tracker: Tracker, delta: Delta, since: float) -> None:
        """Remember when the changes of slices happened; what is older than ``since`` does not
        count: a proxy that was not there yet could not be late."""
        for obj in delta.upserted:
            if not isinstance(obj, EndpointSlice) or obj.trigger <= since:
                continue
            known = (
                old.trigger for old in tracker.slices_of(obj.service_key) if old.key == obj.key
            )
            if obj.family is self.family and obj.trigger not in known:
                self._triggers.setdefault(obj.key, obj.trigger)
        for ref in delta.deleted:
            if ref.kind == "EndpointSlice":
                self._triggers.pop(ref.key, None)

    def sync(
        self,
        tracker: Tracker,
        settings: NodeSettings,
        changes: Changes,
        full: bool,
        scope: Scope | None,
        addresses: tuple[str, ...],
        book: Book | None = None,
    ) -> SyncRecord:
        """Plan, bring the kernel to the plan, clean flows. ``scope``: where others were at work.
        ``addresses``: all of this host. ``book``: what is known of endpoints' health."""
        if scope is not None:
            self._syncer.forget(scope)
        record = self._sync_rules(tracker, settings, changes, full, addresses, book)
        found, self._syncer.found = self._syncer.found, None
        if found is not None and not self._flows.knows_its_past:
            self._flows.remember(lambda: registry.former(self._syncer.backend.mode, found))
        if not record.ok:
            # What is in force is not known: the next good sync finds what there is to tend.
            self.tend_delay = None
            return record
        self.tend()
        # Rules may have been out of force.
        cleaned = self._flows.clean(all_of_it=record.full or scope is not None)
        return msgspec.structs.replace(record, cleaned=cleaned)

    def tend(self) -> None:
        """Let the backend finish what it has begun; a failure is told and tried again."""
        if not isinstance(self._backend, Tending):
            return
        try:
            self.tend_delay = self._backend.tend()
        except KproxyError as refused:
            _log.warning("not finished", family=int(self.family), why=refused)
            self.tend_delay = TEND_RETRY
        except Exception as fault:  # noqa: BLE001
            # As in a sync: a fault of ours must not end the proxy of a node.
            _log.fault("tending broke off", fault, family=int(self.family))
            self.tend_delay = TEND_RETRY

    @property
    def flows_retry_delay(self) -> float:
        """Seconds after which to sync for the sake of flows; 0: they are clean."""
        return self._flows.retry_delay

    def _sync_rules(
        self,
        tracker: Tracker,
        settings: NodeSettings,
        changes: Changes,
        full: bool,
        addresses: tuple[str, ...],
        book: Book | None = None,
    ) -> SyncRecord:
        begun = time.monotonic()
        if full:
            self._syncer.forget()
        reads = self._syncer.reads
        try:
            # A planner that broke off has not taken its changes in: everything is planned anew.
            wanted = None if self._lost_plan else changes
            self._lost_plan = True
            snapshot = self._planner.plan(tracker, settings, wanted, book)
            self._lost_plan = False
            self._flows.plan(snapshot, addresses)
            applied = self._syncer.sync(snapshot)
        except KproxyError as refused:
            self._failed(str(refused))
            refusal = isinstance(refused, ApplyError | CommandError)
            return self._record(begun, ok=False, full=reads, refused=refusal)
        except Exception as fault:  # noqa: BLE001
            # A fault of ours must not end the proxy of a node: what is in force stays in force,
            # and the next try starts from nothing.
            _log.fault("sync broke off", fault, family=int(self.family))
            self._syncer.forget()
            self._failed(f"{type(fault).__name__}: {fault}")
            return self._record(begun, ok=False, full=reads)
        self.in_force = (snapshot, self._syncer.desired)
        self._synced(snapshot, applied, time.monotonic() - begun)
        return self._record(
            begun,
            ok=True,
            full=applied.full,
            # The good ones among some that were refused do not say what those left.
            refused=applied.transactions is None,
            tables=applied.tables,
            foreign=applied.foreign,
            transactions=applied.transactions,
            entries=self._backend.entries if isinstance(self._backend, Counting) else None,
        )

    def _record(self, begun: float, *, ok: bool, full: bool, **more: Any) -> SyncRecord:
        at = time.time()
        latencies: tuple[float, ...] = ()
        if ok:
            # Clocks of two machines: a change from the future took no time.
            latencies = tuple(max(0.0, at - trigger) for trigger in self._triggers.values())
            self._triggers.clear()
        seconds = time.monotonic() - begun
        return SyncRecord(self.family, ok, at, seconds, full, latencies=latencies, **more)

    def _failed(self, reason: str) -> None:
        failures = self.status.failures + 1
        self.status = msgspec.structs.replace(self.status, failures=failures, error=reason)
        _log.error("sync failed", family=int(self.family), failures=failures, why=reason)

    def _synced(self, snapshot: Snapshot, applied: Applied, seconds: float) -> None:
        self.refusals = (
            *map(str, snapshot.conflicts),
            *(f"Service port {name}: {why}" for name, why in applied.refused),
        )
        self.status = FamilyStatus(
            family=int(self.family),
            generation=snapshot.generation,
            service_ports=len(snapshot.ports),
            endpoints=snapshot.endpoint_count,
            synced_at=time.time(),
            seconds=seconds,
            written=applied.written,
            full=applied.full,
        )
        _log.detail(
            "synced",
            family=int(self.family),
            seconds=seconds,
            generation=snapshot.generation,
            ports=len(snapshot.ports),
            written=applied.written,
            full=applied.full,
        )
