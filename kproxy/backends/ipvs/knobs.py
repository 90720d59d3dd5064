"""Sets the sysctls and time-outs of IPVS mode, and remembers what the kernel does not let us set.

In a container /proc/sys may be read-only. What was refused is told once and asked for no more as
long as it is as it was found then: else every sync that reads the kernel would take it for changed
by others, and fail again. Once somebody gives it another value, or kproxy starts anew, it is tried.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping

import msgspec

from kproxy import logs
from kproxy.backends.ipvs.diff import Patch
from kproxy.backends.ipvs.door import Door
from kproxy.core.objects import Family
from kproxy.core.servers import Timeouts
from kproxy.errors import KernelError

_log = logs.get("ipvs")


class Told:
    """What was said already, by whichever family: both need the same sysctls."""

    def __init__(self) -> None:
        self._said: set[tuple[int, str]] = set()
        self._lock = threading.Lock()

    def news(self, words: list[str]) -> list[str]:
        """Those that were not said in this network namespace yet; they are from now on."""
        namespace = os.stat("/proc/thread-self/ns/net").st_ino
        with self._lock:
            new = [each for each in words if (namespace, each) not in self._said]
            self._said.update((namespace, each) for each in new)
        return new


#: Of this process.
TOLD = Told()


class Knobs:
    """Those of one family. ``told`` is shared by both."""

    def __init__(self, door: Door, family: Family, told: Told) -> None:
        self._door, self._family, self._told = door, family, told
        #: (name, value) that was refused -> what the sysctl had.
        self._sysctls: dict[tuple[str, str], str | None] = {}
        #: Time-outs that were refused, and those in force then.
        self._timeouts: tuple[Timeouts, Timeouts] | None = None

    def found(self, sysctls: Mapping[str, str | None], timeouts: Timeouts) -> None:
        """The kernel was read: what others changed since it was refused may be tried again."""
        kept = self._sysctls.items()
        self._sysctls = {each: was for each, was in kept if sysctls.get(each[0]) == was}
        if self._timeouts is not None and self._timeouts[1] != timeouts:
            self._timeouts = None

    def without_refused(self, patch: Patch | None) -> Patch | None:
        """The patch but for what cannot be set; None when nothing else is in it."""
        if patch is None or not (self._sysctls or self._timeouts):
            return patch
        refused = self._timeouts is not None and self._timeouts[0] == patch.timeouts
        left = msgspec.structs.replace(
            patch,
            sysctls=tuple(each for each in patch.sysctls if each not in self._sysctls),
            timeouts=None if refused else patch.timeouts,
        )
        return left or None

    def set(self, patch: Patch) -> None:
        """One that cannot be set is told; a node that serves nearly right is better than none."""
        trouble = []
        for name, value in patch.sysctls:
            try:
                self._door.set_sysctl(name, value)
            except KernelError as refused:
                trouble.append(str(refused))
                self._sysctls[name, value] = self._door.sysctl(name)
        if patch.timeouts is not None:
            try:
                self._door.set_timeouts(patch.timeouts)
            except KernelError as refused:
                trouble.append(str(refused))
                self._timeouts = patch.timeouts, self._door.timeouts()
        if new := self._told.news(trouble):
            _log.warning("left as it is", family=int(self._family), why="; ".join(new))
