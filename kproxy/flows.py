"""Takes stale UDP flows out of conntrack after a good sync: what is stale says the core.

Which part of the table is read follows what changed: nothing for a sync that changed no UDP service
port, or only added endpoints; the flows to one address and port for a few; the whole table (0.15 s
for 100,000 flows) for many, at the start, after every sync that compared everything, and whenever
rules may have been out of force. A failure is logged and tried again; it never fails a sync.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from kproxy import logs
from kproxy.core.objects import Family, Value
from kproxy.core.snapshot import Snapshot
from kproxy.core.stale_flows import FlowJudge, Former, Part, StaleFlows
from kproxy.errors import NetlinkError
from kproxy.kernel.conntrack import Conntrack

_log = logs.get("flows")

_Result = TypeVar("_Result")

#: Modes whose translation is conntrack's, so that a flow's reply comes from its endpoint. The
#: others hold flows in tables of their own, and an entry tells nothing of an endpoint.
_TRANSLATING = frozenset({"iptables", "ipvs", "nftables"})

#: Seconds to the next try after a failure; doubled up to the second each time.
_FIRST_RETRY, _LAST_RETRY = 1.0, 300.0


class Cleaned(Value, frozen=True):
    """One look at the table: ``listed`` flows were judged, ``deleted`` of them were stale."""

    seconds: float
    listed: int
    deleted: int


class FlowCleaner:
    """One family's. Tell it every plan before it is applied; clean after a good sync."""

    def __init__(self, family: Family, mode: str, judge: FlowJudge | None = None) -> None:
        """``judge`` is a mode's own, where an entry tells of something else than an endpoint."""
        self.family = family
        self._translating = judge is not None or mode in _TRANSLATING
        self._stale: FlowJudge = StaleFlows(family) if judge is None else judge
        self._failures = 0
        self._told = ""
        #: False until flows were clean once: rules found in the kernel are of use until then.
        self.knows_its_past = not self._translating

    @property
    def retry_delay(self) -> float:
        """Seconds after which to clean again, sync or not; 0: the last time went well."""
        if not self._failures:
            return 0.0
        return min(_LAST_RETRY, _FIRST_RETRY * 2.0 ** min(self._failures - 1, 30))

    def plan(self, snapshot: Snapshot, addresses: tuple[str, ...]) -> None:
        """What is about to be applied. ``addresses``: all of the network namespace."""
        if self._translating:
            self._guarded(self._stale.plan, snapshot, addresses)

    def remember(self, find: Callable[[], Former]) -> None:
        """Rules of a proxy that ran here before were in the kernel; ``find`` reads them."""
        self._guarded(lambda: self._stale.remember(find()))

    def clean(self, *, all_of_it: bool) -> Cleaned | None:
        """After a good sync; ``all_of_it``: it compared everything. None: there was nothing to
        look at, or it failed."""
        if not self._translating:
            return None
        if all_of_it:
            self._stale.suspect_all()
        return self._guarded(self._clean)

    def _clean(self) -> Cleaned | None:
        begun = time.monotonic()
        try:
            parts = self._stale.parts()
            listed, deleted = self._delete_stale(parts) if parts else (0, 0)
        except NetlinkError as refused:
            self._failed(str(refused))
            return None
        self._stale.cleaned()
        if self._failures:
            _log.info("stale flows are cleaned again", family=int(self.family))
        self._failures, self._told, self.knows_its_past = 0, "", True
        if not parts:
            return None
        cleaned = Cleaned(time.monotonic() - begun, listed, deleted)
        _log.detail(
            "flows compared",
            family=int(self.family),
            seconds=cleaned.seconds,
            listed=listed,
            deleted=deleted,
        )
        return cleaned

    def _delete_stale(self, parts: Sequence[Part]) -> tuple[int, int]:
        listed = 0
        handles: dict[bytes, None] = {}
        with Conntrack(self.family) as table:
            for part in dict.fromkeys(table.coarse(*part) for part in parts):
                for batch in table.udp(*part):
                    listed += len(batch.flows)
                    stale = self._stale.judge(batch.flows)
                    handles.update((batch.handle(at), None) for at in stale)
            return listed, table.delete(handles).entries

    def _guarded(self, work: Callable[..., _Result], *values: Any) -> _Result | None:
        """A fault of ours must not end the sync of a node's rules."""
        try:
            return work(*values)
        except Exception as fault:  # noqa: BLE001
            _log.fault("cleaning flows broke off", fault, family=int(self.family))
            self._failed(f"{type(fault).__name__}: {fault}")
            return None

    def _failed(self, reason: str) -> None:
        self._failures += 1
        if reason != self._told:
            _log.warning(
                "stale UDP flows may be left",
                family=int(self.family),
                why=reason,
                again_in=self.retry_delay,
            )
        self._told = reason
