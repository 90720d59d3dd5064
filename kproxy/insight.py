"""What servers look at when somebody asks, see :class:`kproxy.health.monitor.Watched`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from kproxy.core.snapshot import Snapshot
from kproxy.core.tracker import Counts
from kproxy.health.care import Care
from kproxy.inbox import Inbox
from kproxy.proxy import NodeProxy
from kproxy.report import Report

if TYPE_CHECKING:
    from kproxy.backends.fastpath.figures import EngineFigures
    from kproxy.backends.userspace.estate import Figures
    from kproxy.health.checks.rounds import Figures as CheckFigures


class Insight:
    """Into the parts of one daemon."""

    def __init__(self, proxy: NodeProxy, inbox: Inbox, report: Report, care: Care) -> None:
        self._proxy = proxy
        self._inbox = inbox
        self._report = report
        self._care = care

    @property
    def mode(self) -> str:
        return self._proxy.choice.mode

    @property
    def pending(self) -> Counts:
        return self._inbox.pending

    @property
    def seen(self) -> Counts:
        return self._proxy.seen

    @property
    def refused(self) -> int:
        return len(self._report.status.refusals)

    @property
    def plans(self) -> Iterable[tuple[Snapshot, Any]]:
        return self._proxy.plans

    @property
    def relays(self) -> Iterable[Figures]:
        return [door.figures(endpoints=True) for door in self._proxy.doors]

    @property
    def engines(self) -> Iterable[EngineFigures]:
        return self._proxy.engines

    @property
    def checks(self) -> CheckFigures | None:
        return self._care.checks
