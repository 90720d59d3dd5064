"""What every mode is: Snapshot → Desired → Patch → kernel, each step a value.

A backend serves one IP family in the network namespace of the calling thread. ``render`` and
``diff`` are pure; ``read`` and ``apply`` touch the kernel. :class:`Syncer` puts them together and
holds the one way to recover: after a failed apply it forgets what it believed, reads the kernel,
and diffs again.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import msgspec

from kproxy.core.objects import Family, PortName, Value
from kproxy.core.snapshot import Snapshot
from kproxy.errors import KernelError

Desired = TypeVar("Desired")
Actual = TypeVar("Actual")
Patch = TypeVar("Patch")


class Applied(Value, frozen=True):
    """What one sync did. ``full``: the kernel was read and everything compared.

    ``written`` counts objects of the mode (rules, elements, servers) sent to the kernel, ``tables``
    the same by table in modes that have tables, ``refused`` the service ports that the kernel did
    not take and why.
    """

    full: bool
    written: int = 0
    refused: tuple[tuple[PortName, str], ...] = ()
    tables: tuple[tuple[str, int], ...] = ()


class Backend(Protocol[Desired, Actual, Patch]):
    """One mode, one family, one network namespace: that of the calling thread.

    Text and messages may be made lazily, when somebody looks at them: a patch that is applied while
    it is made keeps two cores busy. A value never looks different the second time.
    """

    mode: str
    family: Family

    def probe(self) -> None:
        """Raise MachineError, naming the remedy, when this kernel or machine cannot do it."""

    def render(self, snapshot: Snapshot, previous: Desired | None) -> Desired:
        """Pure. ``previous`` is the last result: what did not change is taken from it."""

    def read(self) -> Actual:
        """What the kernel holds of ours now, all attributes."""

    def settled(self, desired: Desired) -> Actual:
        """Pure: equal to what ``read`` gives once ``desired`` is in force."""

    def diff(self, desired: Desired, actual: Actual) -> Patch | None:
        """Pure: the smallest change from ``actual`` to ``desired``; None when there is nothing."""

    def apply(self, patch: Patch) -> Applied:
        """All or nothing for every service; ApplyError or CommandError when refused.

        A mode that needs several transactions orders them so that nothing half-made is ever
        reachable: after a refusal each service is served as before or as wanted.
        """

    def cleanup(self) -> None:
        """Take away every trace of ours from this namespace; fine when there is none."""


class Syncer(Generic[Desired, Actual, Patch]):
    """Keeps one backend in step with its Snapshots."""

    def __init__(self, backend: Backend[Desired, Actual, Patch]) -> None:
        self.backend = backend
        self._desired: Desired | None = None
        self._actual: Actual | None = None
        #: What the last sync read from the kernel, None when it read nothing.
        self.found: Actual | None = None

    @property
    def desired(self) -> Desired | None:
        """What the last Snapshot asked for, whether or not the kernel took it."""
        return self._desired

    @property
    def reads(self) -> bool:
        """Whether the next sync reads the kernel and compares everything."""
        return self._actual is None

    def forget(self) -> None:
        """The kernel may have been changed by others: the next sync reads it."""
        self._actual = None

    def sync(self, snapshot: Snapshot) -> Applied:
        """Bring the kernel to the Snapshot. On KernelError the next call starts by reading."""
        desired = self._desired = self.backend.render(snapshot, self._desired)
        full, self.found = self.reads, None
        try:
            actual = self._actual
            if actual is None:
                actual = self.found = self.backend.read()
            patch = self.backend.diff(desired, actual)
            applied = self.backend.apply(patch) if patch is not None else Applied(full)
        except KernelError:
            self._actual = None
            raise
        self._actual = self.backend.settled(desired)
        return msgspec.structs.replace(applied, full=full)
