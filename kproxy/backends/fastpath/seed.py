"""The seed that decides which endpoint a client gets, kept over restarts.

Every node of a cluster and every restart chooses alike when all have the same one: that of the
configuration. Without one each node makes its own, so that at least a restart finds its flows'
endpoints again.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from kproxy.errors import KernelError

SIZE = 16

_NAME = "fastpath-seed"


def kept_seed(folder: Path) -> bytes:
    """The seed of a state directory, made if there is none. KernelError when it cannot be."""
    target = folder / _NAME
    try:
        known = target.read_bytes()
        if len(known) == SIZE:
            return known
    except FileNotFoundError:
        pass
    fresh = folder / f".{_NAME}.{os.getpid()}-{secrets.token_hex(4)}"
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_bytes(SIZE))
        # Both families may be at it: the first one stays.
        try:
            os.link(fresh, target)
        except FileExistsError:
            if len(target.read_bytes()) != SIZE:
                fresh.replace(target)
                return target.read_bytes()
        fresh.unlink()
    except OSError as failed:
        raise KernelError(f"cannot be written: {failed.strerror}", where=str(target)) from failed
    return target.read_bytes()
