"""The proxy of a scenario's node: a real process, its manifests folder, and waiting for effect.

Nothing sleeps here. The daemon says by datagram when its status file is new; the process's
descriptor (pidfd) says when it ended.
"""

from __future__ import annotations

import os
import re
import select
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

import msgspec

from kproxy import status, succession
from kproxy.backends.registry import Choice
from kproxy.config import Config
from kproxy.errors import LabError
from kproxy.lab.scenario.actions import Health
from kproxy.lab.scenario.schema import Manifest
from kproxy.lab.scenario.zygote import Launch, Zygote

#: Seconds within which a change must be in force, also on a busy machine.
SYNC_TIMEOUT = 25.0

_UNSAFE = re.compile(r"[^A-Za-z0-9.-]+")


class Manifests:
    """A folder with one file for each object; files appear and change as a whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700)
        self._files: dict[tuple[str, str, str], Path] = {}
        self._removed: set[Path] = set()

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file that is there or was: all of them have to be in force."""
        return (*self._files.values(), *self._removed)

    def __contains__(self, manifest: Manifest) -> bool:
        return _key(manifest) in self._files

    def put(self, manifests: Iterable[Manifest]) -> None:
        """Create objects, or replace them whole."""
        for manifest in manifests:
            key = _key(manifest)
            if key not in self._files:
                number = len(self._files) + len(self._removed)
                name = _UNSAFE.sub("_", "-".join(part for part in key if part))[:80]
                self._files[key] = self.folder / f"{number:03}-{name}.json"
            target = self._files[key]
            fresh = self.folder.parent / f"{target.name}.new"
            fresh.write_bytes(msgspec.json.encode(manifest))
            fresh.chmod(0o600)
            fresh.rename(target)

    def delete(self, manifests: Iterable[Manifest]) -> None:
        """Delete objects, named by kind, namespace and name."""
        for manifest in manifests:
            path = self._files.pop(_key(manifest), None)
            if path is None:
                raise LabError(
                    f"there is no {' '.join(_key(manifest))} to delete",
                    hint="only what was applied before can be deleted",
                )
            path.unlink()
            self._removed.add(path)


def _key(manifest: Manifest) -> tuple[str, str, str]:
    """Kind, namespace and name as they stand; objects may be broken on purpose."""
    metadata = manifest.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    parts = (manifest.get("kind"), metadata.get("namespace"), metadata.get("name"))
    kind, namespace, name = (str(part) if part is not None else "" for part in parts)
    return kind, namespace, name


class Proxy:
    """Starts, stops and awaits the daemon of one node. ``home`` is a private directory."""

    def __init__(
        self,
        zygote: Zygote,
        namespace: int,
        home: Path,
        manifests: Manifests,
        config: Config,
        choice: Choice,
        environment: dict[str, str],
    ) -> None:
        self._zygote = zygote
        self._namespace = namespace
        self._manifests = manifests
        self._notices = status.Notifications(home / "notify")
        self.log = home / "log"
        self.state_dir = home / "state"
        self._launch = Launch(
            config=config,
            variant=choice.variant or "auto",
            manifests=str(manifests.folder),
            state_dir=str(self.state_dir),
            notify=self._notices.path,
            log=str(self.log),
            environment=tuple(environment.items()),
        )
        self._hands_over = choice.mode in succession.MODES
        self._pid = 0
        self._pidfd = -1
        #: Counts the processes; those of them that were stopped or killed.
        self._lives = 0
        self.ended: set[int] = set()
        #: Those that have handed over and go on for the flows that they have: (pid, pidfd).
        self._draining: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        for pid, pidfd in self._draining:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            self._zygote.reap(pid)
            os.close(pidfd)
        self._draining.clear()
        self._notices.close()

    @property
    def running(self) -> bool:
        return self._pid != 0

    @property
    def life(self) -> int:
        """Number of the process that runs, 0: none does."""
        return self._lives if self.running else 0

    def start(self) -> None:
        if not self.running:
            self._pid = self._zygote.start(self._namespace, self._launch)
            self._lives += 1
            # The zygote has not reaped it, so the number is still this process's.
            self._pidfd = os.pidfd_open(self._pid)

    def stop(self) -> None:
        """SIGTERM, as a supervisor would; rules stay."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """In a mode that carries connections the new process takes over from the old one."""
        if self._hands_over and self.running:
            self._draining.append((self._pid, self._pidfd))
            self._pid, self._pidfd = 0, -1
        else:
            self.stop()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        if not self.running:
            return
        self.ended.add(self._lives)
        signal.pidfd_send_signal(self._pidfd, number)
        if not select.select([self._pidfd], [], [], SYNC_TIMEOUT)[0]:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self._reap()
            raise LabError(f"the proxy did not end on {number.name} within {SYNC_TIMEOUT:g} s")
        self._reap()

    def _reap(self) -> int:
        status_ = self._zygote.reap(self._pid)
        os.close(self._pidfd)
        self._pid, self._pidfd = 0, -1
        return status_

    @property
    def syncs(self) -> int:
        """How many syncs the running process has ended, good or bad."""
        now = self._status()
        return now.syncs if now is not None else 0

    def _status(self) -> status.Status | None:
        """The running process's own status: the file may be its predecessor's."""
        now = status.read(self.state_dir)
        return now if now is not None and now.pid == self._pid else None

    def wait_in_force(self) -> None:
        """Until the kernel holds what the manifests say. LabError with the log when it does not."""
        self._wait(
            lambda: (
                self._status() is not None
                and status.in_force(self.state_dir, self._manifests.paths)
            ),
            "the objects are in force",
        )

    def wait_synced(self, after: int) -> None:
        """Until a sync later than the one numbered ``after`` has ended."""
        self._wait(lambda: self.syncs > after, "the next sync has ended")

    def wait_judged(self, health: Health) -> None:
        """Until the plan in force has come to this about the health of endpoints."""
        self._wait(lambda: self._judged(health), str(health))

    def _judged(self, health: Health) -> bool:
        now = self._status()
        return now is not None and health.reached(now.health)

    def _wait(self, reached: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SYNC_TIMEOUT
        while not reached():
            left = deadline - time.monotonic()
            ready, _, _ = select.select(
                [self._notices.fileno(), self._pidfd], [], [], max(0.0, left)
            )
            if not ready:
                raise LabError(f"not true within {SYNC_TIMEOUT:g} s: {what}{self._last_words()}")
            if self._pidfd in ready:
                ended = self._reap()
                raise LabError(f"the proxy ended with {ended} before {what}{self._last_words()}")
            while self._notices.receive() is not None:
                pass

    def _last_words(self) -> str:
        now = self._status() if self.running else None
        error = f"; last error: {now.last_error}" if now is not None and now.last_error else ""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        said = f"; it said: {' | '.join(lines[-3:])}" if lines else ""
        return f"{error}{said}"
