"""What a daemon leaves to the next one when it ends: flows and affinities of its engine, as a file.

Without it (after ``kill -9``) flows are made anew by the next packet of their client: hashing leads
it to the same endpoint, and behind the same port, as long as the endpoints are those of then.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from kproxy.core.objects import Family, PortName, Value
from kproxy.kernel.files import replace_file

_BOOT = Path("/proc/sys/kernel/random/boot_id")

#: Raised with the layout of the engine's records.
FORM = 1


class Estate(Value, frozen=True):
    """``names`` are the engine's numbers of service ports; ``records`` count time by the monotonic
    clock of this ``boot``."""

    names: tuple[tuple[int, PortName], ...]
    records: bytes
    form: int = FORM
    boot: str = ""


def path(folder: Path, family: Family) -> Path:
    return folder / f"fastpath-flows-ipv{int(family)}"


def leave(folder: Path, family: Family, estate: Estate) -> None:
    """Write it, mode 0600. KernelError when it cannot be."""
    whole = msgspec.structs.replace(estate, boot=_boot())
    replace_file(path(folder, family), msgspec.msgpack.encode(whole))


def take(folder: Path, family: Family) -> Estate | None:
    """What was left, once: the file is gone then. None when there is nothing of use."""
    target = path(folder, family)
    try:
        found = msgspec.msgpack.decode(target.read_bytes(), type=Estate)
    except (FileNotFoundError, msgspec.MsgspecError):
        found = None
    target.unlink(missing_ok=True)
    if found is None or (found.form, found.boot) != (FORM, _boot()):
        return None
    return found


def _boot() -> str:
    return _BOOT.read_text().strip()
