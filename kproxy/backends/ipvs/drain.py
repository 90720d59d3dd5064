"""Graceful termination: real servers that went, and that still have connections.

A real server of a TCP service whose endpoint went gets weight 0: no new connection is sent there,
those that it has go on. It is deleted when it has none left, or when it has been let go for the
time that the operator grants. UDP and SCTP never come here.

The kernel remembers all of it: weight 0 is ours alone, so a real server that is found with it and
is not wanted is draining, whoever set it. Only the time is counted from when we first saw it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from kproxy.backends.ipvs.diff import Leaving
from kproxy.core.objects import Value
from kproxy.core.servers import HeldReal

#: Seconds between two looks at what drains: 60 in kube-proxy, a second keeps no address for long.
PERIOD = 1.0

#: A look that takes long is waited for this many times as long: it costs a fiftieth of a core.
_PATIENCE = 50


def pause(took: float) -> float:
    """Seconds to the next look after one that took so long."""
    return max(PERIOD, _PATIENCE * took)


#: server key -> its real servers; none when there is no such virtual server any more.
Loads = Mapping[bytes, Mapping[bytes, HeldReal]]


class Verdict(Value, frozen=True):
    """``delete`` are to be deleted now, ``over`` need no more attention: others took them away, or
    use them again."""

    delete: tuple[Leaving, ...]
    over: tuple[Leaving, ...]


def judge(since: Mapping[Leaving, float], loads: Loads, now: float, patience: float) -> Verdict:
    """Pure. ``since`` says when each was first seen at weight 0; times are seconds of one clock."""
    delete, over = [], []
    for leaving, begun in since.items():
        server, real = leaving
        load = loads.get(server, {}).get(real)
        if load is None or load.weight:
            over.append(leaving)
        elif not load.active + load.inactive or now - begun >= patience:
            delete.append(leaving)
    return Verdict(tuple(delete), tuple(over))


class Drain:
    """What drains in one family. Holds no door: the backend looks and deletes."""

    def __init__(self) -> None:
        self._since: dict[Leaving, float] = {}
        #: Those that were not looked at yet.
        self._new: set[Leaving] = set()
        #: When all are to be looked at again.
        self._next = 0.0

    def __contains__(self, leaving: Leaving) -> bool:
        return leaving in self._since

    def __len__(self) -> int:
        return len(self._since)

    def __iter__(self) -> Iterator[Leaving]:
        return iter(self._since)

    @property
    def servers(self) -> frozenset[bytes]:
        """Virtual servers of which something drains."""
        return frozenset(server for server, _ in self._since)

    def due(self, now: float) -> frozenset[bytes]:
        """Virtual servers to be looked at: all when the pause is over, before that only those of
        which something was let go since the last look."""
        if now >= self._next:
            return self.servers
        return frozenset(server for server, _ in self._new)

    def looked(self, begun: float, ended: float) -> float:
        """What was :meth:`due` when a look began has been judged. Seconds to the next one."""
        self._new.clear()
        if begun >= self._next:
            self._next = ended + pause(ended - begun)
        return max(0.0, self._next - ended)

    def found(self, leaving: Iterable[Leaving], now: float) -> None:
        """The kernel was read: these drain, and no others. Known ones keep their time."""
        known = self._since
        self._since = {each: known.get(each, now) for each in leaving}
        self._new = {each for each in self._since if each not in known or each in self._new}

    def let_go(self, leaving: Iterable[Leaving], now: float) -> None:
        """These have weight 0 from now on."""
        for each in leaving:
            if each not in self._since:
                self._since[each] = now
                self._new.add(each)

    def forget(self, leaving: Iterable[Leaving]) -> None:
        """These are wanted again, or gone."""
        for each in leaving:
            self._since.pop(each, None)
            self._new.discard(each)

    def forget_servers(self, servers: Iterable[bytes]) -> None:
        """All of these virtual servers is gone."""
        gone = frozenset(servers)
        if gone:
            self._since = {each: at for each, at in self._since.items() if each[0] not in gone}
            self._new = {each for each in self._new if each[0] not in gone}

    def judge(self, loads: Loads, now: float, patience: float) -> Verdict:
        """See :func:`judge`, for the virtual servers in ``loads``; what is over is forgotten, what
        is to be deleted is when it is."""
        since = {each: at for each, at in self._since.items() if each[0] in loads}
        verdict = judge(since, loads, now, patience)
        self.forget(verdict.over)
        return verdict
