"""Notices when others change what leads packets to the engine, or when the engine has stopped.

The kernel tells of devices, addresses, routes and rules, and of every transaction on nftables; a
thread of the engine that ends unasked rings an alarm. What we write ourselves is told of as well:
during a sync nobody listens, and what others do with routes meanwhile is found at the next full
sync. (Transactions are counted, so that others' are known.)
"""

from __future__ import annotations

import select
import threading
from collections.abc import Iterable, Mapping

from kproxy.backends.base import Harm
from kproxy.backends.fastpath import steer
from kproxy.backends.fastpath.alarm import ALARM
from kproxy.core.objects import Family
from kproxy.kernel.nftables import Event, Kind, Listener, generations
from kproxy.kernel.routing_notices import (
    DEL_ROUTE,
    DEL_RULE,
    NEW_ROUTE,
    NEW_RULE,
    Notice,
    RoutingNotices,
)
from kproxy.kernel.rtnetlink import DEL_ADDRESS, DEL_LINK, NEW_LINK, index_of

_VERSIONS = {2: Family.IPV4, 10: Family.IPV6}


def watch(families: Iterable[Family]) -> FastpathWatch:
    """In the namespace of the calling thread."""
    return FastpathWatch(tuple(families))


class FastpathWatch:
    """See :class:`kproxy.backends.base.Watch`."""

    def __init__(self, families: tuple[Family, ...]) -> None:
        self._families = families
        self._plans = [steer.plan(family) for family in families]
        self._routing = RoutingNotices()
        self._rules = Listener()
        self._generation = self._rules.generation()
        self._devices = self._indexes()
        self._touched = ""
        self._paused = False
        #: Looks come from the loop, syncs from another thread.
        self._lock = threading.Lock()
        self._epoll = select.epoll()
        for each in (self._routing, self._rules, ALARM):
            self._epoll.register(each.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def look(self) -> str:
        with self._lock:
            return "" if self._paused else self._look()

    def pause(self) -> str:
        with self._lock:
            noticed = self._look()
            self._rules.deafen()
            # What came before that is heard, what comes after it is counted.
            noticed = self._look() or noticed
            for each in (self._routing, ALARM):
                self._epoll.unregister(each.fileno())
            self._paused = True
            return noticed

    def resume(
        self, transactions: int | None, entries: Mapping[Family, Mapping[str, int]] | None = None
    ) -> str:
        with self._lock:
            self._routing.drain()
            stopped = ALARM.heard()
            self._rules.hear()
            now = self._rules.generation()
            others = generations(self._generation, now) - (transactions or 0)
            self._generation, self._touched, self._paused = now, "", False
            self._devices = self._indexes()
            for each in (self._routing, ALARM):
                self._epoll.register(each.fileno(), select.EPOLLIN)
            if stopped:
                return "the engine stopped"
            if transactions is None or others == 0:
                return ""
            return f"{others} transactions of others during a sync"

    def harm(self) -> Harm:
        # The mode is read as a whole.
        return None

    def close(self) -> None:
        self._epoll.close()
        self._routing.close()
        self._rules.close()

    def _indexes(self) -> dict[int, str]:
        names = (plan.device for plan in self._plans)
        return {index: name for name in names if (index := index_of(name))}

    # --- what is said ---

    def _look(self) -> str:
        noticed = "the engine stopped" if ALARM.heard() else ""
        found, lost = self._routing.drain()
        if lost:
            noticed = noticed or "more changes of routes than could be told"
        for notice in found:
            noticed = noticed or self._concern(notice)
        return self._look_at_rules() or noticed

    def _concern(self, notice: Notice) -> str:
        if notice.kind in (NEW_LINK, DEL_LINK):
            return self._of_device(notice)
        if notice.kind == DEL_ADDRESS and notice.index in self._devices:
            return f"address taken from {self._devices[notice.index]}"
        for plan in self._plans:
            if notice.family != int(plan.family):
                continue
            if notice.kind in (NEW_ROUTE, DEL_ROUTE) and notice.table == plan.table:
                return f"routes of table {plan.table} (IPv{plan.family})"
            ours = (0, plan.marked, plan.local)
            if notice.kind in (NEW_RULE, DEL_RULE) and notice.preference in ours:
                return f"rule {notice.preference} (IPv{plan.family})"
        return ""

    def _of_device(self, notice: Notice) -> str:
        name = self._devices.get(notice.index)
        if name is None:
            return ""
        if notice.kind == DEL_LINK:
            return f"device {name} deleted"
        return "" if notice.up else f"device {name} set down"

    def _look_at_rules(self) -> str:
        found, lost = self._rules.heard()
        if lost:
            self._generation, self._touched = self._rules.generation(), ""
            return "more changes of rules than could be told"
        noticed = ""
        for event in found:
            if event.kind is not Kind.NEWGEN:
                self._touched = self._touched or self._of_table(event)
                continue
            if generations(self._generation, event.generation) < 1 << 31:
                self._generation = event.generation
            if self._touched:
                noticed = noticed or f"{event.program} ({event.pid}) {self._touched}"
            self._touched = ""
        return noticed

    def _of_table(self, event: Event) -> str:
        family = _VERSIONS.get(event.family)
        if family not in self._families or event.table != steer.TABLE:
            return ""
        return f"{event.kind.name} {event.table} {event.chain}".rstrip()
