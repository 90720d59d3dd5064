"""Takes stale UDP flows out of conntrack after a good sync: what is stale says the core.

Which part of the table is read follows what changed: nothing for a sync that changed no UDP service
port, or only added endpoints; the flows to one address and port for a few; the whole table (0.15 s
for 100,000 flows) for many, at the start, after every sync that compared everything, and whenever
rules may have been out of force. A failure is logged and tried again; it never fails a sync.
"""

from __future__ import annotations

import time

from kproxy import logs
from kproxy.core.objects import Family, Value
from kproxy.core.snapshot import Snapshot
from kproxy.core.stale_flows import Former, StaleFlows
from kproxy.errors import NetlinkError
from kproxy.kernel.conntrack import Conntrack

_log = logs.get("flows")

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

    def __init__(self, family: Family, mode: str) -> None:
        self.family = family
        self._stale = StaleFlows(family) if mode in _TRANSLATING else None
        self._failures = 0
        self._told = ""
        self._begun = False

    @property
    def knows_its_past(self) -> bool:
        """False until the first clean table: rules found in the kernel are still of use."""
        return self._begun or self._stale is None

    @property
    def retry_delay(self) -> float:
        """Seconds after which to clean again, sync or not; 0: the last time went well."""
        if not self._failures:
            return 0.0
        return min(_LAST_RETRY, _FIRST_RETRY * 2.0 ** min(self._failures - 1, 30))

    def plan(self, snapshot: Snapshot, addresses: tuple[str, ...]) -> None:
        """What is about to be applied. ``addresses``: all of the network namespace."""
        if self._stale is not None:
            self._stale.plan(snapshot, addresses)

    def remember(self, former: Former) -> None:
        """Rules of a proxy that ran here before were found in the kernel."""
        if self._stale is not None:
            self._stale.remember(former)

    def clean(self, *, all_of_it: bool) -> Cleaned | None:
        """After a good sync; ``all_of_it``: it compared everything. None: nothing to look at, or
        it failed."""
        if self._stale is None:
            return None
        if all_of_it:
            self._stale.suspect_all()
        begun = time.monotonic()
        try:
            listed, deleted = self._clean(self._stale)
        except NetlinkError as refused:
            self._failures += 1
            if str(refused) != self._told:
                _log.warning("stale flows may be left", family=int(self.family), why=refused)
            self._told = str(refused)
            return None
        if self._failures:
            _log.info("stale flows are cleaned again", family=int(self.family))
        self._failures, self._told, self._begun = 0, "", True
        cleaned = Cleaned(time.monotonic() - begun, listed, deleted)
        if listed or deleted:
            _log.detail(
                "flows compared",
                family=int(self.family),
                seconds=cleaned.seconds,
                listed=listed,
                deleted=deleted,
            )
        return cleaned

    def _clean(self, stale: StaleFlows) -> tuple[int, int]:
        listed = deleted = 0
        parts = stale.parts()
        if parts:
            handles: dict[bytes, None] = {}
            with Conntrack(self.family) as table:
                for part in parts:
                    for batch in table.udp(*part):
                        listed += len(batch.flows)
                        handles.update((batch.handle(at), None) for at in stale.judge(batch.flows))
                deleted = table.delete(handles).entries
        stale.cleaned()
        return listed, deleted
