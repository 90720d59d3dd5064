"""Files that only we may read, replaced as a whole: a reader sees the old one or the new one."""

from __future__ import annotations

import os
from pathlib import Path

from kproxy.errors import KernelError


def replace_file(target: Path, content: bytes) -> None:
    """Mode 0600. KernelError when it cannot be written: the old one stays."""
    fresh = target.with_name(f".{target.name}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        fresh.rename(target)
    except OSError as failed:
        raise KernelError(
            f"cannot be written: {failed.strerror}",
            where=str(target),
            hint="make room, or make the directory again",
        ) from failed
