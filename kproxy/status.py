"""The daemon's state for others to see: ``status.json``, and datagrams that say it has changed.

The file lies in the daemon's state directory (mode 0700, the file 0600) and is replaced as a whole
after every sync. Datagrams follow sd_notify(3): ``READY=1`` after the first good sync of every
family, ``STATUS=…``, ``STOPPING=1``, and ``X_KPROXY_STATUS=changed`` after each new file. Who waits
for an effect waits for a datagram and then reads the file::

    with Notifications(path) as notices:                # NOTIFY_SOCKET=path for the daemon
        write_manifests(files)
        await notices.until(lambda: in_force(state_dir, files), timeout=5)
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import msgspec

from kproxy.core.objects import Value
from kproxy.errors import CheckFailed, UsageError
from kproxy.health.standing import PortStanding
from kproxy.kernel.files import replace_file
from kproxy.sources.files import Identity, identity_of

DEFAULT_STATE_DIR = "/run/kproxy"

_FILE, _LOCK = "status.json", "lock"

#: Statuses of :class:`kproxy.sources.manifests.Status` in which all that a file says is in force
#: (or refused); else objects that are gone from it may still be there.
_TAKEN_OVER = ("read", "kept last good")


class FileStatus(Value, frozen=True):
    """``identity`` tells one content of a file from another; ``status`` is the source's word."""

    identity: str
    status: str


class FamilyStatus(Value, frozen=True):
    """One family. ``skipped`` says why it is not served; ``generation`` is the plan in force.

    ``synced_at`` (seconds since the epoch) and ``seconds`` are of the last good sync, ``failures``
    counts failed syncs since the last good one, ``error`` is the last one's reason.
    """

    family: int
    skipped: str = ""
    generation: int = 0
    service_ports: int = 0
    endpoints: int = 0
    synced_at: float = 0.0
    seconds: float = 0.0
    written: int = 0
    full: bool = False
    failures: int = 0
    error: str = ""


class Status(Value, frozen=True):
    """Everything. ``files`` are those whose content is in force in the kernel, for every family.

    ``ready``: every family has had a good sync. ``refusals`` are what is left out and why: of the
    input, of the plan (addresses that two services claim) and of the kernel. ``health`` are the
    service ports with checks or passive detection, in the plans in force. ``syncs`` and
    ``failures`` count all syncs since the start; ``last_error`` stays until the next good sync.
    ``both``: seconds in which our rules stood beside those of the mode that we took over from: from
    the end of the first family's sync, of the first syncs that were good in all, until theirs were
    gone; None: we took over from nobody, or they still stand.
    """

    pid: int
    node: str
    mode: str
    variant: str
    started_at: float
    ready: bool = False
    families: tuple[FamilyStatus, ...] = ()
    objects: dict[str, int] = msgspec.field(default_factory=dict)
    refusals: tuple[str, ...] = ()
    health: tuple[PortStanding, ...] = ()
    files: dict[str, FileStatus] = msgspec.field(default_factory=dict)
    syncs: int = 0
    failures: int = 0
    last_error: str = ""
    both: float | None = None


class StateDir:
    """A state directory that one daemon holds: made when missing, locked until closed.

    ``lock`` is the descriptor of the lock where it comes from a predecessor: the directory goes
    from one to the other without a moment in which a third could take it.
    """

    def __init__(self, path: str | Path, lock: int | None = None) -> None:
        self.path = Path(path)
        self._given = False
        self._prepare()
        self._lock = self._locked() if lock is None else lock
        self.again()

    def _locked(self) -> int:
        try:
            lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as failed:
            raise UsageError(
                f"cannot be written: {failed.strerror}",
                where=str(self.path),
                hint="give --state-dir a directory that may be written",
            ) from failed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(lock, 32).decode(errors="replace").strip()
            os.close(lock)
            raise UsageError(
                f"another kproxy (process {pid or 'unknown'}) works with this state directory",
                where=str(self.path),
                hint="stop it first, or give --state-dir another directory",
            ) from None
        return lock

    def again(self) -> None:
        """Write down that it is ours: also after one who was given the lock has not kept it."""
        # Not at the offset: a predecessor has moved it, and it goes with the lock.
        os.truncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def fileno(self) -> int:
        """The lock's descriptor, to be handed to a successor."""
        return self._lock

    def give_away(self) -> None:
        """A successor holds the directory. The lock is given up here at once, lest it outlive the
        successor."""
        os.close(self._lock)
        self._given = True

    def write(self, status: Status) -> None:
        """Replace the file as a whole: a reader sees the old one or the new one.

        KernelError when it cannot be written: the old one stays.
        """
        replace_file(self.path / _FILE, msgspec.json.encode(status))

    def close(self) -> None:
        """Give the directory back; the last status stays for who asks what was."""
        if not self._given:
            os.truncate(self._lock, 0)
            os.close(self._lock)

    def _prepare(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.path.stat()
        except OSError as failed:
            raise UsageError(
                f"cannot be made: {failed.strerror}",
                where=str(self.path),
                hint="give --state-dir a directory that may be written",
            ) from failed
        # Somebody else who can write here could put links in our way.
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise UsageError(
                "the state directory may be written by others",
                where=str(self.path),
                hint=f"try: chown {os.geteuid()} {self.path} && chmod 0700 {self.path}",
            )


def read(state_dir: str | Path) -> Status | None:
    """The last status written there; None when there never was one."""
    try:
        return msgspec.json.decode((Path(state_dir) / _FILE).read_bytes(), type=Status)
    except FileNotFoundError:
        return None


def in_force(state_dir: str | Path, paths: Iterable[str | Path]) -> bool:
    """Whether the kernel holds what these files say as they are on disk now.

    A file that is gone is in force when the daemon no longer counts it in. A file that the daemon
    has read and found broken counts as read: its last good content is what is in force.
    """
    status = read(state_dir)
    if status is None or not status.ready:
        return False
    for path in map(str, paths):
        known, wanted = status.files.get(path), _identity_on_disk(path)
        if wanted is None and known is not None:
            return False
        if wanted is not None and (
            known is None or known.identity != wanted or known.status not in _TAKEN_OVER
        ):
            return False
    return True


def identity_text(identity: Identity | None) -> str:
    """A file's identity as the status spells it; "" for one that could not be looked at."""
    return "-".join(map(str, identity)) if identity is not None else ""


def _identity_on_disk(path: str) -> str | None:
    try:
        return identity_text(identity_of(os.stat(path)))
    except FileNotFoundError:
        return None


class Notifier:
    """Sends to the socket that NOTIFY_SOCKET names; without one, nowhere."""

    def __init__(self, address: str | None) -> None:
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )

    def send(self, **values: str) -> None:
        """One datagram. A receiver that is gone or whose queue is full misses it: it is a hint."""
        if self._address:
            text = "\n".join(f"{name}={value}" for name, value in values.items())
            with suppress(OSError):
                self._socket.sendto(text.encode(), self._address)

    def close(self) -> None:
        self._socket.close()


class Notifications:
    """The receiving end: a datagram socket at ``path``, which must be a free name.

    Several daemons may share one; ``X_KPROXY_STATE_DIR`` says whose datagram it is. A full queue
    loses datagrams, so look at everything awaited after each one, as :meth:`until` does.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        self._socket.bind(self.path)
        os.chmod(self.path, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()
        with suppress(FileNotFoundError):
            os.unlink(self.path)

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> Mapping[str, str] | None:
        """The next datagram that waits, as a mapping; None when none does."""
        try:
            text = self._socket.recv(65536).decode(errors="replace")
        except BlockingIOError:
            return None
        return dict(line.partition("=")[::2] for line in text.splitlines())

    async def wait(self, timeout: float) -> Mapping[str, str]:
        """The next datagram, waiting up to ``timeout`` seconds for it; CheckFailed without one."""
        import asyncio

        loop = asyncio.get_running_loop()
        try:
            data = await asyncio.wait_for(loop.sock_recv(self._socket, 65536), timeout)
        except TimeoutError:
            raise CheckFailed(f"no word from the daemon in {timeout:g} s") from None
        text = data.decode(errors="replace")
        return dict(line.partition("=")[::2] for line in text.splitlines())

    async def until(self, reached: Callable[[], bool], timeout: float) -> None:
        """Return when ``reached()`` is true, asked first and after each datagram."""
        deadline = time.monotonic() + timeout
        while not reached():
            await self.wait(max(0.0, deadline - time.monotonic()))

    def until_sync(self, reached: Callable[[], bool], timeout: float) -> None:
        """The same for callers without an event loop."""
        deadline = time.monotonic() + timeout
        while not reached():
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._socket], [], [], left)[0]:
                raise CheckFailed(f"no word from the daemon in {timeout:g} s")
            while self.receive() is not None:
                pass
