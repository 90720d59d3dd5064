"""One target as the checker holds it."""

from __future__ import annotations

import asyncio
from enum import IntEnum
from typing import TYPE_CHECKING

from kproxy.core.health.trial import Trial
from kproxy.core.health.values import Target
from kproxy.health.checks.gate import Lane

if TYPE_CHECKING:
    from kproxy.health.checks.group import Group


class Phase(IntEnum):
    RESTING = 0
    WAITING = 1  # for a place
    TRYING = 2
    GONE = 3


class Run:
    """Mutable and compared by identity, unlike the values it holds: thousands a second are moved
    about. ``began`` is when its last try began, by the event loop's clock."""

    __slots__ = (
        "began", "descriptor", "expired", "group", "lane", "phase", "spared", "target", "task",
        "trial",
    )  # fmt: skip

    def __init__(self, target: Target, trial: Trial, group: Group) -> None:
        self.target = target
        self.trial = trial
        #: Whose places it takes.
        self.group = group
        self.phase = Phase.RESTING
        self.lane = Lane.ANSWERED
        self.began = 0.0
        #: Of a try under way: its socket's number, or its task.
        self.descriptor = -1
        self.task: asyncio.Task[None] | None = None
        #: The task was ended because its time was over.
        self.expired = False
        #: This try was given more time, since this thread was held up.
        self.spared = False
