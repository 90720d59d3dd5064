"""What is known about the labs that are up: JSON files under /run, and an undo log for each lab.

A lab has three files and a folder::

    /run/kproxy/labs/<lab>/state.json     LabState: what the lab is (written when it changed)
                          /undo.jsonl     what must be taken down, one line for each thing, written
                                          *before* a namespace is made: a crash leaves it behind
                          /manifests/     what every node's kproxy reads
                          /<host>/        a node's log, lock file and proxy state
    /var/lib/kproxy/labs/<lab>/allocations.json    clusterIPs and nodePorts; survives ``down``

A lab with an undo log and no state.json is half made (or half gone): ``lab down`` and the next
``lab up`` clean it. Only what the log names is ever removed. All files are 0600 in folders 0700.

Whoever reads a state in order to change it holds :func:`lock` from before the read until after
:func:`save`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from kproxy.core.objects import Family, Value, family_of
from kproxy.errors import LabError, MachineError
from kproxy.lab.network import Network
from kproxy.lab.topology import Port, Topology, Workload

RUN_DIR = Path("/run/kproxy/labs")
KEPT_DIR = Path("/var/lib/kproxy/labs")


class Pod(Value, frozen=True):
    """One pod of a lab: a namespace, and a responder on each of its ports.

    ``name`` is also the host's name in the network. ``addresses`` holds one address a family,
    IPv4 first. ``ready`` false takes it out of its services while it goes on answering;
    ``terminating`` says that it is about to leave.
    """

    name: str
    node: str
    workload: str
    labels: tuple[tuple[str, str], ...]
    addresses: tuple[str, ...]
    ports: tuple[Port, ...]
    namespace: str = "default"
    ready: bool = True
    terminating: bool = False

    def address(self, family: Family) -> str:
        """Its address of one family, "" when it has none."""
        return next((a for a in self.addresses if family_of(a) is family), "")


class LabState(Value, frozen=True):
    """A lab that is up.

    ``workloads`` are the topology's with the replicas of now; ``pods`` what came of them;
    ``network`` what is built for them. ``manifests`` are the user's Kubernetes objects as applied,
    raw, nothing filled in. ``counters`` remember the last number given out (``node/<node>``: host
    number of the last pod address, ``workload/<ns>/<name>``: ordinal of its last pod), so that a
    replaced pod gets a new name and new addresses. ``variant`` is "" where the mode has none.
    """

    name: str
    topology: Topology
    mode: str
    variant: str
    network: Network
    workloads: tuple[Workload, ...] = ()
    pods: tuple[Pod, ...] = ()
    manifests: tuple[dict[str, Any], ...] = ()
    counters: dict[str, int] = msgspec.field(default_factory=dict)

    def pod(self, name: str) -> Pod | None:
        return next((pod for pod in self.pods if pod.name == name), None)

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.topology.nodes)


class Allocations(Value, frozen=True):
    """What an API server allocates, kept over restarts of the lab.

    ``cluster_ips`` by ``ns/name`` (one address a family, in the order of the service's families),
    ``node_ports`` by ``ns/name/port/PROTOCOL`` with the service's port number, and by
    ``ns/name/healthCheck``; ``load_balancer_ips`` like ``cluster_ips``.
    """

    cluster_ips: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    node_ports: dict[str, int] = msgspec.field(default_factory=dict)
    load_balancer_ips: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)


class Process(Value, frozen=True):
    """A process of ours. ``started`` is field 22 of /proc/PID/stat (clock ticks since boot): with
    it a recycled pid is told from the process that we started. ``role`` is ``kproxy`` or ``pods``.
    """

    pid: int
    started: int
    role: str
    host: str = ""

    def alive(self) -> bool:
        """Whether this very process still runs (a zombie has ended)."""
        return start_time(self.pid) == self.started


class Undo(Value, frozen=True):
    """What a lab's undo log says is there, in the order in which it was made."""

    namespaces: tuple[str, ...] = ()
    processes: tuple[Process, ...] = ()


class _Entry(Value, frozen=True, omit_defaults=True):
    """One line of the log: something was made, or (``gone``) taken away."""

    namespace: str = ""
    process: Process | None = None
    gone: bool = False


def start_time(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None when it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name is in parentheses and may hold spaces and parentheses itself: proc(5).
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _need_root() -> None:
    """The records are root's alone, as namespaces are: say so before a PermissionError does."""
    if os.geteuid() != 0:
        raise MachineError("labs need root", hint="try again with sudo")


# --- places -----------------------------------------------------------------------------------


def lab_dir(lab: str) -> Path:
    return RUN_DIR / lab


def manifests_dir(lab: str) -> Path:
    """The folder that every node's kproxy reads; :mod:`kproxy.lab.lifecycle` alone writes."""
    return lab_dir(lab) / "manifests"


def host_dir(lab: str, host: str) -> Path:
    """Log, lock file and proxy state of one node."""
    return lab_dir(lab) / "hosts" / host


def hosts_path(lab: str) -> Path:
    """What stands for /etc/hosts in programs that run inside the lab."""
    return lab_dir(lab) / "hosts.txt"


def list_labs() -> tuple[str, ...]:
    """Names of all labs that are up, half made or half gone, sorted."""
    _need_root()
    if not RUN_DIR.is_dir():
        return ()
    return tuple(
        sorted(
            entry.name
            for entry in RUN_DIR.iterdir()
            if (entry / "undo.jsonl").exists() or (entry / "state.json").exists()
        )
    )


# --- state ------------------------------------------------------------------------------------


@contextmanager
def lock(lab: str) -> Iterator[None]:
    """One changer of a lab at a time; waits for the other one. Not reentrant."""
    _need_root()
    RUN_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Beside the lab's folder, not in it: ``forget`` removes the folder while it holds the lock.
    fd = os.open(RUN_DIR / f".{lab}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def find(lab: str) -> LabState | None:
    """The state of a lab; None when it is not (wholly) up."""
    _need_root()
    try:
        text = (lab_dir(lab) / "state.json").read_bytes()
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(text, type=LabState)
    except msgspec.DecodeError as wrong:
        raise LabError(
            f"the lab's record is of another version of kproxy ({wrong})",
            where=str(lab_dir(lab) / "state.json"),
            hint=f"take it down and up again: kproxy lab down --name {lab}",
        ) from wrong


def load(lab: str) -> LabState:
    """The state of a lab that must be up; LabError says what to do when it is not."""
    state = find(lab)
    if state is not None:
        return state
    others = [name for name in list_labs() if name != lab]
    if lab in list_labs():
        raise LabError(
            f"lab {lab} is half made or half gone", hint=f"try: kproxy lab down --name {lab}"
        )
    hint = f"up are: {', '.join(others)} (use --name)" if others else "try: kproxy lab up"
    raise LabError(f"lab {lab} is not up", hint=hint)


def save(state: LabState) -> None:
    """Write a lab's state, whole or not at all."""
    write_atomically(lab_dir(state.name) / "state.json", msgspec.json.encode(state))


def load_allocations(lab: str) -> Allocations:
    """What was allocated for the services of a lab of that name, now or earlier."""
    try:
        return msgspec.json.decode(
            (KEPT_DIR / lab / "allocations.json").read_bytes(), type=Allocations
        )
    except FileNotFoundError:
        return Allocations()


def save_allocations(lab: str, allocations: Allocations) -> None:
    write_atomically(KEPT_DIR / lab / "allocations.json", msgspec.json.encode(allocations))


def list_allocations() -> tuple[str, ...]:
    """Names of labs for which allocations are kept."""
    return tuple(sorted(entry.name for entry in KEPT_DIR.iterdir())) if KEPT_DIR.is_dir() else ()


def forget_allocations(lab: str) -> None:
    """The next lab of that name starts with fresh cluster IPs and node ports."""
    if (KEPT_DIR / lab).is_dir():
        shutil.rmtree(KEPT_DIR / lab)


def write_atomically(path: Path, content: bytes, *, draft: Path | None = None) -> None:
    """Replace a file so that a reader sees the old or the new content, never half of one.

    The folder is 0700 and the file 0600. ``draft`` (same file system) is where the new content is
    written first: beside the file when not given, elsewhere when the folder is watched.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = draft or path.with_name(f".{path.name}.new")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
    draft.rename(path)


# --- undo log ---------------------------------------------------------------------------------


class UndoLog:
    """The undo log of one lab. Every note is in the file when the method returns."""

    def __init__(self, lab: str) -> None:
        self._path = lab_dir(lab) / "undo.jsonl"

    def begin(self) -> None:
        """Make the log, so that the lab counts as begun. LabError if it is there already."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            raise LabError("the lab is there already", where=str(self._path)) from None

    def namespace(self, name: str) -> None:
        self._note(_Entry(namespace=name))

    def namespace_gone(self, name: str) -> None:
        self._note(_Entry(namespace=name, gone=True))

    def process(self, process: Process) -> None:
        self._note(_Entry(process=process))

    def process_gone(self, process: Process) -> None:
        self._note(_Entry(process=process, gone=True))

    def _note(self, entry: _Entry) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(fd, msgspec.json.encode(entry) + b"\n")
        finally:
            os.close(fd)

    def exists(self) -> bool:
        return self._path.exists()

    def read(self) -> Undo:
        """What is there according to the log; a line that a crash cut short counts as absent."""
        there: dict[str | Process, None] = {}
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return Undo()
        for line in lines[:-1]:
            entry = msgspec.json.decode(line, type=_Entry)
            thing = entry.process or entry.namespace
            if entry.gone:
                there.pop(thing, None)
            else:
                there[thing] = None
        return Undo(
            tuple(thing for thing in there if isinstance(thing, str)),
            tuple(thing for thing in there if isinstance(thing, Process)),
        )


def forget(lab: str) -> None:
    """Remove a lab's folder under /run: the last act of taking it down. Allocations stay."""
    shutil.rmtree(lab_dir(lab), ignore_errors=False)
