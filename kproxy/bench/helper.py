"""Processes in namespaces that do as they are told: one JSON object a line, both ways.

:class:`Helper` is the near end, :func:`obey` the loop of the far one. A helper ends when its
standard input does, so none outlives who started it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import msgspec

from kproxy.errors import CheckFailed
from kproxy.kernel.netns import entered
from kproxy.kernel.process import raise_open_files

#: Of the tree: what `python -m` may be told to run is below it.
ROOT = Path(__file__).resolve().parents[2]

#: Seconds that a helper gets to end by itself.
_GRACE = 2.0


class Helper:
    """Starts ``python -m module`` in ``namespace`` (descriptor), asks it, ends it.

    CheckFailed: it answered with an error, or is gone.
    """

    def __init__(self, namespace: int, module: str) -> None:
        self._module = module
        with entered(namespace):
            self._process = subprocess.Popen(
                [sys.executable, "-m", module],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Ctrl-C is for who started it, and ends it.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, **question: object) -> Any:
        """Tell, and wait for the answer."""
        self.tell(**question)
        return self.answer()

    def tell(self, **question: object) -> None:
        """``do`` names the order, the others are its arguments."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(question) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def answer(self) -> Any:
        """The answer to the oldest question that has none yet."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._gone()
        answer = msgspec.json.decode(line)
        if "error" in answer:
            raise CheckFailed(answer["error"], where=self._module)
        return answer["answer"]

    def _gone(self) -> CheckFailed:
        status = self._process.wait()
        return CheckFailed(
            f"ended with status {status}", where=self._module, hint="its words are above"
        )

    def close(self) -> None:
        """End it: by itself, or at once when it is in the middle of something."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def obey(orders: Mapping[str, Callable[..., object]]) -> None:
    """Carry out orders until standard input ends; what they raise is their answer."""
    raise_open_files()
    for line in sys.stdin.buffer:
        order = msgspec.json.decode(line)
        try:
            said: dict[str, object] = {"answer": orders[order.pop("do")](**order)}
        except (OSError, ValueError, LookupError) as error:
            said = {"error": str(error)}
        try:
            sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            # Who asked is gone. What is left in the buffer is for nobody.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
