"""The daemon of ``kproxy run``: sources in, syncs when they are due, status out, a clean end.

:func:`main` needs no command line: it can be called in a forked process after entering a network
namespace. It writes nothing to the kernel before every source has been read once. SIGTERM and
SIGINT end it after a running sync and leave the rules in place, as kube-proxy does; a second one
ends it at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import msgspec

from kproxy import config_check, logs
from kproxy.backends import registry
from kproxy.config import Config
from kproxy.core.events import Delta
from kproxy.core.objects import Value
from kproxy.errors import KproxyError, MachineError
from kproxy.kernel import capabilities
from kproxy.kernel.addresses import AddressNotices
from kproxy.proxy import NodeProxy
from kproxy.sources.manifests import ManifestSource
from kproxy.status import (
    DEFAULT_STATE_DIR,
    FileStatus,
    Notifier,
    StateDir,
    Status,
    identity_text,
)
from kproxy.sync import Schedule

_log = logs.get("daemon")


def main(
    config: Config,
    filenames: Sequence[str],
    state_dir: str = DEFAULT_STATE_DIR,
    variant: str = registry.AUTO,
    *,
    notify: str | None = None,
) -> int:
    """Be a node's proxy until told to stop; returns the exit status.

    ``config`` has been checked. ``filenames`` are manifest files and folders, ``-`` is standard
    input. ``notify`` is a datagram socket as in sd_notify(3), NOTIFY_SOCKET's by default.
    """
    logs.setup(config.logging.format, config.logging.verbosity)
    try:
        if not filenames:
            raise MachineError(
                "objects cannot come from a Kubernetes API server in this version",
                hint="name manifest files or folders with -f",
            )
        choice = registry.parse(config.effective_mode)
        if variant != registry.AUTO:
            choice = registry.parse(f"{choice.mode}-{variant}")
        capabilities.require("kproxy run", "CAP_NET_ADMIN")
        state = StateDir(state_dir)
        try:
            notifier = Notifier(notify or os.environ.get("NOTIFY_SOCKET"))
            daemon = Daemon(config, filenames, state, choice, notifier)
            asyncio.run(daemon.run())
        finally:
            state.close()
    except KproxyError as error:
        sys.stderr.write(f"kproxy: {error}\n")
        return error.exit_status
    return 0


def node_name(config: Config) -> str:
    """The Node this process stands for: --hostname-override, else the host's name."""
    return (config.hostname_override or socket.gethostname()).strip().lower()


class Look(Value, frozen=True):
    """What one look of the source at its files gave: the change, and the files it belongs to.

    ``notices`` name kinds that are skipped; ``known`` is false while a stream has yet to begin.
    """

    delta: Delta = Delta()
    files: dict[str, FileStatus] = msgspec.field(default_factory=dict)
    refusals: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    known: bool = False


class _Source(ManifestSource):
    """Tells of every look, also of one that changed no object: a save that only broke a file must
    reach the status. Delta and file states are taken together, in the thread that looked, so that
    no file counts as in force before its objects do."""

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


class Daemon:
    """Wires source, schedule and proxy together in one event loop."""

    def __init__(
        self,
        config: Config,
        filenames: Sequence[str],
        state: StateDir,
        choice: registry.Choice,
        notifier: Notifier,
    ) -> None:
        self._config = config
        self._state = state
        self._notifier = notifier
        self._source = _Source(filenames, self._looked)
        self._proxy = NodeProxy(config, node_name(config), choice)
        periods = config.periods
        self._schedule = Schedule(periods.min_sync_period, periods.sync_period)
        self._pending: list[Delta] = []
        self._look = Look()
        self._wake = asyncio.Event()
        self._stopping = False
        self._moved = False
        self._told: tuple[str, ...] = ()
        self._status = Status(
            pid=os.getpid(),
            node=node_name(config),
            mode=self._proxy.choice.mode,
            variant=self._proxy.choice.variant,
            started_at=time.time(),
        )

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. KproxyError when it cannot start."""
        self._loop = asyncio.get_running_loop()
        self._listen_for_signals()
        _say_what_has_no_effect(self._config)
        notices = AddressNotices()
        try:
            first = await asyncio.to_thread(self._source.load)
            self._pending.clear()  # the first look has told of itself too
            await asyncio.to_thread(self._proxy.begin, first)
            _log.info(
                "started",
                node=self._status.node,
                mode=self._status.mode,
                variant=self._status.variant,
                **self._proxy.objects,
            )
            self._ask(full=True)
            asyncio.get_running_loop().add_reader(notices.fileno(), self._addresses_moved, notices)
            await self._serve()
            self._notifier.send(STOPPING="1")
        finally:
            asyncio.get_running_loop().remove_reader(notices.fileno())
            notices.close()
            self._proxy.close()
        _log.info("stopped; the rules stay in place", undo="kproxy cleanup")

    async def _serve(self) -> None:
        watch = asyncio.create_task(self._watch())
        watch.add_done_callback(lambda _: self._wake.set())
        try:
            while not self._stopping:
                if watch.done():
                    watch.result()  # raises what ended it; a source may also simply have no more
                await self._sync_or_wait()
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch

    def _listen_for_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)

    def _stop(self, number: signal.Signals) -> None:
        if self._stopping:
            os._exit(128 + number)
        _log.info("stopping", signal=number.name)
        self._stopping = True
        self._wake.set()

    async def _watch(self) -> None:
        async for _ in self._source.watch():
            pass  # every look has told of itself already, see _Source

    def _looked(self, look: Look) -> None:
        """Called by the source in its thread; the loop's thread takes it in, in order."""
        with suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(self._take, look)

    def _take(self, look: Look) -> None:
        if look.delta:
            self._pending.append(look.delta)
        elif msgspec.structs.replace(look, delta=self._look.delta) == self._look:
            return
        for line in look.notices:
            if line not in self._look.notices:
                _log.info("skipped", what=line)
        self._look = look
        self._ask()

    def _ask(self, *, full: bool = False) -> None:
        """Ask for a sync; nothing is written before everything has been listed once."""
        if self._look.known:
            self._schedule.request(full=full)
            self._wake.set()

    def _addresses_moved(self, notices: AddressNotices) -> None:
        notices.drain()
        self._moved = True
        self._ask()

    async def _sync_or_wait(self) -> None:
        """One sync if it is due, else sleep until it is or something happens."""
        due = self._schedule.due(time.monotonic())
        if due is not None and due <= time.monotonic():
            await self._sync()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(None if due is None else due - time.monotonic()):
                await self._wake.wait()
        self._wake.clear()

    async def _sync(self) -> None:
        """One sync in a worker thread. What arrives meanwhile waits for the next one."""
        run = self._schedule.start(time.monotonic())
        deltas, self._pending = self._pending, []
        moved, self._moved = self._moved, False
        files, refusals = self._look.files, self._look.refusals
        begun = time.monotonic()
        ok = await asyncio.to_thread(self._proxy.sync, deltas, full=run.full, moved=moved)
        ended = time.monotonic()
        self._schedule.finish(ended, ok=ok)
        if not ok:
            _log.info("trying again", seconds=self._schedule.retry_delay)
        self._tell_refusals((*refusals, *self._proxy.refusals))
        self._publish(ok, files)
        _log.detail("sync ended", ok=ok, seconds=ended - begun, deltas=len(deltas))

    def _tell_refusals(self, refusals: Iterable[str]) -> None:
        """Log what is newly left out, and what is no longer: each once."""
        current = dict.fromkeys(refusals)
        for line in current:
            if line not in self._told:
                _log.warning("left out", what=line)
        for line in self._told:
            if line not in current:
                _log.info("no longer left out", what=line)
        self._told = tuple(current)

    def _publish(self, ok: bool, files: dict[str, FileStatus]) -> None:
        """Write the status, then say so: who is told finds the new file."""
        before, proxy = self._status, self._proxy
        self._status = msgspec.structs.replace(
            before,
            ready=proxy.ready,
            families=proxy.statuses,
            objects=proxy.objects,
            refusals=self._told,
            files=files if ok else before.files,
            syncs=before.syncs + 1,
            failures=before.failures + (not ok),
            last_error="" if ok else proxy.error,
        )
        self._state.write(self._status)
        if proxy.ready and not before.ready:
            _log.info("ready", **proxy.totals)
            self._notifier.send(READY="1")
        line = proxy.error or ", ".join(f"{value} {name}" for name, value in proxy.totals.items())
        self._notifier.send(
            STATUS=line,
            X_KPROXY_STATUS="changed",
            X_KPROXY_STATE_DIR=str(self._state.path),
        )


def _say_what_has_no_effect(config: Config) -> None:
    """Once, at the start: settings that are accepted and do nothing in this version."""
    for line in config_check.without_effect(config):
        _log.info("accepted, no effect in this version", setting=line)
