"""Manifest files, folders and streams as a source of objects: read once, then again on change.

Work follows the change: a file is read when its identity changed, decoded when its bytes did, and
a Delta holds only objects that differ. An event is a hint to look, never information, so a lost or
repeated one does no harm.

Nothing is taken away in haste. Editors truncate a file before they write it, or move it away, so
an object is deleted only when its file has been quiet without it for ``settle`` seconds; new and
changed objects are passed on at once. A path that cannot be looked at keeps what was read from it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from enum import StrEnum

from kproxy.core.decode import Notice
from kproxy.core.events import Delta
from kproxy.core.objects import Refusal, Value
from kproxy.errors import SourceError
from kproxy.sources.files import Found, Identity, find, identity_of, read
from kproxy.sources.merge import Merge, Order
from kproxy.sources.streams import Stream
from kproxy.sources.text import Contents, read_text
from kproxy.sources.watcher import Places, Watcher, places

log = logging.getLogger(__name__)

STDIN = "-"

#: Seconds between looks that nobody asked for: with file events (a lost one, a network file
#: system), and without them.
_BACKSTOP = 5.0
_BACKSTOP_WITHOUT_EVENTS = 0.5
#: File times advance in ticks of up to 10 ms (kernels before 6.13), so a file written less than
#: two ticks ago can be written again without its identity showing it.
_TICK_NS = 20_000_000
_RECHECK = 0.03


class Status(StrEnum):
    READ = "read"
    #: Read, but objects that are gone from it are still in force until it has been quiet.
    SETTLING = "settling"
    #: Cannot be read in part: objects that are not seen keep their last good version.
    KEPT = "kept last good"
    #: Not there now: all its objects stay in force.
    MISSING = "missing"


class FileState(Value, frozen=True):
    """How far a file is taken over. With ``READ`` and the identity that the file has on disk,
    everything that it says is in force. ``identity`` None: a stream, or never read."""

    status: Status
    identity: Identity | None = None


class _File:
    """What is remembered of a file between looks."""

    __slots__ = ("contents", "digest", "due", "identity", "order", "status")

    def __init__(self, order: Order) -> None:
        self.order = order
        self.identity: Identity | None = None
        self.contents = Contents()
        self.digest: tuple[int, int] | None = None
        self.status = Status.MISSING
        #: When to look at it again without being asked (clock time).
        self.due: float | None = None

    def lose(self, due: float | None = None) -> None:
        """It cannot be read. Whatever comes back in its place is taken as new."""
        self.status, self.digest, self.due = Status.MISSING, None, due


class ManifestSource:
    """Objects from ``paths``: files, folders (their ``*.yaml``, ``*.yml`` and ``*.json``, not
    those of folders below, as ``kubectl apply -f`` does) and ``-`` for standard input.

    ``settle``: seconds of quiet before deletions. ``patience``: seconds that the writer of a pipe
    has for its first document. ``stdin``: the descriptor behind ``-``. ``clock``: monotonic time.
    One task at a time may use it.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        settle: float = 0.1,
        patience: float = 1.0,
        stdin: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = list(dict.fromkeys(paths))
        self._settle = settle
        self._patience = patience
        self._stdin = stdin
        self._clock = clock
        self._merge = Merge()
        self._files: dict[str, _File] = {}
        self._streams: dict[str, Stream] = {}
        self._found: list[Found] = []
        self._faults: list[Refusal] = []
        self._warned = False
        self._published: tuple[tuple[Refusal, ...], tuple[Notice, ...]] = ((), ())

    # --- reading -----------------------------------------------------------------------------

    def load(self, *, to_end: bool = False) -> Delta:
        """Reads everything for the first time. Call it once, before anything else.

        ``to_end`` reads streams to their end, for commands that run once; a daemon takes what is
        there and watches for the rest.

        Raises :class:`SourceError` for a path that is missing or cannot be looked at: after the
        start that is a refusal, at the start it is a mistyped flag.
        """
        require(self._paths)
        for at, path in enumerate(self._paths):
            if path == STDIN:
                self._first_of_stream(path, at, self._stdin, to_end)
            elif find(path).stream:
                self._first_of_stream(path, at, _open_stream(path), to_end)
        return self.refresh()

    def refresh(self) -> Delta:
        """Looks at all files now and says what changed. Raises nothing for what it finds."""
        now = self._clock()
        self._faults = []
        self._found = []
        present: dict[str, Order] = {}
        seen: set[str] = set()
        lost: set[int] = set()
        for at, path in enumerate(self._paths):
            if path in self._streams:
                continue
            found = find(path)
            self._found.append(found)
            if found.fault or found.stream:
                lost.add(at)
                self._fault(path, found.fault or "is no regular file any more")
                continue
            for file in found.files:
                # Named twice, as itself and by its folder: the first way counts.
                if (true := os.path.abspath(file)) not in seen:
                    seen.add(true)
                    present[file] = (at, file)
        for file, order in present.items():
            self._look(file, self._files.setdefault(file, _File(order)), now)
        self._absent(set(self._files).difference(present), lost, now)
        delta = self._merge.delta()
        self._published = ((*self._faults, *self._merge.refusals), self._merge.notices)
        return delta

    def _look(self, path: str, file: _File, now: float) -> None:
        """Reads a file if it is not what it was, and deletes what has been gone long enough."""
        try:
            identity = identity_of(os.stat(path))
            due = file.due is not None and now >= file.due
            if identity == file.identity and file.status is not Status.MISSING and not due:
                return
            identity, data = read(path)
        except OSError as fault:
            file.lose()
            self._fault(path, fault.strerror or str(fault))
            return
        digest = (len(data), hash(data))
        changed, file.digest = digest != file.digest, digest
        file.identity = identity
        if changed:
            file.contents = read_text(data, path)
        if changed or file.status is Status.SETTLING:
            quiet = self._settle <= 0 or (due and not changed)
            gone = self._merge.put(path, file.order, file.contents, hold=not quiet)
            if gone and not quiet:
                file.due = now + self._settle if changed else file.due
                file.status = Status.SETTLING
                return
        file.status = Status.KEPT if file.contents.broken else Status.READ
        fresh = 0 <= time.time_ns() - identity.ctime_ns < _TICK_NS
        file.due = now + _RECHECK if fresh else None

    def _absent(self, paths: Iterable[str], lost: set[int], now: float) -> None:
        """Files that are not there: kept while their folder cannot be seen, else given up."""
        for path in paths:
            file = self._files[path]
            if file.order[0] in lost:
                file.lose()
            elif file.status is not Status.MISSING or file.due is None:
                file.lose(due=now + self._settle)
            if file.due is not None and now >= file.due:
                self._merge.drop(path)
                del self._files[path]

    def _fault(self, path: str, what: str) -> None:
        message = f"{what}; restore it, what was read from it stays in force until then"
        self._faults.append(Refusal(message=message, file=path))

    # --- streams -----------------------------------------------------------------------------

    def _first_of_stream(self, path: str, at: int, descriptor: int, to_end: bool) -> None:
        stream = self._streams[path] = Stream(path, descriptor)
        contents = stream.read_all() if to_end else stream.read_first(self._patience)
        self._merge.put(path, (at, ""), contents, log=True)

    def _catch_up(self, streams: Iterable[Stream]) -> Delta:
        for stream in streams:
            order = (self._paths.index(stream.name), "")
            self._merge.put(stream.name, order, stream.read_some(), log=True)
        return self.refresh()

    # --- watching ----------------------------------------------------------------------------

    async def watch(self) -> AsyncIterator[Delta]:
        """Yields every change after ``load``, for ever; never an empty Delta.

        Files are read in a thread, so that a large one does not stop the caller's other tasks.
        Close the iterator or cancel its task to end it.
        """
        wake = asyncio.Event()
        watcher: Watcher | None = None
        readable: set[Stream] = set()
        try:
            while True:
                wake.clear()
                watcher = await self._watching(watcher, wake)
                streams = tuple(readable)
                readable.clear()
                delta = await asyncio.to_thread(self._catch_up, streams)
                if delta:
                    yield delta
                if places(self._found) != watcher.watched:
                    continue
                self._listen(readable, wake)
                await _wait(wake, self._pause(watcher))
        finally:
            self._deafen()
            if watcher is not None:
                await watcher.stop()

    async def _watching(self, watcher: Watcher | None, wake: asyncio.Event) -> Watcher:
        """The watcher for the places as they are now: the old one, or a new one."""
        now: Places = places(self._found)
        if watcher is not None:
            if watcher.watched == now and not watcher.failed:
                return watcher
            await watcher.stop()
            if watcher.failed and not self._warned:
                self._warned = True
                log.warning("no file events, looking twice a second: %s", watcher.failed)
        return await Watcher.start(now, wake)

    def _listen(self, readable: set[Stream], wake: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()

        def ready(stream: Stream) -> None:
            # Once is enough: it would call again for the same bytes until they are read.
            loop.remove_reader(stream.descriptor)
            readable.add(stream)
            wake.set()

        for stream in self._streams.values():
            if not stream.ended:
                loop.add_reader(stream.descriptor, ready, stream)

    def _deafen(self) -> None:
        loop = asyncio.get_running_loop()
        for stream in self._streams.values():
            loop.remove_reader(stream.descriptor)

    def _pause(self, watcher: Watcher) -> float:
        """Seconds until the next look that no event asks for."""
        backstop = _BACKSTOP_WITHOUT_EVENTS if watcher.failed else _BACKSTOP
        now = self._clock()
        return min([backstop, *(max(due - now, 0.001) for due in self._dues())])

    def _dues(self) -> list[float]:
        return [file.due for file in self._files.values() if file.due is not None]

    # --- what is known -----------------------------------------------------------------------

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Everything that is left out or cannot be read now."""
        return self._published[0]

    @property
    def notices(self) -> tuple[Notice, ...]:
        """The kinds that are skipped: one notice a kind and file."""
        return self._published[1]

    @property
    def files(self) -> Mapping[str, FileState]:
        """State of every file and stream by its path."""
        states = {path: FileState(file.status, file.identity) for path, file in self._files.items()}
        for path, stream in self._streams.items():
            states[path] = FileState(Status.READ if stream.known else Status.MISSING)
        return states

    @property
    def known(self) -> bool:
        """False while a stream has not given its first document (or its end): until then an object
        that is not here may still come, and nothing should be removed for lack of it."""
        return all(stream.known for stream in self._streams.values())


def require(paths: Iterable[str]) -> None:
    """SourceError for the first path that is missing or cannot be looked at. Reads nothing."""
    for path in paths:
        if path == STDIN:
            continue
        found = find(path)
        if found.fault:
            raise SourceError(found.fault, where=path, hint="check the path given with -f")
        if not found.stream and not found.folder:
            _must_be_readable(path)


def _open_stream(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as fault:
        raise _no_source(path, fault) from fault


def _must_be_readable(path: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as fault:
        raise _no_source(path, fault) from fault


def _no_source(path: str, fault: OSError) -> SourceError:
    return SourceError(
        fault.strerror or str(fault), where=path, hint="check the path given with -f"
    )


async def _wait(wake: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(wake.wait(), seconds)
    except TimeoutError:
        return
