"""Things that several service ports share, each counted, so that it stays until the last one goes.

Pure. What a mode keeps beside its services (members of sets, addresses) follows a Snapshot with
work for what changed only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Generic, TypeVar

from kproxy.core.objects import PortName

Thing = TypeVar("Thing", bound=Hashable)


class Tally(Generic[Thing]):
    """All things of one plan's sources, each with the number of times that it is there.

    ``things(source)`` are those of one service port. The count is made when somebody first looks. A
    successor takes its predecessor's count over and does the work of what changed; a predecessor
    that is looked at again counts anew.
    """

    __slots__ = ("_added", "_base", "_counts", "_gone", "_sources", "_things", "_token")

    def __init__(
        self, sources: Mapping[PortName, Any], things: Callable[[Any], Iterable[Thing]]
    ) -> None:
        self._sources = sources
        self._things = things
        self._counts: dict[Thing, int] | None = None
        self._token = object()
        #: The one that ``_added`` and ``_gone`` are relative to.
        self._base: object | None = None
        self._added: frozenset[Thing] = frozenset()
        self._gone: frozenset[Thing] = frozenset()

    @property
    def all(self) -> AbstractSet[Thing]:
        return self._count().keys()

    def following(self, sources: Mapping[PortName, Any], names: Iterable[PortName]) -> Tally[Thing]:
        """Those of the next plan, which differs in the service ports that are named."""
        change: Counter[Thing] = Counter()
        for name in names:
            if name in sources:
                change.update(self._things(sources[name]))
            if name in self._sources:
                change.subtract(self._things(self._sources[name]))
        counts, self._counts = self._count(), None
        added, gone = set(), set()
        for thing, more in change.items():
            before = counts.get(thing, 0)
            after = before + more
            if after:
                counts[thing] = after
            elif before:
                del counts[thing]
            if not before and after:
                added.add(thing)
            if before and not after:
                gone.add(thing)
        made = Tally(sources, self._things)
        made._counts, made._base = counts, self._token
        made._added, made._gone = frozenset(added), frozenset(gone)
        return made

    def since(self, before: Tally[Thing]) -> tuple[AbstractSet[Thing], AbstractSet[Thing]]:
        """(added, gone) from ``before`` to this."""
        if self is before:
            return frozenset(), frozenset()
        if self._base is before._token:
            return self._added, self._gone
        return self.all - before.all, before.all - self.all

    def _count(self) -> dict[Thing, int]:
        if self._counts is None:
            counts: Counter[Thing] = Counter()
            for source in self._sources.values():
                counts.update(self._things(source))
            self._counts = counts
        return self._counts
