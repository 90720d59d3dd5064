"""A command in user-mode Linux that another process looks after, while this one does its own work.

For callers that fork: a thread of theirs (:mod:`.beside`) would be copied half-way.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from typing import Self

from kproxy.errors import LabError
from kproxy.kernel import command


class Apart:
    """Runs a command from ``with`` on; leaving the block ends it, as our own end does."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = argv

    def __enter__(self) -> Self:
        # Files: nobody reads while it runs, and a pipe that is full would stop it.
        self._out, self._errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [
                *(command.require("setpriv"), "--pdeathsig", "TERM"),
                *(sys.executable, "-P", "-m", "kproxy.lab.uml", *self._argv),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._errors,
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._out.close()
        self._errors.close()

    def output(self, fine: Iterable[int] = (0,)) -> bytes:
        """What it wrote, when it has ended; LabError in its words for a status not ``fine``."""
        status = self._process.wait()
        self._out.seek(0)
        self._errors.seek(0)
        if status not in fine:
            words = self._errors.read().decode(errors="replace").strip().splitlines()
            said = words[-1].removeprefix("kproxy: ") if words else f"it ended with status {status}"
            raise LabError(f"in user-mode Linux: {said}")
        return self._out.read()
