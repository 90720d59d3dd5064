"""Relay ports on disk, so that a proxy that was killed gets the same ones when it is back.

Rules outlive their daemon. As long as they lead to ports on which the next daemon listens again,
nothing of them has to change, and nobody is refused for longer than no daemon was there. The file
is a help and no more: a port that somebody else has by then is drawn anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from kproxy.backends.userspace.plan import Front
from kproxy.core.objects import Family, PortName, Value
from kproxy.core.policy import Use
from kproxy.kernel.files import replace_file


class _Port(Value, frozen=True, array_like=True):
    name: PortName
    use: Use
    port: int


def path(folder: Path, family: Family) -> Path:
    """The file of one family: each writes its own, at its own time."""
    return folder / f"relay-ipv{int(family)}.json"


def read(folder: Path, family: Family) -> dict[Front, int]:
    """The ports last written; none when there is no such file, or none that can be read."""
    try:
        found = msgspec.json.decode(path(folder, family).read_bytes(), type=tuple[_Port, ...])
    except (FileNotFoundError, msgspec.MsgspecError):
        return {}
    return {Front(each.name, each.use): each.port for each in found}


def write(folder: Path, family: Family, ports: Mapping[Front, int]) -> None:
    """Replace the file as a whole, mode 0600. KernelError when it cannot be written.

    All of it each time: ten thousand ports are half a megabyte, 3 ms, and it is done only when a
    front came or went.
    """
    rows = [_Port(front.name, front.use, port) for front, port in ports.items()]
    replace_file(path(folder, family), msgspec.json.encode(rows))
