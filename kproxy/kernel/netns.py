"""Network namespaces: made, opened, entered, removed.

Named namespaces are bind mounts under /run/netns, as ``ip netns`` makes them, so every tool of the
host sees them. A thread is moved with setns(2), which is per thread: sockets opened inside stay
bound to that namespace for life, so one process can serve many namespaces.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kproxy.errors import LabError, MachineError

RUN_DIR = Path("/run/netns")

CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_SHARED, _MNT_DETACH = 0x1000, 0x4000, 1 << 20, 2

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: object) -> None:
    if getattr(_libc, name)(*args) != 0:
        code = ctypes.get_errno()
        if code == errno.EPERM:
            raise MachineError(
                f"{name}: not permitted", hint="run as root (CAP_SYS_ADMIN, CAP_NET_ADMIN)"
            )
        raise OSError(code, f"{name}: {os.strerror(code)}")


def path_of(name: str) -> Path:
    """Where a named namespace is mounted."""
    return RUN_DIR / name


def exists(name: str) -> bool:
    return path_of(name).exists()


def create(name: str) -> None:
    """Make a named namespace, as ``ip netns add`` does. LabError when the name is taken."""
    _prepare_run_dir()
    target = path_of(name)
    try:
        os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444))
    except FileExistsError:
        raise LabError(f"namespace {name} exists already") from None
    try:
        with fresh():
            _call("mount", b"/proc/thread-self/ns/net", bytes(target), b"none", _MS_BIND, None)
    except BaseException:
        with suppress(OSError):
            target.unlink()
        raise


def _prepare_run_dir() -> None:
    """Make /run/netns a shared mount once: else other mount namespaces would pin the entries."""
    RUN_DIR.mkdir(mode=0o755, exist_ok=True)
    run = os.fsencode(RUN_DIR)
    try:
        _call("mount", b"", run, b"none", _MS_SHARED | _MS_REC, None)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: not a mount point yet
            raise
        _call("mount", run, run, b"none", _MS_BIND | _MS_REC, None)
        _call("mount", b"", run, b"none", _MS_SHARED | _MS_REC, None)


def remove(name: str) -> None:
    """Unmount and delete; the kernel frees the namespace when its last user is gone.

    A name that is not there is fine: removal is used by undo records.
    """
    target = path_of(name)
    try:
        _call("umount2", bytes(target), _MNT_DETACH)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
    with suppress(FileNotFoundError):
        target.unlink()


def open_fd(name: str) -> int:
    """Descriptor of a named namespace; the caller closes it. LabError when it is not there."""
    try:
        return os.open(path_of(name), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise LabError(f"no network namespace {name}", hint="ip netns list shows them") from None


def enter(namespace: int) -> None:
    """Move the calling thread into an open namespace for good; a child does so before a tool."""
    _call("setns", namespace, CLONE_NEWNET)


@contextmanager
def entered(namespace: int | str | None) -> Iterator[None]:
    """The calling thread acts in ``namespace`` (descriptor or name; None: stays where it is).

    Do not await inside: other tasks of the same thread would act there as well.
    """
    if namespace is None:
        yield
        return
    target = open_fd(namespace) if isinstance(namespace, str) else namespace
    try:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", target, CLONE_NEWNET)
            try:
                yield
            finally:
                _call("setns", home, CLONE_NEWNET)
        finally:
            os.close(home)
    finally:
        if isinstance(namespace, str):
            os.close(target)


@contextmanager
def fresh() -> Iterator[None]:
    """The calling thread acts in a new, empty namespace (loopback down), gone with its users."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("unshare", CLONE_NEWNET)
        try:
            yield
        finally:
            _call("setns", home, CLONE_NEWNET)
    finally:
        os.close(home)
