"""One node's proxy, without a clock: tracker → planner → syncer for each family it serves.

:class:`NodeProxy` acts in the network namespace of the thread that calls it; the two families are
synced side by side, because most of a sync is waiting for the tool. :mod:`kproxy.daemon` says when.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from kproxy import logs
from kproxy.backends import registry
from kproxy.backends.base import Applied, Backend, Syncer
from kproxy.config import Config
from kproxy.core.events import Delta
from kproxy.core.objects import Family
from kproxy.core.planner import Planner
from kproxy.core.settings import node_settings, primary_family
from kproxy.core.snapshot import NodeSettings, Snapshot
from kproxy.core.tracker import Changes, Tracker
from kproxy.errors import KernelError, KproxyError, MachineError
from kproxy.kernel.addresses import host_addresses
from kproxy.status import FamilyStatus

_log = logs.get("proxy")


class NodeProxy:
    """Knows the cluster's objects and keeps the kernel in step with them."""

    def __init__(self, config: Config, node_name: str, choice: registry.Choice) -> None:
        self.choice = registry.resolve(choice)
        self._config = config
        self._node_name = node_name
        self._tracker = Tracker()
        self._addresses: tuple[str, ...] = ()
        self._families: tuple[_FamilyProxy, ...] = ()
        self._skipped: tuple[FamilyStatus, ...] = ()
        self._pool = ThreadPoolExecutor(len(Family), thread_name_prefix="family")

    def begin(self, first: Delta) -> None:
        """Take in the first listing and find the families that this machine can serve.

        A family that it cannot is left out with a warning; MachineError when it is the node's
        primary one, or when none is left.
        """
        self._tracker.apply(first)
        self._addresses = host_addresses()
        primary = primary_family(self._config, self._tracker.node(self._node_name), self._addresses)
        served, skipped = [], []
        for family in Family:
            backend = registry.create(self.choice, family)
            try:
                backend.probe()
            except MachineError as lacking:
                if family is primary:
                    raise
                _log.warning("family is not served", family=int(family), why=lacking)
                skipped.append(FamilyStatus(family=int(family), skipped=str(lacking)))
            else:
                served.append(_FamilyProxy(family, backend))
        self._families, self._skipped = tuple(served), tuple(skipped)

    def sync(
        self, deltas: Iterable[Delta] = (), *, full: bool = False, moved: bool = False
    ) -> bool:
        """Take changes in and bring the kernel to them, in every family. True when all went well.

        ``full``: addresses and kernel are read and everything is compared; ``moved``: the addresses
        are read.
        """
        for delta in deltas:
            self._tracker.apply(delta)
        if full or moved:
            self._read_addresses()
        changes = self._tracker.take()
        node = self._tracker.node(self._node_name)
        jobs = [
            self._pool.submit(
                family.sync,
                self._tracker,
                node_settings(self._config, node, self._node_name, family.family, self._addresses),
                changes,
                full,
            )
            for family in self._families
        ]
        # Every job is waited for, whatever happened in another one.
        results = [job.result() for job in jobs]
        return all(results)

    def _read_addresses(self) -> None:
        """Those known before stay in force when the kernel does not answer."""
        try:
            self._addresses = host_addresses()
        except KernelError as refused:
            _log.warning("addresses are not known anew", why=refused)

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
    def error(self) -> str:
        """Why the last sync failed, of each family where it did."""
        lines = (f"IPv{one.family}: {one.error}" for one in self.statuses if one.error)
        return "; ".join(lines)

    def close(self) -> None:
        """End the threads; the rules stay."""
        self._pool.shutdown()


class _FamilyProxy:
    """One family: plans, syncs, and keeps its own status."""

    def __init__(self, family: Family, backend: Backend[Any, Any, Any]) -> None:
        self.family = family
        self.status = FamilyStatus(family=int(family))
        self.refusals: tuple[str, ...] = ()
        self._planner = Planner(family)
        self._syncer = Syncer(backend)
        self._lost_plan = False

    def sync(self, tracker: Tracker, settings: NodeSettings, changes: Changes, full: bool) -> bool:
        begun = time.monotonic()
        try:
            if full:
                self._syncer.forget()
            # A planner that broke off has not taken its changes in: everything is planned anew.
            wanted = None if self._lost_plan else changes
            self._lost_plan = True
            snapshot = self._planner.plan(tracker, settings, wanted)
            self._lost_plan = False
            applied = self._syncer.sync(snapshot)
        except KproxyError as refused:
            self._failed(str(refused))
            return False
        except Exception as fault:  # noqa: BLE001
            # A fault of ours must not end the proxy of a node: what is in force stays in force,
            # and the next try starts from nothing.
            _log.fault("sync broke off", fault, family=int(self.family))
            self._syncer.forget()
            self._failed(f"{type(fault).__name__}: {fault}")
            return False
        self._synced(snapshot, applied, time.monotonic() - begun)
        return True

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
