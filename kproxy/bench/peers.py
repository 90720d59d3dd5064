"""Who is measured: a small protocol, and the relays that modes are compared with.

A subject is a way from the client to the pod. To measure another one, derive a class from
:class:`Subject` (docs/bench.md has an example): a ``name``, :meth:`~Subject.start` in a path's
node, :meth:`~Subject.place` to connect to, :meth:`~Subject.stop`; and :meth:`~Subject.pids` where
processes do the work. What it serves is the pod's one server; how many threads the relays here
have, and with which options, their configurations in ``bench/peers/`` say. kproxy itself is in
:mod:`kproxy.bench.ours`, what the kernel does bare in :mod:`kproxy.bench.floors`.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path as File
from string import Template

from kproxy.bench.helper import ROOT
from kproxy.bench.load import Kind, Load, Place
from kproxy.bench.path import PORT, Path
from kproxy.core.objects import Family
from kproxy.errors import CheckFailed, MachineError
from kproxy.kernel import command
from kproxy.kernel.netns import entered

_TEMPLATES = ROOT / "bench" / "peers"

#: Seconds that a subject may take to listen, and between two looks.
_PATIENCE, _LOOK = 10.0, 0.01

#: Seconds that a tool has to end by itself.
_GRACE = 2.0

#: One connection, one request.
_ONE = Load(Kind.CRR, operations=1, seconds=1.0, timeout=0.2)

#: Where Debian puts nginx's stream module; others build it in.
_STREAM_MODULE = File("/usr/lib/nginx/modules/ngx_stream_module.so")


class Subject(ABC):
    """One way from the client to the pod: derive from it, and what has a body here is had."""

    #: What tables call it.
    name: str

    #: Whether it carries datagrams too.
    udp: bool = True

    @abstractmethod
    def start(self, path: Path) -> None:
        """Be ready to serve, in ``path``'s node (``path.fd("node")``), when it returns.
        MachineError, CheckFailed: it cannot, and why."""

    @abstractmethod
    def place(self, family: Family) -> Place:
        """Where clients connect, or send datagrams."""

    @abstractmethod
    def stop(self) -> None:
        """End it; fine when it never started. What is in the path's namespaces goes with them."""

    def pids(self) -> tuple[int, ...]:
        """Processes that do the work; none for what the kernel does alone."""
        return ()

    def version(self) -> str:
        """What it is, for the report; asked for where :meth:`absent` said nothing."""
        return ""

    def absent(self) -> str:
        """Why this machine cannot run it, with what would give it; "" when it can. Looks at the
        machine and leaves nothing."""
        return ""

    def await_calm(self) -> None:  # noqa: B027 (most have nothing to wait for)
        """Until it has nothing left of its start."""


@contextmanager
def running(subject: Subject, path: Path) -> Iterator[Subject]:
    """The subject serves within."""
    try:
        subject.start(path)
        yield subject
    finally:
        subject.stop()


class Direct(Subject):
    """The client speaks to the pod, the node forwards: what everything is compared with."""

    def __init__(self, name: str = "direct") -> None:
        self.name = name
        self._path: Path | None = None

    def start(self, path: Path) -> None:
        self._path = path

    def place(self, family: Family) -> Place:
        assert self._path is not None
        return self._path.pod_place(family)

    def version(self) -> str:
        return f"Linux {os.uname().release}"

    def stop(self) -> None:
        self._path = None


class _Process(Subject):
    """A tool of the host, started in the node with a configuration made from a template."""

    tool: str
    package: str
    template: str

    def __init__(self) -> None:
        self._path: Path | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        #: That gave way to another one, and end with their connections.
        self._parting: list[subprocess.Popen[bytes]] = []

    def start(self, path: Path) -> None:
        tool = self._tool()
        self._path = path
        self._folder = tempfile.TemporaryDirectory(prefix="kproxy-bench-")
        config = File(self._folder.name) / self.template
        text = Template((_TEMPLATES / self.template).read_text())
        config.write_text(text.substitute(self._values(path, self._folder.name)))
        self._process = self._spawned([tool, *self._arguments(config)])
        try:
            for family in Family:
                await_listener(path, path.node_place(family), self._process)
        except CheckFailed as failed:
            words = self._log.read_text(errors="replace").splitlines()
            raise CheckFailed(
                f"{failed.what}: {words[-1] if words else 'it said nothing'}", where=failed.where
            ) from None

    def _spawned(self, argv: list[str]) -> subprocess.Popen[bytes]:
        """In the node; what it says is kept, for a reload is told of in many lines."""
        assert self._path is not None
        with self._log.open("ab") as log, entered(self._path.fd("node")):
            return subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def _log(self) -> File:
        assert self._folder is not None
        return File(self._folder.name) / "log"

    def place(self, family: Family) -> Place:
        assert self._path is not None
        return self._path.node_place(family)

    def pids(self) -> tuple[int, ...]:
        assert self._process is not None
        return (self._process.pid, *_children(self._process.pid))

    def version(self) -> str:
        said = subprocess.run([self._tool(), "-v"], check=True, capture_output=True)
        return (said.stdout or said.stderr).decode().splitlines()[0]

    def absent(self) -> str:
        try:
            self._tool()
        except MachineError as lack:
            return str(lack)
        return ""

    def reload(self) -> None:
        """Start anew as an operator does who wants nobody to notice."""
        raise AssertionError("each tool has its own way")

    def stop(self) -> None:
        for process in (self._process, *self._parting):
            if process is not None:
                _end(process)
        if self._folder is not None:
            self._folder.cleanup()
        self._parting.clear()
        self._path = self._folder = self._process = None

    def _tool(self) -> str:
        found = command.find(self.tool)
        if found is None:
            raise MachineError(
                f"{self.tool} is not installed", hint=f"try: apt-get install {self.package}"
            )
        return found

    def _values(self, path: Path, directory: str) -> dict[str, str]:
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return {
            "port": str(PORT),
            "node4": path.node_place(Family.IPV4)[0],
            "node6": path.node_place(Family.IPV6)[0],
            "pod4": path.pod_place(Family.IPV4)[0],
            "pod6": path.pod_place(Family.IPV6)[0],
            "directory": directory,
            "descriptors": str(descriptors),
            # What nginx opens besides connections is well below a hundred.
            "connections": str(descriptors - 100),
            "load_module": f"load_module {_STREAM_MODULE};" if _STREAM_MODULE.exists() else "",
        }

    def _arguments(self, config: File) -> list[str]:
        raise AssertionError("each tool has its own")


class HAProxy(_Process):
    """``mode tcp``, ``option splice-auto``, one thread. It has no UDP."""

    name = "haproxy"
    udp = False
    tool = "haproxy"
    package = "haproxy"
    template = "haproxy.cfg"

    def _arguments(self, config: File) -> list[str]:
        return ["-db", "-f", str(config)]

    def reload(self) -> None:
        """A new process listens beside the old one, then tells it to end with its connections."""
        assert self._process is not None
        before = self._process
        arguments = before.args[1:]  # type: ignore[index]
        self._process = self._spawned([self._tool(), *arguments, "-sf", str(before.pid)])
        self._parting.append(before)


class Nginx(_Process):
    """The stream module, one worker beside its master, TCP and UDP."""

    name = "nginx"
    tool = "nginx"
    package = "nginx-light libnginx-mod-stream"
    template = "nginx.conf"

    def _arguments(self, config: File) -> list[str]:
        return ["-p", str(config.parent), "-c", str(config)]

    def reload(self) -> None:
        """Its master starts another worker, and lets the old one end with its connections."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)


def await_listener(
    path: Path, place: Place, process: subprocess.Popen[bytes] | None, *, host: str = "node"
) -> None:
    """Until something takes connections at a place of the node (or another host of the path).
    CheckFailed: nothing does, or the process has ended."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            raise CheckFailed(f"ended with status {process.returncode}", where=str(process.args))
        if _listens(path.fd(host), place):
            return
        time.sleep(_LOOK)
    raise CheckFailed(f"nothing listens at {place[0]} port {place[1]} after {_PATIENCE:g} s")


def await_answer(path: Path, place: Place, process: subprocess.Popen[bytes] | None = None) -> None:
    """Until the pod answers a client at a place: for those whom no listener shows that they are
    ready. CheckFailed: it does not, or the process has ended."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            raise CheckFailed(f"ended with status {process.returncode}", where=str(process.args))
        if path.run(_ONE, place).completed:
            return
        time.sleep(_LOOK)
    raise CheckFailed(f"nobody answers at {place[0]} port {place[1]} after {_PATIENCE:g} s")


def _listens(namespace: int, place: Place) -> bool:
    """Asked of the kernel's list: a connection would be the subject's first, and reach the pod."""
    with entered(namespace):
        try:
            family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return True
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL for whoever is left of its session: a master that was killed leaves its
    workers, and they would go on."""
    if process.returncode is not None:
        return  # it has ended by itself at the start; its number may be another's
    # Not by Popen's own method, which would take the status of one that is dead already.
    os.kill(process.pid, signal.SIGTERM)
    ended = os.pidfd_open(process.pid)
    try:
        select.select([ended], [], [], _GRACE)
    finally:
        os.close(ended)
    # As long as nobody has waited for it the number of its group is nobody else's.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _children(pid: int) -> tuple[int, ...]:
    text = File(f"/proc/{pid}/task/{pid}/children").read_text()
    return tuple(int(each) for each in text.split())
