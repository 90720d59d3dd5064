"""What the daemon tells after each sync: the status file, notices to a supervisor, lines of log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from kproxy import logs
from kproxy.errors import KernelError
from kproxy.health.standing import Standings
from kproxy.proxy import NodeProxy
from kproxy.status import FileStatus, Notifier, StateDir, Status

_log = logs.get("daemon")

#: So many things that are newly left out have a line each; of more, so many are named.
MOST_LINES = 3


class Report:
    """Knows what was told before, so that each thing is told once."""

    def __init__(self, state: StateDir | None, notifier: Notifier, status: Status) -> None:
        #: None as long as a predecessor has it.
        self._state = state
        self._notifier = notifier
        self.status = status
        self._trouble = ""
        self._standings = Standings()

    def refusals(self, refusals: Iterable[str]) -> None:
        """Log what is newly left out, and what is no longer: each once. Many at a time are one line
        with the first of them; each has its own with the details, and stands in the status."""
        told = dict.fromkeys(self.status.refusals)
        current = dict.fromkeys(refusals)
        _tell(_log.warning, "left out", [line for line in current if line not in told])
        _tell(_log.info, "no longer left out", [line for line in told if line not in current])
        self.status = msgspec.structs.replace(self.status, refusals=tuple(current))

    def publish(self, proxy: NodeProxy, files: dict[str, FileStatus], *, ok: bool) -> None:
        """Write the status, then say so: who is told finds the new file."""
        assert self._state is not None
        before = self.status
        self.status = msgspec.structs.replace(
            before,
            ready=proxy.ready,
            families=proxy.statuses,
            objects=proxy.objects,
            health=self._standings.of(plan for plan, _ in proxy.plans),
            files=files if ok else before.files,
            syncs=before.syncs + 1,
            failures=before.failures + (not ok),
            last_error="" if ok else proxy.error,
        )
        self._write(self._state)
        if proxy.ready and not before.ready:
            _log.info("ready", **proxy.totals)
            self._notifier.send(READY="1")
        line = proxy.error or ", ".join(f"{value} {name}" for name, value in proxy.totals.items())
        self._notifier.send(
            STATUS=line,
            X_KPROXY_STATUS="changed",
            X_KPROXY_STATE_DIR=str(self._state.path),
        )

    def _write(self, state: StateDir) -> None:
        """A full disk is told once, and ends no node's proxy."""
        trouble = ""
        try:
            state.write(self.status)
        except KernelError as failed:
            trouble = str(failed)
            if trouble != self._trouble:
                _log.error("the status is not told", why=trouble)
        self._trouble = trouble

    def took_over(self, state: StateDir | None) -> None:
        """A predecessor has given us its directory. Its supervisor is told that we are its service
        now."""
        self._state = state
        self._notifier.send(MAINPID=str(self.status.pid))

    def stood_beside(self, seconds: float | None) -> None:
        """Another mode's rules are gone, beside which ours stood for so long."""
        self.status = msgspec.structs.replace(self.status, both=seconds)

    def stopping(self) -> None:
        self._notifier.send(STOPPING="1")


def _tell(log: Callable[..., None], message: str, lines: Sequence[str]) -> None:
    if len(lines) <= MOST_LINES:
        for line in lines:
            log(message, what=line)
        return
    more = len(lines) - MOST_LINES
    log(message, count=len(lines), what="; ".join([*lines[:MOST_LINES], f"and {more} more"]))
    for line in lines:
        _log.detail(message, what=line)
