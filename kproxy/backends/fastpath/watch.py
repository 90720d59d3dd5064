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
from kproxy.kernel.routing_notices import DEL_RULE, NEW_RULE, Notice, RoutingNotices
from kproxy.kernel.rtnetlink import (
    DEL_ADDRESS,
    DEL_LINK,
    DEL_ROUTE,
    NEW_LINK,
    NEW_ROUTE,
    index_of,
)
from kproxy.kernel.transactions import Transactions, of_table


def watch(families: Iterable[Family]) -> FastpathWatch:
    """In the namespace of the calling thread."""
    return FastpathWatch(tuple(families))


class FastpathWatch:
    """See :class:`kproxy.backends.base.Watch`."""

    def __init__(self, families: tuple[Family, ...]) -> None:
        self._plans = [steer.plan(family) for family in families]
        self._routing = RoutingNotices()
        self._rules = Transactions(of_table(steer.TABLE, families))
        self._devices = self._indexes()
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
            before, rules = self._look(), self._rules.pause()
            noticed = rules or self._look_at_routing() or before
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
            noticed = self._rules.resume(transactions)
            self._paused = False
            self._devices = self._indexes()
            for each in (self._routing, ALARM):
                self._epoll.register(each.fileno(), select.EPOLLIN)
            return "the engine stopped" if stopped else noticed

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
        # Both: what has been noticed already is no news after the sync.
        routing, rules = self._look_at_routing(), self._rules.look()
        return rules or routing

    def _look_at_routing(self) -> str:
        noticed = "the engine stopped" if ALARM.heard() else ""
        found, lost = self._routing.drain()
        if lost:
            noticed = noticed or "more changes of routes than could be told"
        for notice in found:
            noticed = noticed or self._concern(notice)
        return noticed

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
