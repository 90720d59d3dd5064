"""Processes of a lab: one kproxy in every node's namespace, one responder for all pods, and where
pods have probes one kubelet for all nodes.

A process is started in three steps, so that none is ever lost: it is forked, its pid and start time
go into the undo log, then it is told to go on. If we die in between, it sees the pipe close and
ends. It has a session of its own: Ctrl-C on ``lab up`` reaches the one who can clean up, only.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NoReturn, Self

from kproxy import status, succession
from kproxy.errors import CheckFailed, KproxyError, LabError
from kproxy.kernel import netns
from kproxy.lab import state
from kproxy.lab.model import LabState
from kproxy.lab.network import namespace_name
from kproxy.lab.undo import Process, UndoLog, start_time
from kproxy.lab.wiring import CLUSTER_CIDRS

#: Seconds for a daemon to have the manifests in force; a first sync takes a fraction of one.
SYNC_TIMEOUT = 30.0

#: Seconds that a process has between SIGTERM and SIGKILL: a daemon in a mode that carries
#: connections lets them end for a while, after a sync that runs.
STOP_TIMEOUT = succession.STOP_DRAIN + 2.0

#: Seconds until the kernel has taken down what was killed.
KILL_TIMEOUT = 3.0

ROLE_PROXY, ROLE_PODS, ROLE_KUBELET = "kproxy", "pods", "kubelet"


def proxy_log(lab: str, node: str) -> Path:
    return state.host_dir(lab, node) / "kproxy.log"


def proxy_state_dir(lab: str, node: str) -> Path:
    """Where a node's daemon keeps its status.json."""
    return state.host_dir(lab, node) / "state"


def node_environment(lab: str, node: str) -> dict[str, str]:
    """What programs in a node's namespace need: iptables' lock file is one for all namespaces of a
    machine, so each node gets its own."""
    return {
        "KPROXY_LAB": lab,
        "XTABLES_LOCKFILE": str(state.host_dir(lab, node) / "xtables.lock"),
        "KPROXY_RECORDS": str(state.host_dir(lab, node) / "records"),
    }


def start_proxies(lab: LabState, nodes: Iterable[str]) -> tuple[Process, ...]:
    """Start kproxy on these nodes, all at once; :func:`await_in_force` waits for their syncs."""
    return tuple(_start_proxy(lab, node) for node in nodes)


def restart_proxies(lab: LabState, nodes: Iterable[str]) -> tuple[Process, ...]:
    """Start a new kproxy on these nodes in place of the one that runs, if one does.

    In a mode that carries connections the new one takes over, and the old one ends when they have.
    """
    nodes = tuple(nodes)
    running = alive(lab.name, ROLE_PROXY)
    handed = {node for node in nodes if lab.mode_of(node)[0] in succession.MODES}
    stop(lab.name, [running[node] for node in nodes if node in running and node not in handed])
    return start_proxies(lab, nodes)


def start_successor(lab: LabState, node: str) -> Process:
    """Start kproxy on a node in the mode that it has in ``lab``, beside one in another mode, which
    makes room for it."""
    return _start_proxy(lab, node, take_over=True)


def _start_proxy(lab: LabState, node: str, *, take_over: bool = False) -> Process:
    mode, variant = lab.mode_of(node)
    ranges = ",".join(CLUSTER_CIDRS[family] for family in lab.topology.families)
    argv = [sys.executable, "-m", "kproxy", "run"]
    argv += ["-f", str(state.manifests_dir(lab.name))]
    argv += ["--hostname-override", node]
    argv += ["--state-dir", str(proxy_state_dir(lab.name, node))]
    argv += ["--proxy-mode", mode]
    argv += ["--cluster-cidr", ranges]
    # kube-proxy's default of 1 s is right for a cluster's churn; a person at a lab waits for it,
    # and `roll` waits once for every pod.
    argv += ["--iptables-min-sync-period", "50ms"]
    if variant:
        argv += ["--iptables-variant", variant]
    if take_over:
        argv += ["--take-over"]
    state.private_dir(state.host_dir(lab.name, node))
    return start(
        lab.name,
        ROLE_PROXY,
        argv,
        proxy_log(lab.name, node),
        host=node,
        environment={
            **node_environment(lab.name, node),
            "NOTIFY_SOCKET": str(_notify_path(lab.name)),
        },
    )


def start_responder(lab: str) -> Process:
    """Start the process that answers for all pods of a lab.

    Its control socket is bound here and inherited, so that a question put to it right away waits
    for the answer instead of being refused.
    """
    return _start_server(lab, ROLE_PODS, "kproxy.lab.pods", control_path(lab))


def start_kubelet(lab: str) -> Process:
    """Start the process that probes pods, in the same way."""
    return _start_server(lab, ROLE_KUBELET, "kproxy.lab.kubelet", kubelet_path(lab))


def _start_server(lab: str, role: str, module: str, path: Path) -> Process:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen(16)
        argv = [sys.executable, "-m", module, lab, str(listening.fileno())]
        log = state.lab_dir(lab) / f"{role}.log"
        return start(lab, role, argv, log, inherit=(listening.fileno(),))


def control_path(lab: str) -> Path:
    """Unix socket of the responder: see :mod:`kproxy.lab.pods`."""
    return state.lab_dir(lab) / "pods.sock"


def kubelet_path(lab: str) -> Path:
    """Unix socket of the kubelet: see :mod:`kproxy.lab.kubelet`."""
    return state.lab_dir(lab) / "kubelet.sock"


def _notify_path(lab: str) -> Path:
    """Where all daemons of a lab say that their status has changed; bound by whoever waits."""
    return state.lab_dir(lab) / "notify.sock"


# --- starting ---------------------------------------------------------------------------------


def start(
    lab: str,
    role: str,
    argv: Sequence[str],
    log: Path,
    *,
    host: str = "",
    environment: Mapping[str, str] | None = None,
    inherit: Iterable[int] = (),
) -> Process:
    """Start a program that outlives us: recorded before it goes on, its output in ``log``, with no
    descriptor of ours but those of ``inherit``."""
    environment = {**os.environ, **(environment or {})}
    go, tell = os.pipe()
    with ExitStack() as opened:
        opened.callback(os.close, tell)
        with ExitStack() as childs:
            childs.callback(os.close, go)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            childs.callback(os.close, output)
            namespace = netns.open_fd(namespace_name(lab, host)) if host else None
            if namespace is not None:
                childs.callback(os.close, namespace)
            pid = os.fork()
            if pid == 0:
                os.close(tell)
                _become(argv, environment, output, go, namespace, inherit)
        started = start_time(pid)
        if started is None:
            raise LabError(f"the {role} process of {host or lab} ended at once", where=str(log))
        process = Process(pid, started, role, host)
        UndoLog(lab).process(process)
        os.write(tell, b"!")
    return process


def _become(
    argv: Sequence[str],
    environment: Mapping[str, str],
    output: int,
    go: int,
    namespace: int | None,
    inherit: Iterable[int],
) -> NoReturn:
    """The child's part, between fork and exec."""
    try:
        os.setsid()
        if os.read(go, 1) != b"!":
            os._exit(1)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        if namespace is not None:
            netns.enter(namespace)
        # What our caller left open (a pipe, a lock) must not stay open as long as a daemon runs.
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2:
                with suppress(OSError):  # the descriptor that listed them is gone already
                    os.set_inheritable(fd, fd in inherit)
        os.chdir("/")
        os.execve(argv[0], list(argv), environment)
    except (OSError, KproxyError) as error:
        os.write(output, f"cannot start {argv}: {error}\n".encode())
    finally:
        # Nothing of the parent's stack may run in the child.
        os._exit(127)


# --- watching ---------------------------------------------------------------------------------


def alive(lab: str, role: str) -> dict[str, Process]:
    """Running processes of one role by host, according to the undo log; of several on one host the
    last that was started, which the others have given way to."""
    return {p.host: p for p in UndoLog(lab).read().processes if p.role == role and p.alive()}


class Watch:
    """Hears all daemons of a lab. Open it *before* the change whose effect is awaited."""

    def __init__(self, lab: LabState) -> None:
        self._lab = lab
        path = _notify_path(lab.name)
        # Left behind by one who was killed; whoever holds the lab's lock is the only listener.
        path.unlink(missing_ok=True)
        self._notices = status.Notifications(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._notices.close()

    def until_in_force(
        self,
        files: Iterable[Path],
        timeout: float = SYNC_TIMEOUT,
        *,
        nodes: Iterable[str] | None = None,
        started: Iterable[Process] = (),
    ) -> None:
        """Return when every node, or each of ``nodes``, has the files, as they are on disk, in its
        kernel. Those of ``started`` are meant where they are, and not one that runs beside them.

        LabError when a daemon has ended, CheckFailed when one needs longer than ``timeout``; both
        name the log.
        """
        files = tuple(files)
        running = alive(self._lab.name, ROLE_PROXY) | {each.host: each for each in started}
        deadline = time.monotonic() + timeout
        waiting = list(self._lab.nodes if nodes is None else nodes)
        with ExitStack() as opened:
            poll = select.poll()
            poll.register(self._notices, select.POLLIN)
            node_of: dict[int, str] = {}
            for node in waiting:
                fd = _pidfd(running.get(node))
                if fd is None:
                    raise _ended(self._lab.name, node)
                opened.callback(os.close, fd)
                node_of[fd] = node
                poll.register(fd, select.POLLIN)
            while True:
                waiting = [node for node in waiting if not self._in_force(running[node], files)]
                if not waiting:
                    return
                left = deadline - time.monotonic()
                events = poll.poll(left * 1000) if left > 0 else []
                if not events:
                    raise _late(self._lab.name, waiting[0], timeout)
                for fd, _ in events:
                    if fd in node_of:
                        raise _ended(self._lab.name, node_of[fd])
                while self._notices.receive() is not None:
                    pass

    def _in_force(self, process: Process, files: tuple[Path, ...]) -> bool:
        directory = proxy_state_dir(self._lab.name, process.host)
        found = status.read(directory)
        # A status that an earlier daemon of this node left says nothing about this one.
        return found is not None and found.pid == process.pid and status.in_force(directory, files)


def _pidfd(process: Process | None) -> int | None:
    """A descriptor that becomes readable when the process ends; None when it has."""
    if process is None:
        return None
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # Checked after opening: from here on the descriptor can mean no other process.
    if process.alive():
        return fd
    os.close(fd)
    return None


def _last_words(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except FileNotFoundError:
        return "it wrote nothing"
    return lines[-1] if lines else "it wrote nothing"


def _ended(lab: str, node: str) -> LabError:
    log = proxy_log(lab, node)
    return LabError(
        f"kproxy on {node} has ended: {_last_words(log)}", where=str(log), hint="read its log"
    )


def _late(lab: str, node: str, timeout: float) -> CheckFailed:
    log = proxy_log(lab, node)
    found = status.read(proxy_state_dir(lab, node))
    why = found.last_error if found and found.last_error else _last_words(log)
    return CheckFailed(
        f"kproxy on {node} is not in sync after {timeout:g} s: {why}",
        where=str(log),
        hint="read its log",
    )


# --- stopping ---------------------------------------------------------------------------------


def stop(lab: str, processes: Iterable[Process]) -> None:
    """End processes: SIGTERM to all, SIGKILL to who is late. Never a recycled pid."""
    _end(lab, processes, ((signal.SIGTERM, STOP_TIMEOUT), (signal.SIGKILL, KILL_TIMEOUT)))


def kill(lab: str, processes: Iterable[Process]) -> None:
    """End processes as a crash does: nothing that they hold is given back or told to anybody."""
    _end(lab, processes, ((signal.SIGKILL, KILL_TIMEOUT),))


def _end(
    lab: str, processes: Iterable[Process], ways: Iterable[tuple[signal.Signals, float]]
) -> None:
    """Send each signal to who is still there, and give him so many seconds."""
    log = UndoLog(lab)
    fds: dict[int, Process] = {}
    try:
        for process in processes:
            fd = _pidfd(process)
            if fd is None:
                log.process_gone(process)
            else:
                fds[fd] = process
        for number, timeout in ways:
            for fd in fds:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, number)
            for fd in _ended_within(fds, timeout):
                process = fds.pop(fd)
                os.close(fd)
                log.process_gone(process)
                with suppress(ChildProcessError):  # not our child: init takes its status
                    os.waitpid(process.pid, os.WNOHANG)
    finally:
        for fd in fds:
            os.close(fd)


def _ended_within(fds: Iterable[int], timeout: float) -> list[int]:
    """Those of the pid descriptors whose process ends within ``timeout`` seconds."""
    poll = select.poll()
    left = set(fds)
    for fd in left:
        poll.register(fd, select.POLLIN)
    ended: list[int] = []
    deadline = time.monotonic() + timeout
    while left and (remaining := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(remaining * 1000):
            poll.unregister(fd)
            left.discard(fd)
            ended.append(fd)
    return ended
