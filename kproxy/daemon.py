"""The daemon of ``kproxy run``: sources in, syncs when they are due, status out, a clean end.

:func:`main` needs no command line: it can be called in a forked process after entering a network
namespace. It writes nothing to the kernel before every source has been read once. SIGTERM and
SIGINT end it after a running sync and leave the rules in place, as kube-proxy does; a second one
ends it at once. In a mode that carries connections itself a new daemon takes over from the one that
holds its state directory (:mod:`kproxy.succession`), and what goes on in the old one ends there.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kproxy import config_check, config_watch, logs, node_setup
from kproxy.backends import registry
from kproxy.config import Config
from kproxy.config_watch import ConfigFile
from kproxy.core.events import Delta
from kproxy.core.health.values import Observation
from kproxy.core.objects import Node
from kproxy.durations import format_duration
from kproxy.errors import KproxyError, MachineError
from kproxy.health.care import Care
from kproxy.health.monitor import Monitor
from kproxy.health.node_ports import NodePorts
from kproxy.health.server import Servers
from kproxy.inbox import Inbox
from kproxy.insight import Insight
from kproxy.kernel import capabilities
from kproxy.kernel.addresses import AddressNotices
from kproxy.look import Look, LookingSource
from kproxy.mender import Mender
from kproxy.proxy import NodeProxy
from kproxy.report import Report
from kproxy.sources import manifests
from kproxy.status import DEFAULT_STATE_DIR, Notifier, Status
from kproxy.succession import Succession
from kproxy.sync import Schedule
from kproxy.tasks import beside, ended

_log = logs.get("daemon")

#: Seconds that a Node has to get its spec.podCIDRs in detectLocalMode NodeCIDR: kube-proxy's.
POD_RANGE_PATIENCE = 300.0

#: Seconds until it is tried again to take away what another mode has left.
_SWEEP_AGAIN = 1.0


def main(
    config: Config,
    filenames: Sequence[str],
    state_dir: str = DEFAULT_STATE_DIR,
    variant: str = registry.AUTO,
    *,
    notify: str | None = None,
    config_file: ConfigFile | None = None,
    patience: float = POD_RANGE_PATIENCE,
    take_over: bool = False,
) -> int:
    """Be a node's proxy until told to stop; returns the exit status.

    ``config`` has been checked. ``filenames`` are manifest files and folders, ``-`` is standard
    input. ``notify`` is a datagram socket as in sd_notify(3), NOTIFY_SOCKET's by default.
    ``config_file`` is where ``config`` came from: a change of it ends the daemon. ``patience`` are
    the seconds to wait for this node's pod ranges where these are needed.
    ``take_over``: a daemon that serves here in another mode makes room, when ours is ready.
    """
    logs.setup(config.logging.format, config.logging.verbosity)
    try:
        if not filenames:
            raise MachineError(
                "objects cannot come from a Kubernetes API server in this version",
                hint="name manifest files or folders with -f",
            )
        # Before anything of this node is set for the sake of objects that are not there.
        manifests.require(filenames)
        choice = registry.named(config.effective_mode, variant)
        capabilities.require("kproxy run", "CAP_NET_ADMIN")
        place = Succession(Path(state_dir), choice.mode, take_over=take_over)
        try:
            notifier = Notifier(notify or os.environ.get("NOTIFY_SOCKET"))
            daemon = Daemon(config, filenames, place, choice, notifier, config_file, patience)
            return asyncio.run(daemon.run())
        finally:
            place.close()
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
        place: Succession,
        choice: registry.Choice,
        notifier: Notifier,
        config_file: ConfigFile | None,
        patience: float,
    ) -> None:
        self._config = config
        self._config_file = config_file
        self._patience = patience
        self._node = node_name(config)
        self._source = LookingSource(filenames, self._looked)
        self._proxy = NodeProxy(config, self._node, choice)
        periods = config.periods
        self._schedule = Schedule(periods.min_sync_period, periods.sync_period)
        self._mender: Mender | None = None
        self._monitor = Monitor(periods.sync_period, counting=bool(config.metrics_bind_address))
        self._tried = asyncio.Event()
        self._inbox = Inbox()
        self._wake = asyncio.Event()
        self._stopping = False
        self._exit_status = 0
        self._flows_retry: asyncio.TimerHandle | None = None
        self._tend_at = float("inf")
        status = Status(
            pid=os.getpid(),
            node=self._node,
            mode=self._proxy.choice.mode,
            variant=self._proxy.choice.variant,
            started_at=time.time(),
        )
        self._place = place
        self._report = Report(place.state, notifier, status)
        self._care = Care(
            self._node,
            self._observed,
            self._monitor.turned,
            programs=config.health.allow_exec,
        )
        self._node_ports = NodePorts(lambda: self._monitor.verdict().healthy)
        insight = Insight(self._proxy, self._inbox, self._report, self._care)
        self._servers = Servers(config, self._monitor, insight)
        self._server_task: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Until SIGTERM or SIGINT, or until what is left after a successor has taken over has
        ended; the exit status. KproxyError when it cannot start."""
        self._loop = asyncio.get_running_loop()
        self._listen_for_signals()
        try:
            await self._work()
            await self._place.leave(float(self._config.userspace.drain_timeout))
        finally:
            self._proxy.close()
        _log.info("stopped; the rules stay in place", undo="kproxy cleanup")
        return self._exit_status

    async def _work(self) -> None:
        # Else the ports are a predecessor's until it has handed over.
        if not self._place.predecessor:
            self._start_servers()
        _prepare(self._config)
        notices = AddressNotices()
        try:
            first = await asyncio.to_thread(self._source.load)
            self._inbox.take_deltas()  # the first look has told of itself too
            await asyncio.to_thread(self._proxy.begin, first)
            self._monitor.serves(self._proxy.served)
            self._note_node(first)
            # Else every object's first version would stay in memory as long as we serve.
            del first
            self._proxy.keep(self._place.folder)
            await self._place.begin(self._proxy.doors, self._wake.set)
            if self._place.moving:
                self._report.took_over(self._place.state)
                self._proxy.others.before_sweep = self._both_stand
            elif self._server_task is None:
                self._start_servers()
                self._report.took_over(self._place.state)
            findings = self._proxy.findings if self._proxy.witnesses else None
            self._proxy.believe(self._care.begin(self._place.folder, findings))
            _log.info(
                "started",
                node=self._node,
                mode=self._proxy.choice.mode,
                variant=self._proxy.choice.variant,
                **self._proxy.objects,
            )
            self._ask(full=True)
            asyncio.get_running_loop().add_reader(notices.fileno(), self._addresses_moved, notices)
            self._watch_others()
            await self._serve()
            if not self._place.handed_over:
                self._report.stopping()
        finally:
            await self._care.end(handed_over=self._place.handed_over)
            self._place.quit()
            asyncio.get_running_loop().remove_reader(notices.fileno())
            notices.close()
            if self._mender is not None:
                self._mender.close()
            if self._server_task is not None:
                await ended(self._server_task)
            self._servers.close()
            self._proxy.rest()

    def _start_servers(self) -> None:
        self._servers.bind()
        task = beside(self._servers.run(self._tried), "the health and metrics servers")
        self._server_task = task

    async def _serve(self) -> None:
        watch = asyncio.create_task(self._watch())
        watch.add_done_callback(lambda _: self._wake.set())
        config = beside(self._watch_config(), "the watch of the configuration file")
        node_ports = beside(self._node_ports.run(), "the servers of health check node ports")
        try:
            await self._await_pod_ranges()
            while not (self._stopping or self._place.handed_over):
                if watch.done():
                    watch.result()  # raises what ended it; a source may also simply have no more
                if self._place.wanted:
                    await self._hand_over()
                else:
                    await self._sync_or_wait()
        finally:
            await ended(node_ports)
            await ended(config)
            await ended(watch)

    async def _hand_over(self) -> None:
        self._care.save(last=True)
        if self._place.asked_for_room:
            await self._make_room()
        else:
            await self._place.hand_over()
        if not self._place.handed_over:
            self._care.save()

    async def _make_room(self) -> None:
        mender, self._mender = self._mender, None
        if mender is not None:
            # What another mode's daemon writes now is no harm done.
            mender.close()
        if await self._place.make_room(self._proxy.leave):
            self._proxy.others.again()
            self._watch_others()
            self._ask(full=True)

    def _watch_others(self) -> None:
        self._mender = Mender(self._proxy.others, self._schedule, self._wake.set)

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
                while not (self._stopping or self._place.handed_over or self._has_pod_ranges()):
                    if self._place.wanted:
                        await self._hand_over()
                        continue
                    _log.info("waiting for spec.podCIDRs", node=self._node)
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            raise KproxyError(
                f"no spec.podCIDRs after {format_duration(self._patience)}",
                where=f"Node {self._node}",
                hint="give it some, or choose another --detect-local-mode",
            ) from None

    def _has_pod_ranges(self) -> bool:
        for delta in self._inbox.take_deltas():
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
        self._place.hurry()

    async def _watch(self) -> None:
        async for _ in self._source.watch():
            pass  # every look has told of itself already, see LookingSource

    def _looked(self, look: Look) -> None:
        """Called by the source in its thread; the loop's thread takes it in, in order."""
        with suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(self._take, look)

    def _take(self, look: Look) -> None:
        notices = self._inbox.put(look)
        if notices is None:
            return
        self._note_node(look.delta)
        for line in notices:
            _log.info("skipped", what=line)
        self._ask()

    def _note_node(self, delta: Delta) -> None:
        """Whether balancers may use this node is told at once, not when a sync succeeds."""
        for obj in delta.upserted:
            if isinstance(obj, Node) and obj.name == self._node:
                self._monitor.eligible = obj.eligible

    def _ask(self, *, full: bool = False) -> None:
        """Ask for a sync; nothing is written before everything has been listed once."""
        if self._inbox.known:
            self._schedule.request(full=full)
            self._monitor.asked()
            self._wake.set()

    def _observed(self, observations: Sequence[Observation]) -> None:
        self._inbox.observe(observations)
        self._ask()

    def _addresses_moved(self, notices: AddressNotices) -> None:
        if notices.drain():
            self._inbox.addresses_moved()
            self._ask()

    async def _sync_or_wait(self) -> None:
        """One sync if it is due, else what the mode finishes between syncs, else sleep until one
        of them is due or something happens."""
        now = time.monotonic()
        due = self._schedule.due(now)
        if due is not None and due <= now:
            await self._sync()
            return
        if self._tend_at <= now:
            await asyncio.to_thread(self._proxy.tend)
            self._plan_tending()
            return
        next_ = min(self._tend_at, float("inf") if due is None else due)
        with suppress(TimeoutError):
            async with asyncio.timeout(None if next_ == float("inf") else next_ - now):
                await self._wake.wait()
        self._wake.clear()

    def _plan_tending(self) -> None:
        delay = self._proxy.tend_delay
        self._tend_at = float("inf") if delay is None else time.monotonic() + delay

    async def _sync(self) -> None:
        """One sync in a worker thread. What arrives meanwhile waits for the next one."""
        run = self._schedule.start(time.monotonic())
        batch = self._inbox.take()
        begun = time.monotonic()
        self._monitor.began()
        ok = await asyncio.to_thread(
            self._proxy.sync,
            batch.deltas,
            observations=batch.observations,
            full=run.full,
            mends=run.mends,
            moved=batch.moved,
        )
        over = time.monotonic()
        self._schedule.finish(over, ok=ok)
        if self._mender is not None:
            self._mender.synced(over, seconds=over - begun, mended=self._proxy.mended)
        self._monitor.ended(self._proxy.records)
        for record in self._proxy.records:
            if record.cleaned is not None:
                cleaned = record.cleaned
                self._monitor.reconciled(record.family, cleaned.seconds, cleaned.deleted)
        if self._flows_retry is not None:
            self._flows_retry.cancel()
            self._flows_retry = None
        self._plan_tending()
        if delay := self._proxy.flows_retry_delay:
            self._flows_retry = self._loop.call_later(delay, self._ask)
        if not ok:
            _log.info("trying again", seconds=self._schedule.retry_delay)
        plans = [plan for plan, _ in self._proxy.plans]
        self._care.synced(plans)
        self._node_ports.follow(plans)
        left_out = *batch.refusals, *self._proxy.refusals, *self._node_ports.refusals
        self._report.refusals(left_out)
        await self._place.record()
        if self._place.moving and ok:
            await self._settle()
        self._report.publish(self._proxy, batch.files, ok=ok)
        self._tried.set()
        _log.detail("sync ended", ok=ok, seconds=over - begun, deltas=len(batch.deltas))

    def _both_stand(self) -> None:
        """Families are synced side by side: the rules of the first may have waited for the last."""
        first = min((record.at for record in self._proxy.records), default=time.time())
        self._place.in_force(max(0.0, time.time() - first))

    async def _settle(self) -> None:
        """We stand where another mode did. Its daemon ends when nothing of it is left."""
        if self._proxy.others.swept:
            await self._place.serving()
            self._report.stood_beside(self._place.both)
            self._start_servers()
        else:
            self._loop.call_later(_SWEEP_AGAIN, self._ask)


def _prepare(config: Config) -> None:
    """Once, at the start: set what a node needs set, and say what has no effect."""
    for line in (*node_setup.prepare(config), *node_setup.prepare_process(config)):
        _log.warning("left as it is", why=line)
    for line in config_check.without_effect(config):
        _log.info("accepted, no effect in this version", setting=line)
