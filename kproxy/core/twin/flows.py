"""The flow table: both directions of each flow, in a limited number of slots.

Three lists hold flows in the order in which they came to be so: those that nobody has confirmed
yet, those that ended, and (no list) all others. When room is short the oldest that ended goes, then
the oldest unconfirmed one; confirmed flows are never given up for new ones. So a flood of first
packets turns over its own kind.

A flow that is past its deadline is gone, whether it was swept away or not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kproxy.core.twin.rewrite import Tuple
from kproxy.core.twin.states import ENDED, UNCONFIRMED, Direction, State
from kproxy.core.twin.values import TICK

#: Every flow is looked at once in this time.
SWEEP = 4_000_000_000
#: One batch looks at no more than this, so that its packets do not wait.
MOST_SWEPT = 1024


@dataclass(eq=False)
class Endpoint:
    """What is known of one endpoint of one service, for as long as a table or a flow names it.

    ``serial`` is another one after the endpoint was away: affinity ends with it. ``active`` counts
    flows that have not ended, ``references`` all. ``until``: the tick at which flows to it end,
    None while it serves. ``flags`` are the member's, None when it is gone.
    """

    service: int
    place: bytes
    serial: int
    active: int = 0
    references: int = 0
    flows: int = 0
    failures: int = 0
    packets: list[int] = field(default_factory=lambda: [0, 0])
    bytes: list[int] = field(default_factory=lambda: [0, 0])
    until: int | None = None
    suspect: bool = False


@dataclass(eq=False)
class Flow:
    """``ends`` are its tuples by direction, as its packets arrive here: what arrives one way leaves
    as the other way's, turned round."""

    ends: tuple[Tuple, Tuple]
    endpoint: Endpoint
    state: State
    deadline: int
    version: int
    slot: int = 0
    draining: bool = False
    copy: int | None = None

    def leaves_as(self, way: Direction) -> Tuple:
        return self.ends[1 - way].reversed


class FlowTable:
    """At most ``limit`` flows of one family."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.by_tuple: dict[Tuple, tuple[Flow, Direction]] = {}
        self.slots: list[Flow | None] = []
        self.free: list[int] = []
        # Dictionaries are ordered: the first key is the oldest.
        self.unconfirmed: dict[Flow, None] = {}
        self.ended: dict[Flow, None] = {}
        self._hand = 0
        self._swept = 0

    def __len__(self) -> int:
        return len(self.slots) - len(self.free)

    def find(self, key: Tuple) -> tuple[Flow, Direction] | None:
        return self.by_tuple.get(key)

    def make_room(self) -> bool:
        """Whether there is a slot, if need be one that was taken from another flow."""
        if len(self) < self.limit:
            return True
        for flows in (self.ended, self.unconfirmed):
            for oldest in flows:
                self.remove(oldest)
                return True
        return False

    def add(self, flow: Flow) -> None:
        """Room was made before; neither tuple is in the table."""
        if self.free:
            flow.slot = self.free.pop()
            self.slots[flow.slot] = flow
        else:
            flow.slot = len(self.slots)
            self.slots.append(flow)
        for way in Direction:
            self.by_tuple[flow.ends[way]] = flow, way
        flow.endpoint.references += 1
        flow.endpoint.active += 1
        if flow.state in UNCONFIRMED:
            self.unconfirmed[flow] = None

    def remove(self, flow: Flow) -> None:
        """Both directions at once: half a flow would catch packets of the next one."""
        for way in Direction:
            del self.by_tuple[flow.ends[way]]
        flow.endpoint.references -= 1
        if flow.state not in ENDED:
            flow.endpoint.active -= 1
        self.unconfirmed.pop(flow, None)
        self.ended.pop(flow, None)
        self.slots[flow.slot] = None
        self.free.append(flow.slot)

    def enter(self, flow: Flow, state: State) -> None:
        """A flow changes its state."""
        before = flow.state
        if state == before:
            return
        flow.state = state
        if before in UNCONFIRMED and state not in UNCONFIRMED:
            del self.unconfirmed[flow]
        if state in ENDED and before not in ENDED:
            self.ended[flow] = None
            flow.endpoint.active -= 1

    def retarget(self, flow: Flow, back: Tuple, endpoint: Endpoint) -> None:
        """An unanswered flow goes to another endpoint; ``back`` is not in the table."""
        del self.by_tuple[flow.ends[Direction.BACK]]
        flow.ends = flow.ends[Direction.THERE], back
        self.by_tuple[back] = flow, Direction.BACK
        for one, change in ((flow.endpoint, -1), (endpoint, 1)):
            one.references += change
            one.active += change
        flow.endpoint = endpoint

    def due(self, now: int) -> int:
        """How many slots are to be looked at for the time that went by."""
        elapsed = min(now - self._swept, SWEEP)
        count = elapsed * len(self.slots) // SWEEP
        # Time that is too short for one slot is not lost, it adds up.
        if count or not self.slots:
            self._swept = now
        return min(count, MOST_SWEPT)

    def sweep(self, count: int, now: int) -> int:
        """Look at the next slots; returns how many flows were past their deadline."""
        tick, gone = now // TICK, 0
        for _ in range(min(count, len(self.slots))):
            self._hand = self._hand + 1 if self._hand + 1 < len(self.slots) else 0
            flow = self.slots[self._hand]
            if flow is not None and tick >= flow.deadline:
                self.remove(flow)
                gone += 1
        return gone
