"""Sysctls of the network namespace that the calling thread is in, and a record of what we changed.

Names are paths below /proc/sys with slashes (``net/ipv4/ip_forward``), because interface names
may hold dots. An absolute name is that file: conntrack's hash size is a parameter of its module.

The record is one file for each network namespace, which its inode number names: a namespace has no
other name that every process in it knows. It holds ``{name: [value before us, our value]}``. Who
makes namespaces and takes them away again, as a lab does, names a folder for their records in
``KPROXY_RECORDS`` and takes that away with them.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Collection
from pathlib import Path

from kproxy.errors import KernelError

_ROOT = Path("/proc/sys")

#: Where the values that sysctls had before us are written down, unless the environment says else.
RECORDS = Path("/run/kproxy")

#: Two families are synced side by side, and a mode may set the same sysctls for both.
_recording = threading.Lock()


def read(name: str) -> str | None:
    """Current value without its newline; None when this kernel has no such sysctl."""
    try:
        return (_ROOT / name).read_text().strip()
    except FileNotFoundError:
        return None


def write(name: str, value: str) -> None:
    """Set a value. KernelError when the sysctl is missing or may not be written here."""
    try:
        # Three system calls, not the nine of a text file: labs set hundreds.
        file = os.open(_ROOT / name, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            # A list is emptied by an empty line: writing nothing changes nothing.
            os.write(file, (value or "\n").encode())
        finally:
            os.close(file)
    except OSError as error:
        raise KernelError(
            f"cannot set {name}={value}: {error.strerror}",
            hint=f"try: sysctl -w {name.replace('/', '.')}={value}"
            if not name.startswith("/")
            else f"try: echo {value} > {name}",
        ) from error


def change(name: str, value: str, *, records: Path = RECORDS) -> bool:
    """Set a value if it is another one, and remember what it was. Whether it had to be set.

    KernelError as :func:`write`, also when there is no such sysctl.
    """
    with _recording:
        before = read(name)
        if before == value:
            return False
        write(name, value)
        if before is not None:
            # Read again: the kernel rounds some values, and the record must know ours when it sees
            # it.
            _remember(_record(records), name, before, read(name) or value)
    return True


def restore(*, only: Collection[str] | None = None, records: Path = RECORDS) -> tuple[str, ...]:
    """Set back what :func:`change` changed in this namespace; the names of what was set back.

    ``only`` these, None: all of them.

    Whoever set another value since then meant it: that one stays. KernelError when one cannot be
    set back; then the record is kept.
    """
    record = _record(records)
    done: list[str] = []
    values = _recorded(record)
    names = [name for name in values if only is None or name in only]
    for name in names:
        before, ours = values.pop(name)
        if read(name) == ours:
            write(name, before)
            done.append(name)
    if values and names:
        _save(record, values)
    elif not values:
        record.unlink(missing_ok=True)
    return tuple(done)


def _record(records: Path) -> Path:
    # Looked up now: a forked daemon gets its environment after this module was loaded.
    named = os.environ.get("KPROXY_RECORDS")
    folder = Path(named) if named and records == RECORDS else records
    return folder / f"sysctl-{os.stat('/proc/thread-self/ns/net').st_ino}.json"


def _recorded(record: Path) -> dict[str, list[str]]:
    try:
        values: dict[str, list[str]] = json.loads(record.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise KernelError(
            f"unreadable: {error}", where=str(record), hint="delete it and set the sysctls by hand"
        ) from error
    return values


def _remember(record: Path, name: str, before: str, ours: str) -> None:
    """What is recorded already stays the value to go back to, unless somebody set another one in
    between: a namespace that reuses the number of a dead one finds that one's record.
    """
    values = _recorded(record)
    first = values.get(name)
    if first is not None and first[1] == before:
        before = first[0]
    try:
        _save(record, {**values, name: [before, ours]})
    except KernelError as error:
        raise KernelError(
            f"{name} was {before} and is {ours}, which {error.what}",
            where=str(record),
            hint="cleanup will not set it back",
        ) from error


def _save(record: Path, values: dict[str, list[str]]) -> None:
    """Written beside and moved in place: a crash leaves the old record or the new one."""
    scratch = record.with_suffix(f".{os.getpid()}")
    try:
        record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(values, file)
        scratch.replace(record)
    except OSError as error:
        raise KernelError(f"cannot be recorded: {error.strerror}", where=str(record)) from error
