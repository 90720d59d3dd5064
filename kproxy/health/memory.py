"""What checks have found, kept over a restart: ``health.json`` in the daemon's state directory.

A daemon that starts would take every endpoint for what its check's ``initial`` says until it has
tried it, and let clients run into dead ones for so long. So it begins with what the one before it
knew, if that is not older than :data:`BELIEVED`; the first results put right what has changed
since, and who was ejected is let in again when a first ejection would be over.

The file is replaced as a whole (mode 0600: headers of checks may be secrets); while the daemon
lives it is written anew every :data:`REFRESH` seconds, so that its age is that of the knowledge.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from kproxy import logs
from kproxy.core.health.values import Check, Checked, Ejected, Target
from kproxy.core.objects import Value
from kproxy.errors import KernelError
from kproxy.kernel.files import replace_file

FILE = "health.json"

#: Seconds. A node that was away for longer has missed too much.
BELIEVED = 300.0
REFRESH = 60.0

_log = logs.get("health")


class _Opinion(Value, frozen=True, array_like=True, gc=False):
    """``check`` is a place in the list of checks, of which there are few."""

    check: int
    ip: str
    port: int
    up: bool
    reason: str
    at: float


class _Record(Value, frozen=True):
    """``saved`` in seconds since the epoch."""

    saved: float
    checks: tuple[Check, ...]
    opinions: tuple[_Opinion, ...]
    ejected: tuple[Ejected, ...] = ()


class Memory:
    """The file in the state directory ``folder``, which the caller holds."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._trouble = ""

    def recall(self, now: float | None = None) -> tuple[Checked | Ejected, ...]:
        """What was known not long ago; () when that is not known, or too old to be believed."""
        try:
            record = msgspec.json.decode(self._path.read_bytes(), type=_Record)
            targets = [
                Target(record.checks[each.check], each.ip, each.port) for each in record.opinions
            ]
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, IndexError) as broken:
            _log.warning("what was known of endpoints is lost", where=self._path, why=broken)
            return ()
        # A clock that was set back is as bad as an old file.
        if abs((time.time() if now is None else now) - record.saved) > BELIEVED:
            return ()
        checked = [
            Checked(target, each.up, each.reason, each.at)
            for target, each in zip(targets, record.opinions, strict=True)
        ]
        return *checked, *record.ejected

    def keep(self, known: Iterable[Checked | Ejected], now: float | None = None) -> None:
        """Write all of it. A full disk is told once, and ends no node's proxy."""
        known = list(known)
        checks: dict[Check, int] = {}
        told = tuple(
            [
                _Opinion(
                    checks.setdefault(each.target.check, len(checks)),
                    each.target.ip,
                    each.target.port,
                    each.up,
                    each.reason,
                    each.at,
                )
                for each in known
                if isinstance(each, Checked)
            ]
        )
        ejected = tuple([each for each in known if isinstance(each, Ejected)])
        record = _Record(time.time() if now is None else now, tuple(checks), told, ejected)
        trouble = ""
        try:
            replace_file(self._path, msgspec.json.encode(record))
        except KernelError as failed:
            trouble = str(failed)
            if trouble != self._trouble:
                _log.warning("a restart would forget which endpoints are down", why=trouble)
        self._trouble = trouble
