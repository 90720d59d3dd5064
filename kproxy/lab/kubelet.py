"""The kubelet of all nodes of one lab: ``python -m kproxy.lab.kubelet LAB CONTROL-FD``.

It probes pods from their nodes (one :class:`~kproxy.health.checks.checker.Checker` a node, in that
node's network namespace). What a readinessProbe says goes into ``conditions.json`` and from there
into the slices that the nodes' proxies read; when a livenessProbe fails, the pod is started again.
:mod:`kproxy.lab.readiness` is the other end of its control socket.

Who changes the lab may wait for a pod to be ready and hold the lab's lock meanwhile, so the slices
are written by a thread of their own, and the change itself takes in what is known by then.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import msgspec

from kproxy.core.health.values import Checked, Target, target_of
from kproxy.errors import KproxyError
from kproxy.health.checks.checker import Checker
from kproxy.kernel import netns
from kproxy.lab import conditions, lifecycle, pods, state
from kproxy.lab.conditions import FINE, Condition, Conditions
from kproxy.lab.faults import after_restart
from kproxy.lab.model import Pod
from kproxy.lab.network import namespace_name
from kproxy.lab.probes import Probe, check_of, host_of, port_of
from kproxy.lab.readiness import OK

#: Seconds for an asker to say what it wants: it does so at once.
_TIMEOUT = 5.0

_READINESS, _LIVENESS = "readinessProbe", "livenessProbe"


class Watch:
    """One probe of one pod. ``start`` is the number of its start, 0: it waits for its initial delay
    to pass. ``begun``: what is told now was found out since that start."""

    def __init__(self, lab: str, pod: Pod, kind: str, probe: Probe) -> None:
        self.pod = pod
        self.kind = kind
        self.probe = probe
        self.start = 0
        self.begun = False
        # Commands run where the pod is, all else comes from its node.
        path = netns.path_of(namespace_name(lab, pod.name))
        prefix = ("nsenter", f"--net={path}", "--")
        check = check_of(probe, initial=kind == _LIVENESS, prefix=prefix)
        self.target = target_of(check, host_of(probe) or pod.addresses[0], port_of(probe))


class Kubelet:
    """All methods are for one thread, but :meth:`told`."""

    def __init__(self, lab: str, published: Callable[[], None]) -> None:
        self._lab = lab
        self._folder = state.lab_dir(lab)
        self._published = published
        self._pods: dict[str, Pod] = {}
        self._watches: dict[str, list[Watch]] = {}
        self._checkers: dict[str, Checker] = {}
        self._timers: list[tuple[float, int, Watch]] = []
        self._serial = itertools.count()
        self._starts = itertools.count(1)
        #: What checkers' threads want done here, in the order in which they said it.
        self._news: deque[Callable[[], None]] = deque()
        #: Readable when there is news.
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._asking: list[tuple[socket.socket, frozenset[str]]] = []

    # --- whom to watch ------------------------------------------------------------------------

    def follow(self) -> None:
        """Read the list; watch who is new on it, and nobody who is not on it any more."""
        listed = msgspec.json.decode((self._folder / "kubelet.json").read_bytes(), type=list[Pod])
        wanted = {pod.name: pod for pod in listed}
        for name in self._pods.keys() - wanted.keys():
            self._end(name)
        for name, pod in wanted.items():
            if name not in self._pods:
                self._begin(pod)

    def _begin(self, pod: Pod) -> None:
        self._pods[pod.name] = pod
        probes = ((_READINESS, pod.probes.readiness), (_LIVENESS, pod.probes.liveness))
        watches = [Watch(self._lab, pod, kind, probe) for kind, probe in probes if probe]
        self._watches[pod.name] = watches
        for watch in watches:
            self._schedule(watch)

    def _end(self, name: str) -> None:
        for watch in self._watches.pop(name):
            self._stop(watch)
        del self._pods[name]

    def _schedule(self, watch: Watch) -> None:
        due = time.monotonic() + watch.probe.delay
        heapq.heappush(self._timers, (due, next(self._serial), watch))

    def _start(self, watch: Watch) -> None:
        if watch.start or watch not in self._watches.get(watch.pod.name, ()):
            return
        watch.start = next(self._starts)
        known = {}
        if watch.kind == _READINESS and self._condition(watch.pod.name).ready:
            known = {watch.target: True}  # this process has begun anew, not the pod
        # A target that is there already (two pods may name one host) begins afresh for both.
        begun = partial(self._post, partial(self._begun, watch, watch.start))
        self._checker(watch.pod.node).change([watch.target], [watch.target], known, begun)

    def _stop(self, watch: Watch) -> None:
        started = watch.start
        watch.start, watch.begun = 0, False
        if started and not self._of(watch.pod.node, watch.target):
            self._checker(watch.pod.node).change(removed=[watch.target])

    def _of(self, node: str, target: Target) -> list[Watch]:
        """Who waits for results of a target."""
        return [
            watch
            for watches in self._watches.values()
            for watch in watches
            if watch.start and watch.target == target and watch.pod.node == node
        ]

    def _checker(self, node: str) -> Checker:
        if node not in self._checkers:
            with netns.entered(namespace_name(self._lab, node)):
                self._checkers[node] = Checker(partial(self.told, node), programs=True)
        return self._checkers[node]

    # --- what they say ------------------------------------------------------------------------

    def told(self, node: str, results: list[Checked]) -> None:
        """From a checker's thread."""
        self._post(*[partial(self._take, node, result) for result in results])

    def _post(self, *news: Callable[[], None]) -> None:
        """From a checker's thread."""
        self._news.extend(news)
        os.eventfd_write(self.bell, 1)

    def act(self) -> None:
        """Do what is due, and what follows from the news."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.bell)
        while self._timers and self._timers[0][0] <= time.monotonic():
            self._start(heapq.heappop(self._timers)[2])
        while self._news:
            self._news.popleft()()

    def _begun(self, watch: Watch, start: int) -> None:
        watch.begun = watch.begun or watch.start == start

    def _take(self, node: str, result: Checked) -> None:
        for watch in self._of(node, result.target):
            # What was found out before the pod was started again says nothing about it now.
            if watch.begun:
                self._hear(watch, result)

    def patience(self) -> float | None:
        """Seconds until something is due."""
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _hear(self, watch: Watch, result: Checked) -> None:
        name = watch.pod.name
        if watch.kind == _READINESS:
            why = "" if result.up else f"readinessProbe: {result.reason}"
            self._note(name, ready=result.up, why=why)
            _say(f"{name}: {'ready' if result.up else 'not ready: ' + result.reason}")
        elif not result.up:
            self._restart(watch.pod, result.reason)

    def _restart(self, pod: Pod, reason: str) -> None:
        before = self._condition(pod.name)
        self._note(
            pod.name,
            faults=after_restart(before.faults),
            restarts=before.restarts + 1,
            ready=None if pod.probes.readiness is None else False,
            why=f"started again, livenessProbe: {reason}",
        )
        _say(f"{pod.name}: started again ({before.restarts + 1}): {reason}")
        pods.poke(self._lab)
        for watch in self._watches[pod.name]:
            self._stop(watch)
            self._schedule(watch)

    def _condition(self, name: str) -> Condition:
        return conditions.read(self._folder).get(name, FINE)

    def _note(self, name: str, **changes: object) -> None:
        def change(there: Conditions) -> Conditions:
            return {**there, name: msgspec.structs.replace(there.get(name, FINE), **changes)}

        conditions.change(self._folder, change)
        self._answer()
        self._published()

    # --- who asks -----------------------------------------------------------------------------

    def hear(self, asker: socket.socket) -> None:
        """Take up one question; it is answered now, or when its pods are ready."""
        try:
            asker.settimeout(_TIMEOUT)
            text = b"".join(iter(lambda: asker.recv(65536), b""))
            names = frozenset(msgspec.json.decode(text, type=list[str]))
            if not names:
                self.follow()
        except (KproxyError, OSError, msgspec.DecodeError) as wrong:
            _say(str(wrong))
            _end(asker, str(wrong))
            return
        self._asking.append((asker, names))
        self._answer()

    def _answer(self) -> None:
        found = conditions.read(self._folder)
        waiting = self._asking
        self._asking = []
        for asker, names in waiting:
            if any(self._unready(name, found) for name in names):
                self._asking.append((asker, names))
            else:
                _end(asker, OK)

    def _unready(self, name: str, found: Conditions) -> bool:
        pod = self._pods.get(name)
        return (
            pod is not None
            and pod.probes.readiness is not None
            and found.get(name, FINE).ready is not True
        )


def _end(asker: socket.socket, answer: str) -> None:
    """Who asked may have lost patience."""
    with asker, suppress(OSError):
        asker.sendall(answer.encode())


def _say(text: str) -> None:
    stamp = time.strftime("%H:%M:%S")
    sys.stderr.write(f"{stamp} {text}\n")


class Publisher:
    """Writes slices anew when pods have become ready or unready; many at once are one writing."""

    def __init__(self, lab: str) -> None:
        self._lab = lab
        self._wanted = threading.Event()
        threading.Thread(target=self._run, name="publisher", daemon=True).start()

    def want(self) -> None:
        """From any thread."""
        self._wanted.set()

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            try:
                lifecycle.refresh(self._lab)
            except (KproxyError, OSError) as wrong:
                _say(f"slices cannot be written: {wrong}")


def serve(lab: str, control: socket.socket) -> None:
    """Probe until SIGTERM."""
    kubelet = Kubelet(lab, Publisher(lab).want)
    poll = select.poll()
    for source in (control.fileno(), kubelet.bell):
        poll.register(source, select.POLLIN)
    while True:
        patience = kubelet.patience()
        ready = poll.poll(None if patience is None else patience * 1000 + 1)
        if any(fd == control.fileno() for fd, _ in ready):
            kubelet.hear(control.accept()[0])
        try:
            kubelet.act()
        except (KproxyError, OSError) as wrong:
            # One pod's trouble is not the others'.
            _say(str(wrong))


def main(argv: list[str]) -> None:
    # Nothing here outlives the process, so the default action of SIGTERM is the right one.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    serve(argv[1], socket.socket(fileno=int(argv[2])))


if __name__ == "__main__":
    main(sys.argv)
