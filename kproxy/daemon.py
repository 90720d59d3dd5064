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
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from kproxy import config_check, config_watch, logs, node_setup
from kproxy.backends import registry
from kproxy.config import Config
from kproxy.config_watch import ConfigFile
from kproxy.core.events import Delta, ref_of
from kproxy.core.objects import Node
from kproxy.core.snapshot import Snapshot
from kproxy.core.tracker import Counts
from kproxy.durations import format_duration
from kproxy.errors import KproxyError, MachineError
from kproxy.health.monitor import Monitor
from kproxy.health.server import Servers
from kproxy.kernel import capabilities
from kproxy.kernel.addresses import AddressNotices
from kproxy.look import Look, LookingSource
from kproxy.proxy import NodeProxy
from kproxy.repairs import Repairs
from kproxy.status import DEFAULT_STATE_DIR, FileStatus, Notifier, StateDir, Status
from kproxy.sync import Schedule

_log = logs.get("daemon")

#: Seconds that a Node has to get its spec.podCIDRs in detectLocalMode NodeCIDR: kube-proxy's.
POD_RANGE_PATIENCE = 300.0


def main(
    config: Config,
    filenames: Sequence[str],
    state_dir: str = DEFAULT_STATE_DIR,
    variant: str = registry.AUTO,
    *,
    notify: str | None = None,
    config_file: ConfigFile | None = None,
    patience: float = POD_RANGE_PATIENCE,
) -> int:
    """Be a node's proxy until told to stop; returns the exit status.

    ``config`` has been checked. ``filenames`` are manifest files and folders, ``-`` is standard
    input. ``notify`` is a datagram socket as in sd_notify(3), NOTIFY_SOCKET's by default.
    ``config_file`` is where ``config`` came from: a change of it ends the daemon. ``patience`` are
    the seconds to wait for this node's pod ranges where these are needed.
    """
    logs.setup(config.logging.format, config.logging.verbosity)
    try:
        if not filenames:
            raise MachineError(
                "objects cannot come from a Kubernetes API server in this version",
                hint="name manifest files or folders with -f",
            )
        choice = registry.named(config.effective_mode, variant)
        capabilities.require("kproxy run", "CAP_NET_ADMIN")
        state = StateDir(state_dir)
        try:
            notifier = Notifier(notify or os.environ.get("NOTIFY_SOCKET"))
            daemon = Daemon(config, filenames, state, choice, notifier, config_file, patience)
            return asyncio.run(daemon.run())
        finally:
            state.close()
    except KproxyError as error:
        sys.stderr.write(f"kproxy: {error}\n")
        return error.exit_status


def node_name(config: Config) -> str:
    """The Node this process stands for: --hostname-override, else the host's name."""
    return (config.hostname_override or socket.gethostname()).strip().lower()


class Daemon:
    """Wires source, schedule and proxy together in one event loop."""

    def __init__(
        self,
        config: Config,
        filenames: Sequence[str],
        state: StateDir,
        choice: registry.Choice,
        notifier: Notifier,
        config_file: ConfigFile | None,
        patience: float,
    ) -> None:
        self._config = config
        self._config_file = config_file
        self._patience = patience
        self._state = state
        self._notifier = notifier
        self._source = LookingSource(filenames, self._looked)
        self._proxy = NodeProxy(config, node_name(config), choice)
        periods = config.periods
        self._schedule = Schedule(periods.min_sync_period, periods.sync_period)
        self._repairs = Repairs()
        self._others: int | None = None
        self._monitor = Monitor(periods.sync_period, counting=bool(config.metrics_bind_address))
        self._servers = Servers(config, self._monitor, self)
        self._tried = asyncio.Event()
        self._pending: list[Delta] = []
        self._look = Look()
        self._wake = asyncio.Event()
        self._stopping = False
        self._exit_status = 0
        self._moved = False
        self._flows_retry: asyncio.TimerHandle | None = None
        self._told: tuple[str, ...] = ()
        self._status = Status(
            pid=os.getpid(),
            node=node_name(config),
            mode=self._proxy.choice.mode,
            variant=self._proxy.choice.variant,
            started_at=time.time(),
        )

    async def run(self) -> int:
        """Until SIGTERM or SIGINT; the exit status. KproxyError when it cannot start."""
        self._loop = asyncio.get_running_loop()
        self._listen_for_signals()
        self._servers.bind()
        servers = _beside(self._servers.run(self._tried), "the health and metrics servers")
        _prepare(self._config)
        notices = AddressNotices()
        try:
            first = await asyncio.to_thread(self._source.load)
            self._pending.clear()  # the first look has told of itself too
            await asyncio.to_thread(self._proxy.begin, first)
            self._monitor.serves(self._proxy.served)
            self._note_node(first)
            _log.info(
                "started",
                node=self._status.node,
                mode=self._status.mode,
                variant=self._status.variant,
                **self._proxy.objects,
            )
            self._ask(full=True)
            asyncio.get_running_loop().add_reader(notices.fileno(), self._addresses_moved, notices)
            self._watch_others()
            await self._serve()
            self._notifier.send(STOPPING="1")
        finally:
            asyncio.get_running_loop().remove_reader(notices.fileno())
            notices.close()
            self._unwatch_others()
            await _ended(servers)
            self._servers.close()
            self._proxy.close()
        _log.info("stopped; the rules stay in place", undo="kproxy cleanup")
        return self._exit_status

    async def _serve(self) -> None:
        watch = asyncio.create_task(self._watch())
        watch.add_done_callback(lambda _: self._wake.set())
        config = _beside(self._watch_config(), "the watch of the configuration file")
        try:
            await self._await_pod_ranges()
            while not self._stopping:
                if watch.done():
                    watch.result()  # raises what ended it; a source may also simply have no more
                await self._sync_or_wait()
        finally:
            await _ended(config)
            await _ended(watch)

    async def _watch_config(self) -> None:
        if self._config_file is None:
            return
        await config_watch.changed(self._config_file, self._config)
        _log.warning(
            "the configuration file has changed: ending, to be started again with it",
            file=self._config_file.path,
        )
        # Not 0: a supervisor that restarts only what failed has to restart this as well.
        self._exit_status = 1
        self._stopping = True
        self._wake.set()

    async def _await_pod_ranges(self) -> None:
        """In NodeCIDR mode nothing can be told of local pods before the Node has its ranges."""
        if self._config.detect_local_mode != "NodeCIDR":
            return
        try:
            async with asyncio.timeout(self._patience):
                while not self._stopping and not self._has_pod_ranges():
                    _log.info("waiting for spec.podCIDRs", node=self._status.node)
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            raise KproxyError(
                f"no spec.podCIDRs after {format_duration(self._patience)}",
                where=f"Node {self._status.node}",
                hint="give it some, or choose another --detect-local-mode",
            ) from None

    def _has_pod_ranges(self) -> bool:
        deltas, self._pending = self._pending, []
        for delta in deltas:
            self._proxy.take_in(delta)
        node = self._proxy.node
        return node is not None and bool(node.pod_cidrs)

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
            self._note_node(look.delta)
        elif msgspec.structs.replace(look, delta=self._look.delta) == self._look:
            return
        for line in look.notices:
            if line not in self._look.notices:
                _log.info("skipped", what=line)
        self._look = look
        self._ask()

    def _note_node(self, delta: Delta) -> None:
        """Whether balancers may use this node is told at once, not when a sync succeeds."""
        for obj in delta.upserted:
            if isinstance(obj, Node) and obj.name == self._status.node:
                self._monitor.eligible = obj.eligible

    def _ask(self, *, full: bool = False) -> None:
        """Ask for a sync; nothing is written before everything has been listed once."""
        if self._look.known:
            self._schedule.request(full=full)
            self._monitor.asked()
            self._wake.set()

    def _addresses_moved(self, notices: AddressNotices) -> None:
        notices.drain()
        self._moved = True
        self._ask()

    def _watch_others(self) -> None:
        self._others = self._proxy.others.fileno()
        if self._others is not None:
            self._loop.add_reader(self._others, self._others_moved)

    def _unwatch_others(self) -> None:
        if self._others is not None:
            self._loop.remove_reader(self._others)

    def _others_moved(self) -> None:
        if what := self._proxy.others.look():
            self._mend(what)

    def _mend(self, what: str) -> None:
        """Set right what others changed: at once, or later when they do it again and again."""
        now = time.monotonic()
        pending = self._repairs.pending
        due = self._repairs.noticed(now)
        if not pending:
            _log.warning("rules were changed by others", what=what, mended_in=max(0.0, due - now))
        self._schedule.mend(due)
        self._wake.set()

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
        self._monitor.began()
        ok = await asyncio.to_thread(self._proxy.sync, deltas, full=run.full, moved=moved)
        ended = time.monotonic()
        self._schedule.finish(ended, ok=ok)
        if ok and all(record.full for record in self._proxy.records):
            self._repairs.mended(ended)
        if what := self._proxy.others.noticed:
            self._mend(what)
        self._monitor.ended(self._proxy.records)
        for record in self._proxy.records:
            if record.cleaned is not None:
                cleaned = record.cleaned
                self._monitor.reconciled(record.family, cleaned.seconds, cleaned.deleted)
        if self._flows_retry is not None:
            self._flows_retry.cancel()
            self._flows_retry = None
        if delay := self._proxy.flows_retry_delay:
            self._flows_retry = self._loop.call_later(delay, self._ask)
        if not ok:
            _log.info("trying again", seconds=self._schedule.retry_delay)
        self._tell_refusals((*refusals, *self._proxy.refusals))
        self._publish(ok, files)
        self._tried.set()
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

    # --- what is looked at when somebody asks, see health.monitor.Watched ---------------------

    @property
    def mode(self) -> str:
        return self._proxy.choice.mode

    @property
    def pending(self) -> Counts:
        deltas = tuple(self._pending)
        refs = {ref for delta in deltas for ref in (*map(ref_of, delta.upserted), *delta.deleted)}
        kinds = [ref.kind for ref in refs]
        return Counts(kinds.count("Service"), kinds.count("EndpointSlice"))

    @property
    def seen(self) -> Counts:
        return self._proxy.seen

    @property
    def refused(self) -> int:
        return len(self._told)

    @property
    def plans(self) -> Iterable[tuple[Snapshot, Any]]:
        return self._proxy.plans


def _prepare(config: Config) -> None:
    """Once, at the start: set what a node needs set, and say what has no effect."""
    for line in (*node_setup.prepare(config), *node_setup.prepare_process(config)):
        _log.warning("left as it is", why=line)
    for line in config_check.without_effect(config):
        _log.info("accepted, no effect in this version", setting=line)


def _beside(work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
    """Start work that the proxy can do without: if it breaks off, that is told, and no more."""

    def told(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (fault := task.exception()) is not None:
            _log.fault(f"{what} broke off", fault)

    task = asyncio.create_task(work)
    task.add_done_callback(told)
    return task


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end. Who wanted its outcome has asked before."""
    task.cancel()
    await asyncio.wait([task])
