"""Private directories of running scenarios, and the sweep after runs that were killed.

Each run holds a directory below /run/kproxy/scenario with a lock on it, and writes the name of
every namespace there before it makes it. A directory whose lock is free belongs to nobody: the next
run removes the namespaces that it names, and then the directory.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Self

from kproxy.kernel import netns

ROOT = Path("/run/kproxy/scenario")
_LOCK, _NAMESPACES = "lock", "namespaces"


class Workspace:
    """One run's directory; ``path / number`` are the scenarios' own."""

    def __init__(self, root: Path = ROOT) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        guard = _lock(root, wait=True)
        try:
            # Guarded: another run's sweep must not find this directory before it is locked.
            sweep(root)
            self.path = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=root))
            self._lock = _lock(self.path)
        finally:
            os.close(guard)
        self._names: list[str] = []
        self._serial = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def next(self) -> tuple[str, Path]:
        """A lab name that is free, and a new directory for it."""
        self._serial += 1
        home = self.path / str(self._serial)
        home.mkdir(mode=0o700)
        return f"scn-{self.path.name}-{self._serial}", home

    def record(self, namespace: str) -> None:
        """Write a namespace down; call it before the namespace is made."""
        self._names.append(namespace)
        with open(self.path / _NAMESPACES, "a") as file:
            file.write(f"{namespace}\n")

    def remove_namespaces(self) -> None:
        """Remove all that was recorded."""
        for name in self._names:
            netns.remove(name)
        self._names.clear()
        (self.path / _NAMESPACES).unlink(missing_ok=True)

    def close(self) -> None:
        self.remove_namespaces()
        _remove(self.path)
        os.close(self._lock)


def _lock(path: Path, *, wait: bool = False) -> int:
    """Lock a directory; BlockingIOError when somebody else holds it, unless told to wait."""
    fd = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _remove(path: Path) -> None:
    """The lock goes with the directory: from then on two may be at it, the run and a sweep."""

    def fails(function: object, name: str, error: tuple[type, BaseException, object]) -> None:
        if not isinstance(error[1], FileNotFoundError):
            raise error[1]

    shutil.rmtree(path, onerror=fails)


def sweep(root: Path = ROOT) -> None:
    """Clear up after runs that ended without doing so themselves."""
    for path in root.iterdir():
        if not path.is_dir():
            continue
        try:
            lock = _lock(path)
        except BlockingIOError:
            continue  # in use
        except FileNotFoundError:
            continue  # its run has just ended
        try:
            names = path / _NAMESPACES
            for name in names.read_text().split() if names.exists() else ():
                netns.remove(name)
            _remove(path)
        finally:
            os.close(lock)
