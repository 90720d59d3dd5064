"""Wakes a reader up when something happened to its paths. It says that, and not what."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable
from typing import NamedTuple

from watchfiles import Change, awatch

from kproxy.sources.files import Found, hops

#: Events are gathered until nothing came for a step, at most for the debounce time (both in ms).
_STEP_MS = 10
_DEBOUNCE_MS = 50


class Places(NamedTuple):
    """What to watch: folders, with what tells a folder from one made anew under its name.

    ``folders`` any change in them counts; ``names`` only these paths count.
    """

    roots: frozenset[tuple[str, int, int]]
    folders: frozenset[str]
    names: frozenset[str]


def places(found: Iterable[Found]) -> Places:
    """The folders in which a change can mean anything for these paths.

    A watch holds on to a folder's inode: when the folder or a link on the way is made anew, only
    its parent tells. So the parent of every hop is watched, not recursively.
    """
    folders: set[str] = set()
    names: set[str] = set()
    for one in found:
        names.update(hops(one.path))
        if one.folder:
            folders.add(os.path.abspath(one.path))
            for file in one.files:
                if os.path.islink(file):
                    names.update(hops(file))
    roots: set[tuple[str, int, int]] = set()
    for folder in folders | {os.path.dirname(name) for name in names}:
        with contextlib.suppress(OSError):
            status = os.stat(folder)
            roots.add((folder, status.st_dev, status.st_ino))
    return Places(frozenset(roots), frozenset(folders), frozenset(names))


class Watcher:
    """File events for some places, as an :class:`asyncio.Event` that is set by each of them."""

    def __init__(self, watched: Places, wake: asyncio.Event) -> None:
        self.watched = watched
        #: Why no events come any more; "" while they do.
        self.failed = ""
        self._wake = wake
        self._task = asyncio.create_task(self._pump())

    @classmethod
    async def start(cls, watched: Places, wake: asyncio.Event) -> Watcher:
        """Returns when the watches are in place: what happens from now on is not missed."""
        watcher = cls(watched, wake)
        # The task sets the watches up in its first step, before it waits for anything.
        await asyncio.sleep(0)
        return watcher

    async def _pump(self) -> None:
        roots = sorted(path for path, _, _ in self.watched.roots)
        try:
            async for _ in awatch(
                *roots,
                watch_filter=self._counts,
                step=_STEP_MS,
                debounce=_DEBOUNCE_MS,
                recursive=False,
                ignore_permission_denied=True,
            ):
                self._wake.set()
        except (OSError, RuntimeError) as fault:
            # A folder that went in this moment, or no more inotify instances (128 a user).
            self.failed = str(fault)
            self._wake.set()

    def _counts(self, change: Change, path: str) -> bool:
        return path in self.watched.names or (
            path in self.watched.folders or os.path.dirname(path) in self.watched.folders
        )

    async def stop(self) -> None:
        """Ends the watches; returns when they are gone."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
