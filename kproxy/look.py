"""A source of objects that tells of every look at its files, also of one that changed no object.

A save that only broke a file must reach the status. Delta and file states are taken together, in
the thread that looked, so that no file counts as in force before its objects do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from kproxy.core.events import Delta
from kproxy.core.objects import Value
from kproxy.sources.manifests import ManifestSource
from kproxy.status import FileStatus, identity_text


class Look(Value, frozen=True):
    """What one look of the source at its files gave: the change, and the files it belongs to.

    ``notices`` name kinds that are skipped; ``known`` is false while a stream has yet to begin.
    """

    delta: Delta = Delta()
    files: dict[str, FileStatus] = msgspec.field(default_factory=dict)
    refusals: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    known: bool = False


class LookingSource(ManifestSource):
    """Calls ``looked`` after each look, in the thread that looked."""

    def __init__(self, paths: Sequence[str], looked: Callable[[Look], None]) -> None:
        super().__init__(paths)
        self._tell = looked

    def refresh(self) -> Delta:
        delta = super().refresh()
        files = {
            path: FileStatus(identity_text(state.identity), str(state.status))
            for path, state in self.files.items()
        }
        refusals, notices = tuple(map(str, self.refusals)), tuple(map(str, self.notices))
        self._tell(Look(delta, files, refusals, notices, self.known))
        return delta
