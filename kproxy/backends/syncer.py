"""Keeps one backend in step with its Snapshots, and holds the one way to recover.

Whatever goes wrong, the kernel is read and everything compared anew. A change that the kernel
refuses for what it says is taken apart: the service ports that spoil it are left out, reported, and
tried again when their plan changes, and else at the full syncs, ever more rarely.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Generic, cast

import msgspec

from kproxy.backends.base import (
    Actual,
    Adopting,
    Applied,
    Backend,
    Desired,
    Partial,
    Patch,
    Rereading,
    Scope,
)
from kproxy.backends.isolate import isolate
from kproxy.collector import held_off
from kproxy.core.objects import PortName, Value
from kproxy.core.snapshot import PortPlan, Snapshot
from kproxy.errors import ContentError, KproxyError

#: Full syncs between two tries of a service port that the kernel refused, at most.
LONGEST_WAIT = 16


class LeftOut(Value, frozen=True):
    """A service port that the kernel refused: which plan, why, after how many full syncs it is
    tried again, and how many there are to go."""

    plan: PortPlan
    why: str
    wait: int = 1
    left: int = 1


class Syncer(Generic[Desired, Actual, Patch]):
    """Keeps one backend in step with its Snapshots."""

    def __init__(self, backend: Backend[Desired, Actual, Patch]) -> None:
        self.backend = backend
        self._desired: Desired | None = None
        #: What is in force since the last good sync; None when that is not known.
        self._in_force: Desired | None = None
        self._reads = True
        #: Where others were at work, when no more than that has to be read.
        self._scope: Scope | None = None
        self._left_out: dict[PortName, LeftOut] = {}
        #: What the last sync found in the kernel before it wrote; None when it did not read.
        self.found: Actual | None = None

    @property
    def desired(self) -> Desired | None:
        """What the last Snapshot asked for, but for what was left out, whether or not the kernel
        took it."""
        return self._desired

    @property
    def reads(self) -> bool:
        """Whether the next sync reads the kernel and compares everything."""
        return self._reads

    def forget(self, scope: Scope | None = None) -> None:
        """The kernel may have been changed by others, within ``scope`` if it is known where: the
        next sync reads that."""
        if scope is None or not isinstance(self.backend, Rereading):
            self._reads = True
        else:
            self._scope = scope if self._scope is None else self._scope | scope

    def sync(self, snapshot: Snapshot) -> Applied:
        """Bring the kernel to the Snapshot. On KproxyError the next call starts by reading."""
        # Everything is read, made and compared then.
        with held_off() if self._reads or self._scope is not None else nullcontext():
            return self._sync(snapshot)

    def _sync(self, snapshot: Snapshot) -> Applied:
        full, self.found = self._reads, None
        known = self._left_out
        out = self._still_out(snapshot, full=full)
        wanted = snapshot if not known else _without(snapshot, frozenset(out))
        desired = self._desired = self.backend.render(wanted, self._desired)
        try:
            applied = self._bring(desired)
        except ContentError as refusal:
            self._lost()
            if not full:
                # Perhaps only what we believed was wrong.
                return self.sync(snapshot)
            self._left_out = out
            # What has been adopted of it: else all that lies otherwise would be under suspicion.
            applied = self._isolate(snapshot, self._desired, refusal, known)
        except KproxyError:
            self._lost()
            raise
        else:
            self._left_out = out
        return msgspec.structs.replace(applied, full=full, refused=self._refused())

    def _refused(self) -> tuple[tuple[PortName, str], ...]:
        own = self.backend.left_out() if isinstance(self.backend, Partial) else ()
        refused = [(name, left.why) for name, left in sorted(self._left_out.items())]
        return (*refused, *own)

    def _lost(self) -> None:
        self._in_force, self._reads, self._scope = None, True, None

    def _bring(self, desired: Desired) -> Applied:
        """From what is there, or is believed to be, to ``desired``."""
        before, foreign = self._in_force, False
        scope = self._scope
        if self._reads or before is None or scope is not None:
            actual = self._read(before, None if self._reads else scope)
            if before is None and isinstance(self.backend, Adopting):
                desired = self._desired = self.backend.adopted(desired, actual)
            patch = self.backend.diff(desired, actual)
            if before is not None and patch is not None:
                foreign = before is desired or self.backend.diff(before, actual) is not None
        else:
            patch = self.backend.diff(desired, self.backend.settled(before))
        applied = Applied(full=False) if patch is None else self.backend.apply(patch)
        self._in_force, self._reads, self._scope = desired, False, None
        return msgspec.structs.replace(applied, foreign=foreign) if foreign else applied

    def _read(self, believed: Desired | None = None, scope: Scope | None = None) -> Actual:
        """All of it, or what there is if others were at work within ``scope`` only."""
        if believed is not None and scope is not None and isinstance(self.backend, Rereading):
            return cast("Actual", self.backend.reread(believed, scope))
        actual = self.backend.read()
        if self.found is None:
            self.found = actual
        return actual

    def _still_out(self, snapshot: Snapshot, *, full: bool) -> dict[PortName, LeftOut]:
        """What stays left out in this sync; a full one counts down to the next try."""
        out = {}
        for name, left in self._left_out.items():
            if snapshot.ports.get(name) != left.plan:
                continue
            if full:
                left = msgspec.structs.replace(left, left=left.left - 1)
            if left.left > 0:
                out[name] = left
        return out

    def _isolate(
        self,
        snapshot: Snapshot,
        desired: Desired,
        refusal: ContentError,
        known: dict[PortName, LeftOut],
    ) -> Applied:
        """Bring about what the kernel takes; leave out the service ports that it does not."""
        total = Applied(full=True)
        bad = {name: left.why for name, left in self._left_out.items()}

        def attempt(out: frozenset[PortName]) -> ContentError | None:
            nonlocal total
            # Rendered from the whole: what was left out in one try is not made anew in the next.
            self._desired = self.backend.render(_without(snapshot, out), desired)
            try:
                applied = self._bring(self._desired)
            except ContentError as again:
                self._lost()
                return again
            total = _sum(total, applied)
            return None

        try:
            patch = self.backend.diff(desired, self._read())
            names = [] if patch is None else list(self.backend.touched(patch))
            isolate(names, refusal, attempt, bad)
        except KproxyError:
            self._lost()
            raise
        finally:
            self._left_out = {
                name: self._left_out.get(name) or _again(snapshot.ports[name], why, known.get(name))
                for name, why in bad.items()
            }
        return total


def _without(snapshot: Snapshot, out: frozenset[PortName]) -> Snapshot:
    """The Snapshot but for some ports; it names no predecessor, so that all is compared."""
    ports = {name: plan for name, plan in snapshot.ports.items() if name not in out}
    return msgspec.structs.replace(snapshot, ports=ports, base=None)


def _again(plan: PortPlan, why: str, before: LeftOut | None) -> LeftOut:
    """Twice as long as last time when the same plan was refused once more."""
    wait = 1 if before is None or before.plan != plan else min(LONGEST_WAIT, before.wait * 2)
    return LeftOut(plan, why, wait, wait)


def _sum(one: Applied, other: Applied) -> Applied:
    """Two transactions of one sync, among others that were refused: how many of those the kernel
    took in part is not known."""
    tables = dict(one.tables)
    for table, count in other.tables:
        tables[table] = tables.get(table, 0) + count
    return Applied(
        full=True,
        written=one.written + other.written,
        tables=tuple(sorted(tables.items())),
        transactions=None,
        foreign=one.foreign or other.foreign,
    )
