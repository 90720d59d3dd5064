"""Restart without loss, the daemon's part of it: its place, taking it over, handing it on.

Only modes that carry connections themselves are handed over to a process of the same mode: with the
others the kernel serves on while no daemon is there. What two processes say to each other is
:mod:`kproxy.backends.userspace.handover`'s. To a process of another mode any daemon makes room, if
that one asks for it: then the words are those of :mod:`kproxy.changeover`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kproxy import logs
from kproxy.core.objects import Family
from kproxy.errors import KernelError, KproxyError, OccupiedError
from kproxy.occupancy import Occupancy, occupant
from kproxy.status import StateDir

if TYPE_CHECKING:
    from kproxy.backends.userspace.door import RelayDoor
    from kproxy.backends.userspace.estate import Words
    from kproxy.backends.userspace.handover import Predecessor
    from kproxy.backends.userspace.wire import Line
    from kproxy.changeover import Standing
    from kproxy.knocking import Knocking
    from kproxy.room import Room

_log = logs.get("succession")

#: Modes of which a new process takes over from the one that serves.
MODES = frozenset({"userspace"})

#: Seconds that connections have to end by themselves when the daemon is told to stop and nobody
#: takes over: enough for a request that is under way, and less than any supervisor waits before it
#: kills (Docker 10, Kubernetes 30, systemd 90).
STOP_DRAIN = 5.0

#: Seconds that clients have to get in who were on their way when another mode took over: a SYN
#: that was lost is sent again after one.
LATECOMERS = 1.5

#: Seconds between two looks whether the last flow has ended. Nobody waits for that.
_LOOK = 1.0


class Succession:
    """A daemon's place: its network namespace, its state directory, and what it serves with there.

    Made before anything else: OccupiedError when another process is the proxy of this network
    namespace, UsageError when one holds the directory that cannot be taken over
    from. ``take_over``: one that serves here in another mode makes room for us instead.
    From :meth:`begin` on in the event loop; ``heard`` is called when a successor is there.
    """

    def __init__(self, folder: Path, mode: str, *, take_over: bool = False) -> None:
        self.folder = folder
        self._mode = mode
        #: The process that is to be taken over from; 0: there is none.
        self.predecessor = _predecessor(folder, mode)
        #: The same, when it serves in another mode; until we serve alone.
        self._other: Standing | None = None
        #: Since when our rules stand beside its own (monotonic); for how many seconds they did.
        self._beside: float | None = None
        self.both: float | None = None
        if take_over and not self.predecessor:
            self._other = _other(mode)
            # Of one that cannot be seen from here the number is not known.
            self.predecessor = 0 if self._other is None else self._other.pid or -1
        #: From :meth:`begin` on, where we have the network namespace.
        self._room: Room | None = None
        #: None as long as a predecessor has the directory.
        self.state: StateDir | None = None
        self._occupancy: Occupancy | None = None
        self._doors: Sequence[RelayDoor] = ()
        self._recorded: dict[Family, int] = {}
        self._trouble = ""
        self._knocking: Knocking | None = None
        self._after: Line | None = None
        #: The successor serves in another mode: nobody is led to us any more.
        self._elsewhere = False
        self._hurry = asyncio.Event()
        if not self.predecessor:
            self._move_in()

    def _move_in(self) -> None:
        """Where nobody is."""
        self.state = StateDir(self.folder)
        try:
            self._occupancy = Occupancy.take(self._mode, self.folder)
        except BaseException:
            self.close()
            raise

    def _succeed(self, lock: int, *more: int) -> None:
        """With the locks of a predecessor."""
        self.state = StateDir(self.folder, lock)
        if more:
            self._occupancy = Occupancy(self._mode, self.folder, more[0])
        else:
            self._occupancy = Occupancy.take(self._mode, self.folder)

    @property
    def handed_over(self) -> bool:
        """A successor serves in our place."""
        return self._after is not None

    @property
    def wanted(self) -> bool:
        """A successor waits to be handed everything."""
        waits = self._knocking is not None and self._knocking.successor is not None
        return waits or self.asked_for_room

    @property
    def asked_for_room(self) -> bool:
        """The one who waits is of another mode: :meth:`make_room`."""
        return self._room is not None and self._room.wanted

    @property
    def moving(self) -> bool:
        """We take over from another mode, and do not serve alone yet."""
        return self._other is not None

    async def begin(self, doors: Sequence[RelayDoor], heard: Callable[[], None]) -> None:
        """Before the first sync: know the relay ports of before, take over what a predecessor
        serves, and be there for a successor. KproxyError when it serves on instead."""
        self._doors = doors
        if self._other is not None:
            locks = await asyncio.to_thread(self._other.locks, self._mode, self.folder)
            self.predecessor = 0
            if locks:
                self._succeed_other(*locks)
            else:
                self._move_in()
        elif self.predecessor:
            locks = await asyncio.to_thread(_take_over, self.folder, self.predecessor, doors)
            self.predecessor = 0
            if locks:
                self._succeed(*locks)
            else:
                self._move_in()
        if self._occupancy is not None:
            from kproxy.room import Room

            self._room = Room(self._occupancy, self._mode, self.folder, heard)
            self._room.busy = "it has just taken over itself" if self.moving else ""
        if not doors:
            return
        from kproxy.backends.userspace import state
        from kproxy.knocking import Knocking

        for door in doors:
            door.remember(state.read(self.folder, door.family))
        self._knocking = Knocking(self.folder, doors, heard)

    def _succeed_other(self, lock: int, *more: int) -> None:
        """With the locks of one that serves in another mode."""
        self._occupancy = Occupancy(self._mode, self.folder, lock)
        # It may have had another directory.
        self.state = StateDir(self.folder, *more)

    def in_force(self, age: float = 0.0) -> None:
        """Our rules stand beside those of another mode, the first for ``age`` seconds: returns when
        the others may go. Called in the thread of the sync, again when they could not be swept."""
        if self._other is None:
            return
        if self._beside is None:
            self._beside = time.monotonic() - age
        try:
            flows = self._other.in_force()
        except KproxyError as gone:
            _log.warning("the other mode's daemon says nothing more", why=gone)
        else:
            _log.info("took over", from_process=self._other.pid, flows=flows)

    async def serving(self) -> None:
        """We serve alone, and nothing of the other mode is left."""
        other, self._other = self._other, None
        if self._beside is not None:
            self.both = time.monotonic() - self._beside
        if self._room is not None:
            self._room.busy = ""
        if other is None:
            return
        try:
            await asyncio.to_thread(other.serving)
        except KproxyError as gone:
            _log.warning("the other mode's daemon does not say that it ends", why=gone)

    async def record(self) -> None:
        """After a sync: write down the relay ports, if there are others, for the day when we are
        killed."""
        changed = [door for door in self._doors if door.changes != self._recorded.get(door.family)]
        if changed:
            await asyncio.to_thread(self._record, changed)

    def _record(self, doors: Sequence[RelayDoor]) -> None:
        from kproxy.backends.userspace import state

        trouble = ""
        for door in doors:
            changes = door.changes
            try:
                state.write(self.folder, door.family, door.ports)
                self._recorded[door.family] = changes
            except KernelError as failed:
                trouble = str(failed)
        if trouble and trouble != self._trouble:
            _log.warning("after a crash other relay ports would be used", why=trouble)
        self._trouble = trouble

    async def make_room(self, leave: Callable[[], int]) -> bool:
        """Between two syncs: give our place to the one of another mode that asks for it;
        ``leave()`` makes what is carried here independent of our rules. Returns whether it broke
        off after it may have written rules: then we are to mend them, and serve on."""
        from kproxy.room import Given

        assert self._room is not None
        assert self.state is not None
        given, self._after = await self._room.give(self.state, leave, self._hurry)
        self._elsewhere = given is Given.SERVED
        return given is Given.BROKEN_OFF

    async def hand_over(self) -> None:
        """Between two syncs: give the successor that waits all there is. When it does not come
        about we serve on."""
        if self._knocking is None or self.state is None:
            return
        locks = [each.fileno() for each in (self.state, self._occupancy) if each is not None]
        line = self._knocking.taken()
        if line is None:
            return
        from kproxy.backends.userspace import handover

        pid, _ = line.peer
        _log.info("handing over", to_process=pid)
        try:
            await asyncio.to_thread(handover.hand_over, line, self._doors, locks)
        except KproxyError as failed:
            _log.warning("no successor came about: serving on", process=pid, why=failed)
            line.close()
            self._knocking.again()
        else:
            self.state.give_away()
            self._leave_namespace()
            self._after = line

    def hurry(self) -> None:
        """Told to stop: what drains may do so for :data:`STOP_DRAIN` only."""
        self._hurry.set()

    def quit(self) -> None:
        """No successor is heard any more."""
        if self._knocking is not None:
            self._knocking.close()
            self._knocking = None
        if self._room is not None:
            self._room.close()

    def _leave_namespace(self) -> None:
        if self._room is not None:
            self._room.close()
        if self._occupancy is not None:
            self._occupancy.close()
            self._occupancy = None

    async def leave(self, patience: float) -> None:
        """Everything else has ended: let what is carried here end by itself, for so many seconds
        when a successor serves, and for :data:`STOP_DRAIN` else."""
        if self._after is not None:
            await asyncio.to_thread(_done, self._after, self._elsewhere)
            if self._elsewhere and self._doors:
                await self._shut()
            await self._drain(patience)
        elif self._doors:
            each = (asyncio.to_thread(door.drain, STOP_DRAIN) for door in self._doors)
            if cut := sum(await asyncio.gather(*each)):
                _log.warning("cut off", flows=cut, seconds=STOP_DRAIN)

    async def _shut(self) -> None:
        """No rule leads here any more, and none guards what listens: it is closed when those are in
        who were on their way. UDP clients are served by the successor from their next datagram on.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(LATECOMERS):
                await self._hurry.wait()
        for door in self._doors:
            door.drop(list(door.running()))
            door.node_ports.close()

    async def _drain(self, patience: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        if left := self._left():
            _log.info("handed over; what goes on here ends by itself", flows=left, seconds=patience)
        while self._left() and (now := loop.time()) < deadline:
            if self._hurry.is_set():
                deadline = min(deadline, now + STOP_DRAIN)
                await asyncio.sleep(min(_LOOK, deadline - now))
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(min(_LOOK, deadline - now)):
                    await self._hurry.wait()

    def _left(self) -> int:
        return sum(door.left() for door in self._doors)

    def close(self) -> None:
        """Give the directory and the namespace back. May be called twice."""
        if self.state is not None:
            self.state.close()
        if self._occupancy is not None:
            self._occupancy.close()
        if self._other is not None:
            # It serves on.
            self._other.close()
        self.state = self._occupancy = self._other = None


def _predecessor(folder: Path, mode: str) -> int:
    """The process that serves with this state directory, if there is one to take over from."""
    if mode not in MODES:
        return 0
    from kproxy.backends.userspace import handover

    return handover.serving(folder)


def _other(mode: str) -> Standing | None:
    """Who serves here in another mode. OccupiedError when it is one that two cannot have."""
    here = occupant()
    if here is None:
        return None
    from kproxy.changeover import Standing
    from kproxy.room import ALONE

    if here.mode == mode and mode in ALONE:
        raise OccupiedError(
            f"{here} serves in {mode} mode already", hint=f"stop it first ({here.to_stop})"
        )
    return Standing(here.pid)


def _take_over(folder: Path, pid: int, doors: Sequence[RelayDoor]) -> tuple[int, ...]:
    """Serve what that process serves with this directory, with these doors; the descriptors of its
    locks, none when it has ended meanwhile.

    KproxyError when that did not come about: then it serves on, and nothing is served here.
    """
    from kproxy.backends.userspace import handover

    before = handover.Predecessor.find(folder)
    if before is None:
        return ()
    if before.pid != pid:
        before.close()
        raise handover.taken_over(pid, before.pid)
    return _taken_over(before, doors)


def _taken_over(before: Predecessor, doors: Sequence[RelayDoor]) -> tuple[int, ...]:
    from kproxy.backends.userspace.bequest import Heir, close_all

    heirs = {door.family: Heir(door) for door in doors}

    def take(family: Family, words: Words) -> None:
        if family in heirs:
            heirs[family].enter(words)

    try:
        for family, estate in before.estates().items():
            if family in heirs:
                heirs[family].adopt(estate)
            else:
                _log.warning("not served here, and not taken over", family=int(family))
                close_all(estate.fds)
        locks = before.parting(take)
        before.serving()
    except BaseException:
        for heir in heirs.values():
            heir.close()
        for door in doors:
            door.close()
        before.close()
        raise
    _log.info("took over", from_process=before.pid)
    return locks


def _done(successor: Line, elsewhere: bool) -> None:
    """Tell it that the ports of our servers are free."""
    from kproxy import changeover
    from kproxy.backends.userspace import handover

    try:
        if elsewhere:
            changeover.done(successor)
        else:
            handover.done(successor)
    except KproxyError as failed:
        _log.warning("the successor does not hear that all is free", why=failed)
