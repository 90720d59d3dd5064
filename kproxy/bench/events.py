"""What happens to a node's proxy in the comparison of survival, and the node to which it happens.

A :class:`Node` is a path whose service has two endpoints that stay; what comes and goes (a daemon,
rules, further pods) does so in a window of load (:mod:`kproxy.bench.window`). One node serves for
all events of a turn, one after the other; after each it must serve again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Self

from kproxy import status, succession
from kproxy.backends.fastpath.steer import DEVICES
from kproxy.bench.agent import Agent
from kproxy.bench.failover import replace
from kproxy.bench.load import Kind, Load
from kproxy.bench.ours import READY, Conditions, Mode
from kproxy.bench.path import Path
from kproxy.bench.peers import HAProxy, Nginx, Subject
from kproxy.bench.window import Clients, Seen, watched
from kproxy.core.objects import Family
from kproxy.errors import CheckFailed
from kproxy.kernel import command
from kproxy.lab.undisturbed import undisturbed

#: Endpoints that stay, and most that come beside them in rolling replacements.
STAYING, _MORE = 2, 24

#: Seconds that a process which was killed is not there: a supervisor waits before it starts one.
AWAY = 1.0

#: Seconds in which rules that are gone are back: a daemon looks twice a second.
_REPAIRED = 1.5

#: How many times the first start (seconds of it) one under load may take, and seconds of a pod's
#: replacement: three syncs, which are a second apart (minSyncPeriod). Else a window is made again.
_SLOWER, _REPLACED = 1.6, 2.6

#: What is asked after an event, to see that the proxy serves.
_CHECK = Load(Kind.CRR, connections=4, operations=40, seconds=5.0, timeout=2.0)


class Node:
    """A path on which ``subject`` serves; all is gone when the ``with`` ends, Ctrl-C or not.

    ``rate`` new connections a second, ``held`` others; ``rolled`` pods are replaced when pods are.
    """

    def __init__(self, subject: Subject, *, rate: float, held: int, rolled: int) -> None:
        self.subject = subject
        self.rolled = rolled
        self._rate, self._held = rate, held
        self._stack = ExitStack()
        #: Seconds of the subject's first start.
        self.start = 0.0
        #: Endpoints, by number of their address, and the processes of those that do not stay.
        self.known: dict[int, Conditions] = dict.fromkeys(range(STAYING), READY)
        self.pods: dict[int, Agent] = {}
        self._next = STAYING
        self.path: Path
        self.clients: Clients

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def _close(self) -> None:
        with undisturbed():
            self._stack.close()

    def _build(self) -> None:
        self.path = self._stack.enter_context(Path(pods=STAYING + _MORE, apart=True))
        places = [self.path.pod_place(family, each) for family in Family for each in self.known]
        self.path.agent("pod").serve(places)
        self._stack.callback(self.subject.stop)
        begun = time.monotonic()
        if isinstance(self.subject, Mode):
            self.subject.start_with(self.path, self.known)
        else:
            self.subject.start(self.path)
        self.start = time.monotonic() - begun
        self.clients = Clients(
            self.path.client,
            self.path.fd("client"),
            self.subject.place(Family.IPV4),
            sources=self.path.client_addresses(),
            rate=self._rate,
            held=self._held,
        )

    def mode(self) -> Mode:
        """The subject, where only a mode of kproxy will do."""
        if not isinstance(self.subject, Mode):
            raise CheckFailed(f"{self.subject.name} is no mode of kproxy")
        return self.subject

    def fresh_pods(self, count: int) -> list[int]:
        """Numbers of addresses that no pod has had."""
        numbers = list(range(self._next, self._next + count))
        self._next += count
        return numbers

    def seen(self, event: str) -> Seen:
        """What clients see of one of :data:`EVENTS`. CheckFailed: it failed, or the subject does
        not serve afterwards."""
        found = EVENTS[event](self)
        served = self.path.client.run(
            _CHECK, self.clients.target, sources=self.path.client_addresses()
        )
        if served.failed:
            raise CheckFailed(
                f"{self.subject.name} does not serve after {event}: {served.failures}"
            )
        return found


# --- restart, kill ------------------------------------------------------------------------------


def nothing(node: Node) -> Seen:
    """Clients alone: what they see is the machine's own."""
    return watched(node.clients, lambda: time.sleep(_REPAIRED), within=_REPAIRED + 0.5)


def restart(node: Node) -> Seen:
    """As an upgrade does: a proxy that carries connections is taken over from by the new process,
    another one ends (SIGTERM) before the next is started; relays reload."""
    return watched(node.clients, lambda: _restart(node.subject), within=_SLOWER * node.start + 0.3)


def _restart(subject: Subject) -> None:
    if isinstance(subject, HAProxy | Nginx):
        subject.reload()
        return
    assert isinstance(subject, Mode)
    if subject.mode not in succession.MODES:
        subject.end(signal.SIGTERM)
    subject.begin()
    subject.await_in_force()


def kill(node: Node) -> Seen:
    """SIGKILL, and a new process :data:`AWAY` later."""
    return watched(node.clients, lambda: _kill(node), within=AWAY + _SLOWER * node.start + 0.3)


def _kill(node: Node) -> None:
    subject = node.subject
    if isinstance(subject, Mode):
        subject.end(signal.SIGKILL)
        time.sleep(AWAY)
        subject.begin()
        subject.await_in_force()
        return
    for pid in subject.pids():
        with suppress(ProcessLookupError):  # a worker that gave way to another one ends any time
            os.kill(pid, signal.SIGKILL)
    time.sleep(AWAY)
    subject.stop()
    subject.start(node.path)


# --- wipe ---------------------------------------------------------------------------------------


#: A tool's command line, and what it reads.
Call = tuple[Sequence[str], bytes]

#: Every table that modes write in, empty: built-in chains without rules, and no others. In one
#: transaction each, as a daemon that mends would be in the way of several.
_EMPTY = b"*nat\nCOMMIT\n*filter\nCOMMIT\n*mangle\nCOMMIT\n"


def _iptables(variant: str) -> list[Call]:
    """What ``iptables -F`` and ``-X`` come to, of both families."""
    return [((f"{tool}-{variant}-restore", "-w"), _EMPTY) for tool in ("iptables", "ip6tables")]


def _nft(variant: str) -> list[Call]:
    return [(("nft", "flush", "ruleset"), b"")]


def _ipvs(variant: str) -> list[Call]:
    return [(("ipvsadm", "-C"), b""), *_iptables(variant)]


def _fastpath(variant: str) -> list[Call]:
    """With the devices go the routes that lead there."""
    lines = "".join(f"link delete {device}\n" for device in DEVICES.values())
    return [(("ip", "-batch", "-"), lines.encode()), *_nft(variant)]


#: Mode -> what somebody types who wants it gone, by the variant of the tools.
WIPES: Mapping[str, Callable[[str], list[Call]]] = {
    "iptables": _iptables,
    "userspace": _iptables,
    "nftables": _nft,
    "fastpath": _fastpath,
    "ipvs": _ipvs,
}


def wipe(node: Node) -> Seen:
    """Every rule of the mode is deleted by a foreign hand; the daemon notices and mends."""
    mode = node.mode()
    known = status.read(mode.state)
    assert known is not None
    calls = WIPES[mode.mode](known.variant)

    def happens() -> None:
        for argv, stdin in calls:
            command.run(argv, stdin=stdin, namespace=node.path.fd("node"), env=mode.environment())
        time.sleep(_REPAIRED)

    return watched(node.clients, happens, within=_REPAIRED + 0.5)


# --- rolling ------------------------------------------------------------------------------------


def rolling(node: Node) -> Seen:
    """Pods beside those that stay give way to new ones, one by one; connections that are held go to
    those that stay."""
    mode = node.mode()
    olds: list[int] = []

    def prepare() -> None:
        for number in node.pods:
            del node.known[number]
        if node.pods:
            mode.set_endpoints(node.known)
        for each in node.pods.values():
            each.close()
        node.pods.clear()
        olds[:] = node.fresh_pods(node.rolled)
        node.pods.update((number, node.path.serve(number)) for number in olds)

    def opened() -> None:
        node.known.update(dict.fromkeys(olds, READY))
        mode.set_endpoints(node.known)

    def happens() -> None:
        for old, new in zip(olds, node.fresh_pods(len(olds)), strict=True):
            replace(node.path, mode, node.pods, node.known, old, new)

    return watched(
        node.clients,
        happens,
        within=node.rolled * _REPLACED + 0.5,
        prepare=prepare,
        opened=opened,
    )


#: What may happen.
EVENTS: Mapping[str, Callable[[Node], Seen]] = {
    each.__name__: each for each in (nothing, restart, kill, wipe, rolling)
}
