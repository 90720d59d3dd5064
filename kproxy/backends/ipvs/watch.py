"""Notices when others change what IPVS mode wrote: rules, sets, virtual servers, the dummy device.

Rules and addresses are told of, or cost nothing to look at. Nobody tells of virtual servers and
sets: they are listed and compared, twice a second as long as that is cheap. A listing takes time
with the number of endpoints, so that the next one waits a hundred times as long as the last one
took, and as often again as there are listings: between syncs all of them together never cost more
than a hundredth of a core.

What we write ourselves becomes what should be there. Of sets only kind and size are compared, and a
listing that is dear is not made in the middle of syncs but when it is due again: what others do in
between is found by the next sync that reads the kernel.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_network
from typing import Generic, TypeVar

from kproxy.backends.base import Harm
from kproxy.backends.ipvs import sets
from kproxy.backends.ipvs.chains import LAYOUT
from kproxy.backends.ipvs.essence import Ranges, differing, essence
from kproxy.backends.xtables import watch as rules
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.kernel import dummy
from kproxy.kernel.device_notices import DeviceNotices
from kproxy.kernel.ipset import IpSets
from kproxy.kernel.ipvs import Ipvs
from kproxy.kernel.timer import Ticker

#: Seconds between two looks at what is cheap.
PERIOD = 0.5

#: What is dear waits this many times as long as it took, if nothing else shares the budget.
PATIENCE = 100

#: Seconds of a core that a sync may spend on learning what it has just made. What others change
#: between a sync and the first look after it would else be taken for its work.
CHEAP = 0.01

#: The cheapest of so many listings says what one costs.
_SAMPLES = 3

State = TypeVar("State")

#: Name -> (kind, number of members); absent: there is no such set.
Sizes = dict[str, tuple[str, int]]


def clocks() -> tuple[float, float]:
    """Seconds of this thread and of the world. The lesser of the two intervals is what a piece of
    work took: the first may tick every 10 ms only (without CONFIG_VIRT_CPU_ACCOUNTING, as in
    user-mode Linux), the second runs on while others have the core."""
    return time.thread_time(), time.perf_counter()


def watch(variant: Variant, families: Iterable[Family], spared: Iterable[str] = ()) -> IpvsWatch:
    """In the namespace of the calling thread. ``variant`` is that of the rules; virtual servers in
    the ranges ``spared`` are somebody else's."""
    return IpvsWatch(variant, tuple(families), spared)


class Budget:
    """A hundredth of a core, for all listings that share it: each has an equal part."""

    def __init__(self) -> None:
        self._shares = 0

    def join(self) -> None:
        self._shares += 1

    def wait(self, cost: float) -> float:
        """Seconds to the next listing after one that took so long; 0 for the next tick."""
        seconds = PATIENCE * self._shares * cost
        # What is cheap is due at every tick, whenever exactly that comes.
        return seconds if seconds > PERIOD else 0.0


class Listing(Generic[State]):
    """Something that has to be listed to know whether it is as it was.

    ``tell(known, now)`` says what is different, "" when that is nobody's business. ``clocks`` count
    the seconds of a core that a listing takes; see :func:`clocks`. ``budget`` may be shared.
    """

    def __init__(
        self,
        take: Callable[[], State],
        tell: Callable[[State, State], str],
        clocks: Callable[[], tuple[float, ...]] = clocks,
        budget: Budget | None = None,
    ) -> None:
        self._budget = Budget() if budget is None else budget
        self._budget.join()
        self._take, self._tell, self._clocks = take, tell, clocks
        self._known: State | None = None
        self._last: tuple[float, ...] = ()
        self._due = 0.0

    @property
    def _cost(self) -> float:
        return min(self._last, default=0.0)

    def look(self, now: float) -> str:
        """What is different from what it should be; nothing before the next look is due."""
        if now < self._due:
            return ""
        state = self._listed(now)
        said = "" if self._known is None else self._tell(self._known, state)
        if not said:
            self._known = state
        return said

    def settle(self, now: float) -> None:
        """What is there now is as it should be."""
        # Fewer than three may all have been held up by something else.
        dear = len(self._last) == _SAMPLES and self._cost > CHEAP
        self._known = None if dear else self._listed(now)

    def _listed(self, now: float) -> State:
        begun = self._clocks()
        state = self._take()
        cost = min(ended - started for ended, started in zip(self._clocks(), begun, strict=True))
        # One that took long among others that did not was held up by something else.
        self._last = (*self._last, cost)[-_SAMPLES:]
        wait = self._budget.wait(self._cost)
        self._due = now + wait if wait else 0.0
        return state


class IpvsWatch:
    """See :class:`kproxy.backends.base.Watch`.

    ``transactions`` of :meth:`resume` are those of the iptables tables: of everything else it is
    not known what we wrote.
    """

    def __init__(
        self, variant: Variant, families: tuple[Family, ...], spared: Iterable[str]
    ) -> None:
        # At our own pace: each tick of theirs has us look at everything.
        self._rules = rules.watch(variant, families, LAYOUT, PERIOD)
        self._notices = DeviceNotices(dummy.NAME)
        self._ticker = Ticker(PERIOD)
        self._doors = ExitStack()
        self._sets = {family: self._doors.enter_context(IpSets(family)) for family in families}
        self._servers = self._doors.enter_context(Ipvs(families[0]))
        ranges: Ranges = tuple(ip_network(text, strict=False) for text in spared)
        budget = Budget()
        self._listings = (
            Listing(
                lambda: essence(self._servers.listing()),
                partial(_other_servers, families=frozenset(families), spared=ranges),
                budget=budget,
            ),
            Listing(self._sizes, _other_sizes, budget=budget),
        )
        self._paused = False
        #: What the last look said, since the last sync.
        self._said = ""
        #: Looks come from the loop, writes from the thread that syncs.
        self._lock = threading.Lock()
        self._epoll = select.epoll()
        for each in (self._rules, self._notices, self._ticker):
            self._epoll.register(each.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def look(self) -> str:
        with self._lock:
            # Once is enough: told again when the sync that mends it is about to begin, it would
            # ask for another one.
            before, self._said = self._said, self._look()
            return "" if self._said == before else self._said

    def pause(self) -> str:
        with self._lock:
            noticed = self._look()
            noticed = self._rules.pause() or noticed
            # A sync binds addresses by the thousand, and each is told of.
            self._epoll.unregister(self._notices.fileno())
            self._paused = True
            return noticed

    def resume(
        self, transactions: int | None, entries: Mapping[Family, Mapping[str, int]] | None = None
    ) -> str:
        with self._lock:
            noticed = self._rules.resume(transactions, entries)
            now = time.monotonic()
            for listing in self._listings:
                listing.settle(now)
            self._notices.settle()
            self._epoll.register(self._notices.fileno(), select.EPOLLIN)
            self._paused, self._said = False, ""
            return noticed

    def harm(self) -> Harm:
        # The mode is read as a whole: its rules are few, and nobody tells of servers.
        return None

    def close(self) -> None:
        self._epoll.close()
        self._rules.close()
        self._notices.close()
        self._ticker.close()
        self._doors.close()

    def _look(self) -> str:
        self._ticker.drain()
        noticed = self._rules.look()
        if self._paused:
            return ""
        noticed = self._notices.drain() or noticed
        now = time.monotonic()
        for listing in self._listings:
            noticed = noticed or listing.look(now)
        return noticed

    def _sizes(self) -> Sizes:
        found: Sizes = {}
        for family, door in self._sets.items():
            heads = door.heads()
            for name in sets.kinds(family):
                if (head := heads.get(name)) is not None:
                    found[name] = head.kind, head.elements
        return found


def _other_sizes(known: Sizes, now: Sizes) -> str:
    other = [name for name in sorted(known.keys() | now.keys()) if known.get(name) != now.get(name)]
    return f"another size of set {', '.join(other)}" if other else ""


def _other_servers(known: bytes, now: bytes, families: frozenset[Family], spared: Ranges) -> str:
    if known == now:
        return ""
    other = differing(known, now, families, spared)
    more = f" and {len(other) - 1} more" if len(other) > 1 else ""
    return f"virtual server {other[0]}{more} changed" if other else ""
