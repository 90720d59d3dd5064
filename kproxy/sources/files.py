"""Files on disk: which ones a list of paths means, reading one without tearing, what to watch."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

#: As ``kubectl apply -f DIR``: these endings, and not in folders below.
SUFFIXES = (".yaml", ".yml", ".json")

#: A file that changes while it is read is read again; a busy writer is left to the next event.
_READ_TRIES = 3
_MAX_LINKS = 40


class Identity(NamedTuple):
    """Tells one content of a file from another without reading it. Times are in ns."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Found(NamedTuple):
    """What a path means now. ``fault`` "" when it could be looked at.

    ``folder``: its files were listed; they are ``files``, else the path itself is the only one.
    """

    path: str
    files: tuple[str, ...] = ()
    folder: bool = False
    stream: bool = False
    fault: str = ""


def identity_of(status: os.stat_result) -> Identity:
    return Identity(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


def find(path: str) -> Found:
    """Looks at a path: a folder's manifests sorted by name, a file, or a stream (pipe, device).

    Names that begin with a dot are left out: editors lock and swap under them, and Kubernetes
    keeps the true folder of a mounted ConfigMap there.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISDIR(mode):
            return Found(path, (path,), stream=not stat.S_ISREG(mode))
        names = sorted(
            name
            for name in os.listdir(path)
            if name.endswith(SUFFIXES) and not name.startswith(".")
        )
    except OSError as fault:
        return Found(path, fault=fault.strerror or str(fault))
    files = (os.path.join(path, name) for name in names)
    return Found(path, tuple(file for file in files if not os.path.isdir(file)), folder=True)


def read(path: str) -> tuple[Identity, bytes]:
    """Identity and content that belong together. Raises OSError.

    The identity is taken of the open file, before and after: a rename over the path in the middle
    cannot mix two files. When it will not hold still, the earlier identity is given, so that the
    file counts as changed at the next look.
    """
    # O_NONBLOCK: a pipe put in the place of a file must not stop us; a file does not care.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(None, "is no regular file")
        for _ in range(_READ_TRIES):
            before = identity_of(os.fstat(descriptor))
            file.seek(0)
            data = file.read()
            if identity_of(os.fstat(descriptor)) == before:
                break
    return before, data


def hops(path: str) -> Iterator[str]:
    """Every name on the way to a file at which the way can change: links, and the end.

    A mounted ConfigMap swaps its ``..data`` link, so the file itself never changes. The walk ends
    at the first name that does not exist: when that appears, there is something to see.
    """
    links = 0
    todo = os.path.abspath(path).split(os.sep)[1:]
    here = os.sep
    while todo:
        name = todo.pop(0)
        if name in ("", "."):
            continue
        if name == "..":
            here = os.path.dirname(here)
            continue
        step = os.path.join(here, name)
        try:
            target = os.readlink(step)
        except OSError:
            if not todo or not os.path.lexists(step):
                yield step
                return
            here = step
            continue
        yield step
        links += 1
        if links > _MAX_LINKS:
            return
        if os.path.isabs(target):
            here = os.sep
        todo = target.split(os.sep) + todo
