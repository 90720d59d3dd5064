"""Fastpath mode: the backend that keeps the engine and what leads to it in step with a plan.

Order of a change: the engine learns what is new, then packets are led to it; what goes is no longer
led to it before the engine forgets it. A service whose endpoints change touches the engine alone.

A repair goes another way: while the table is gone, an endpoint's answer reaches its client from an
address that it never spoke to, and the client ends the connection. TCP sends an answer again after
0.2 s, so the table is what comes back first. Until the device is there too, what is led to it goes
nowhere, and is sent again.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterator
from itertools import count
from pathlib import Path

from kproxy import logs
from kproxy.backends.base import Applied, Finding
from kproxy.backends.fastpath import estate, host, leaving, steer
from kproxy.backends.fastpath.carrier import Carrier, workers_of
from kproxy.backends.fastpath.door import OUTLIVING, SteerDoor
from kproxy.backends.fastpath.estate import Estate
from kproxy.backends.fastpath.figures import EngineFigures, figures_of
from kproxy.backends.fastpath.held import Held, Patch, diff, settled
from kproxy.backends.fastpath.render import Desired, check_members, render
from kproxy.backends.fastpath.seed import kept_seed
from kproxy.backends.fastpath.steer import CHECKS, NEW_A_SECOND
from kproxy.backends.xtables.localnet import ROUTE_LOCALNET
from kproxy.core.objects import Family, PortName
from kproxy.core.snapshot import FastpathSettings, LocalDetector, Snapshot
from kproxy.core.steering import Part, wanted
from kproxy.errors import ContentError, KernelError
from kproxy.kernel.conntrack_gifts import ConntrackGifts, Gift

_log = logs.get("fastpath")

#: Seconds between two looks for pods that came or went, where an interface tells them.
LOOK_FOR_PODS = 1.0


#: Seconds after which the engine has seen what was led to it: its queue, at 200,000 packets a
#: second.
ON_ITS_WAY = 0.02

#: How often a change is tried when the device is taken away meanwhile. A sync that failed
#: would wait before the next try, longer than connections live without the table.
_TRIES = 3

#: With these a packet that is led to the device comes to nobody else when the device is not there.
_ENCLOSED = frozenset({Part.NOWHERE, Part.LATER, Part.MARKED, Part.NOT_FIRST})


class FastpathBackend:
    """One family, in the network namespace of the calling thread. ``door`` is to the kernel."""

    mode = "fastpath"

    def __init__(
        self,
        family: Family,
        *,
        settings: FastpathSettings = FastpathSettings(),  # noqa: B008 (frozen)
        door: SteerDoor | None = None,
    ) -> None:
        self.family = family
        self.door = SteerDoor(family) if door is None else door
        self._settings = settings
        self._carrier: Carrier | None = None
        self._folder: Path | None = None
        #: Whether it was looked what the process before has left.
        self._taken = False
        self._detector: LocalDetector | None = None
        self._notices: dict[PortName, str] = {}
        #: Of nftables, by the change that is under way.
        self._transactions = 0

    # --- what outlives the process, see kproxy.backends.base.Keeping ---

    def keep(self, folder: str) -> None:
        self._folder = Path(folder)

    def close(self) -> None:
        """Leaves flows and affinities to the next process."""
        carrier, self._carrier = self._carrier, None
        if carrier is None:
            return
        carrier.stop()
        if self._folder is not None:
            records, names = carrier.leave()
            left = Estate(names=names, records=records)
            try:
                estate.leave(self._folder, self.family, left)
            except KernelError as failed:
                _log.warning("connections may end with the next start", why=failed)

    def leave(self) -> int:
        """See :class:`kproxy.backends.base.Leaving`: connections become conntrack's, which goes on
        translating them as the engine did."""
        carrier = self._carrier
        if carrier is None or not carrier.running:
            return 0
        self.door.run(steer.leaving(self.family))
        given: set[Gift] = set()
        with ConntrackGifts(self.family) as table:
            # Until nothing comes out of the engine that was on its way when the rules changed.
            for look in count():
                records, _ = carrier.leave()
                new = set(leaving.flows(records, self.family)) - given
                if look and not new:
                    break
                table.give(new)
                given |= new
                time.sleep(ON_ITS_WAY)
        carrier.stop()
        # Should the next process come back to this mode, conntrack has them still.
        self._carrier = None
        return len(given)

    def _take_over(self, carrier: Carrier) -> None:
        """What the process before left, before the first packet comes."""
        left = estate.take(self._folder, self.family) if self._folder is not None else None
        self._taken = True
        if left is None:
            return
        try:
            taken = carrier.take(left.records, left.names)
        except ValueError as wrong:
            _log.warning("what was left cannot be read", family=int(self.family), why=wrong)
        else:
            _log.info("took over", family=int(self.family), flows=taken)

    @property
    def carrier(self) -> Carrier:
        """The engine and its threads; made when first asked for."""
        if self._carrier is None:
            seed = self._settings.seed
            if not seed:
                seed = secrets.token_bytes(16) if self._folder is None else kept_seed(self._folder)
            self._carrier = Carrier(self.family, self._settings, seed)
        return self._carrier

    def figures(self) -> tuple[EngineFigures, ...]:
        """What it has counted; () before there is one."""
        carrier = self._carrier
        return () if carrier is None else (figures_of(carrier),)

    def findings(self) -> list[Finding]:
        """See :class:`kproxy.backends.base.Witnessing`."""
        carrier = self._carrier
        return [] if carrier is None else carrier.findings()

    # --- from plan to kernel ---

    def probe(self) -> None:
        host.probe(self.family)

    def render(self, snapshot: Snapshot, previous: Desired | None) -> Desired:
        new = self._settings.new_per_second or NEW_A_SECOND * workers_of(self._settings)
        return render(snapshot, previous, new=new)

    def read(self) -> Held:
        frame, sets = self.door.table()
        carrier = self._carrier
        return Held(
            running=carrier is not None and carrier.running,
            parts=self.door.parts(),
            sysctls=self.door.sysctls(),
            frame=frame,
            sets={**sets, CHECKS: check_members(self.door.gate.numbers())},
            services={} if carrier is None else carrier.services,
            node=None if carrier is None else carrier.node,
            pods_moved=self._pods_moved(),
        )

    def settled(self, desired: Desired) -> Held:
        return settled(desired, wanted(self.door.plan))

    def diff(self, desired: Desired, actual: Held) -> Patch | None:
        return diff(desired, actual)

    def touched(self, patch: Patch) -> Iterator[PortName]:
        return patch.names()

    def apply(self, patch: Patch) -> Applied:
        """Bring a patch about; what others undo meanwhile is done again."""
        written = _written(patch)
        self._transactions = 0
        left: Patch | None = patch
        for tries_left in reversed(range(_TRIES)):
            try:
                if left is not None:
                    self._apply(left)
                break
            except ContentError:
                raise  # another try would meet the same
            except KernelError:
                if not tries_left or self.door.has_device():
                    raise
                left = self.diff(patch.desired, self.read())
        self._notices = dict(patch.desired.tables.notices)
        return Applied(
            full=patch.full,
            written=sum(written.values()) + (patch.node is not None),
            tables=tuple(sorted((name, count) for name, count in written.items() if count)),
            transactions=self._transactions,
        )

    def _apply(self, patch: Patch) -> None:
        """What is new first."""
        carrier = self.carrier
        self._tell(carrier, patch)
        if not self._taken:
            self._take_over(carrier)
        mends = _mends(patch)
        if mends:
            self._write(self._script(patch))
        if patch.start:
            carrier.start()
        # A device that was made anew has lost everything.
        self.door.set(self._unset(patch) - OUTLIVING)
        self.door.put(self._missing(patch))
        if not mends:
            self._write(self._script(patch))
        elif not self.door.has_table():
            # A device takes its time to be made. Who deletes it may go on to the table.
            self._write(_whole(patch.desired))
        if CHECKS in patch.added or CHECKS in patch.gone:
            self._transactions += self.door.gate.let(patch.desired.checks)
        # After the guard: route_localnet would open 127.0.0.1 to neighbours.
        self.door.set(patch.unset & OUTLIVING)
        if patch.chains and self.family is Family.IPV4 and not patch.desired.frame.localhost:
            self.door.forget({ROUTE_LOCALNET[0]})
        if patch.removed:
            carrier.commit({}, patch.removed)

    def _write(self, script: str) -> None:
        if script:
            self.door.run(script)
            self._transactions += 1

    def _tell(self, carrier: Carrier, patch: Patch) -> None:
        desired = patch.desired
        if patch.node is not None or carrier.node is None:
            self._detector = desired.detector
            carrier.set_node(desired.node, self.door.pods(desired.detector))
        if patch.changed:
            carrier.commit(patch.changed, ())

    def _unset(self, patch: Patch) -> frozenset[str]:
        if not patch.start:
            return patch.unset
        return frozenset(steer.sysctls(patch.desired.frame)) - self.door.sysctls()

    def _missing(self, patch: Patch) -> frozenset[Part]:
        return patch.parts if not patch.start else wanted(self.door.plan) - self.door.parts()

    def _script(self, patch: Patch) -> str:
        frame = patch.desired.frame
        skeleton = steer.skeleton(frame) if patch.chains else ""
        return skeleton + steer.changes(self.family, patch.added, patch.gone)

    # --- between syncs ---

    def tend(self) -> float | None:
        """Endpoints that are gone, and pods that came or went."""
        carrier = self._carrier
        if carrier is None:
            return None
        if self._pods_moved() and carrier.node is not None:
            carrier.set_node(carrier.node, self.door.pods(self._detector))
        delays = [carrier.reap(), LOOK_FOR_PODS if self._detector is not None else None]
        return min((delay for delay in delays if delay is not None), default=None)

    def _pods_moved(self) -> bool:
        carrier = self._carrier
        if carrier is None or self._detector is None:
            return False
        return self.door.pods(self._detector) != carrier.pods

    def left_out(self) -> Iterator[tuple[PortName, str]]:
        """Annotations that make no sense: the service ports are served without."""
        yield from sorted(self._notices.items())

    # --- the end ---

    def cleanup(self) -> None:
        self.close()
        self.door.forget(OUTLIVING)
        clean(self.door)


def _written(patch: Patch) -> dict[str, int]:
    """How much of a patch is the engine's, the sets' and the ways'."""
    return {
        "engine": len(patch.changed) + len(patch.removed),
        "sets": steer.count(patch.added) + steer.count(patch.gone),
        "ways": len(patch.parts) + len(patch.unset) + patch.start + patch.chains,
    }


def _mends(patch: Patch) -> bool:
    """Whether the device, or what goes with it, is gone from a way that stands."""
    return bool(patch.parts) and patch.parts.isdisjoint(_ENCLOSED)


def _whole(desired: Desired) -> str:
    """The table with its members, wherever it may stand."""
    members = steer.changes(desired.frame.family, desired.sets, {})
    return steer.skeleton(desired.frame) + members


def clean(door: SteerDoor, kept: Collection[str] = ()) -> bool:
    """Take everything away, in the opposite order; whether there was anything. ``kept`` are
    sysctls that the mode which serves now needs as well."""
    if door.stands():
        # Else they are not this mode's: --conntrack-tcp-be-liberal sets one of them as well.
        door.forget(OUTLIVING - set(kept))
    found = door.delete_table() | door.gate.take()
    return door.take() or found
