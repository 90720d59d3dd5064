"""A process with the daemon's code loaded, that forks a real proxy in milliseconds.

Starting an interpreter and importing the daemon costs more than a whole scenario may take, so the
runner forks this process once, before it has threads, and asks it for one proxy after another. Each
proxy is a process of its own in the node's namespace: kill -9, SIGTERM and restart are real.

Proxies die with the zygote and the zygote with its runner, whatever ends the runner.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import pickle
import signal
import socket
import sys
import traceback
from typing import NoReturn, Self

from kproxy.config import Config
from kproxy.core.objects import Value
from kproxy.errors import LabError
from kproxy.kernel.netns import entered

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_MAX_MESSAGE = 1 << 20

#: The daemon; modes as far as they are built, which the registry loads on use; and what
#: watchfiles loads when it first waits (0.15 s).
_MODULES = (
    "kproxy.daemon",
    *(
        f"kproxy.backends.{mode}.{part}"
        for mode in ("iptables", "ipvs")
        for part in ("apply", "counts", "former", "prepare", "watch")
    ),
    *(
        f"kproxy.backends.userspace.{part}"
        for part in ("apply", "counts", "door", "handover", "prepare", "state", "watch")
    ),
    "kproxy._relay",
    *(
        f"kproxy.health.{part}"
        for part in ("care", "checks.checker", "checks.execute", "checks.grpc", "checks.http")
    ),
    "anyio._backends._asyncio",
)


class Launch(Value, frozen=True):
    """What a proxy is started with. Paths are absolute; ``log`` takes both output streams."""

    config: Config
    variant: str
    manifests: str
    state_dir: str
    notify: str
    log: str
    environment: tuple[tuple[str, str], ...] = ()


class Zygote:
    """The runner's handle. Make it before any thread exists."""

    def __init__(self) -> None:
        _load_everything()

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            _serve(theirs)
        theirs.close()
        self._socket = ours

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self, namespace: int, launch: Launch) -> int:
        """Fork a proxy into a namespace (descriptor); returns its process id."""
        # Both ends are one program: nobody else can write to this socket.
        socket.send_fds(self._socket, [pickle.dumps(("start", launch))], [namespace])
        return self._answer()

    def reap(self, pid: int) -> int:
        """Wait for the end of a proxy; its exit status, or minus the signal that ended it."""
        self._socket.sendall(pickle.dumps(("reap", pid)))
        return self._answer()

    def _answer(self) -> int:
        data = self._socket.recv(_MAX_MESSAGE)
        if not data:
            raise LabError("the process that starts proxies has ended", hint="run again")
        answer = pickle.loads(data)
        assert isinstance(answer, int)
        return answer

    def close(self) -> None:
        """End the zygote and every proxy that is left."""
        self._socket.close()
        os.waitpid(self._pid, 0)


def _load_everything() -> None:
    """What a proxy imports sooner or later: here, before the fork, it is loaded once for all."""
    from kproxy.health import server

    server.preload()
    for name in _MODULES:
        importlib.import_module(name)


def _serve(commands: socket.socket) -> NoReturn:
    """The zygote's life: one command after another until the runner is gone."""
    # Ctrl-C reaches the whole terminal group; the runner decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    gc.freeze()
    while True:
        message, fds, _, _ = socket.recv_fds(commands, _MAX_MESSAGE, 1)
        if not message:
            os._exit(0)
        verb, argument = pickle.loads(message)
        if verb == "start":
            answer = _fork(commands, fds[0], argument)
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(argument, 0)[1])
        for fd in fds:
            os.close(fd)
        commands.sendall(pickle.dumps(answer))


def _fork(commands: socket.socket, namespace: int, launch: Launch) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        commands.close()
        status = _be_proxy(namespace, launch)
    except BaseException:  # noqa: BLE001  a forked copy of the runner must end here, come what may
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _be_proxy(namespace: int, launch: Launch) -> int:
    from kproxy import daemon

    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(launch.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    # The runner may have put something else in their place.
    sys.stdout, sys.stderr = (os.fdopen(os.dup(fd), "w", buffering=1) for fd in (1, 2))
    os.environ.update(launch.environment)
    with entered(namespace):
        return daemon.main(
            launch.config,
            [launch.manifests],
            launch.state_dir,
            launch.variant,
            notify=launch.notify,
        )
