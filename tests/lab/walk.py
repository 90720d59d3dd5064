"""A walk: a text for people whose commands are typed by a test, and whose output is compared.

In a fenced ``console`` block a line that begins with ``$ `` is typed; lines that begin with ``> ``
go on with it; what stands below, up to the next ``$ ``, is what must come::

    ```console
    $ kproxy lab exec node1 ipvsadm -Ln
    TCP  10.96.0.80:80 rr
      -> 10.244.1.2:8080  …
    …
    ```

``…`` stands for any text within a line, a line of its own for any number of lines; how many blanks
there are does not matter. Nothing below a command: it must print nothing. A command ends with
status 0. ``console until`` is for what comes by itself: read-only commands, typed again until their
output is as written.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from kproxy.core.objects import Value

ELLIPSIS = "…"

#: Seconds for one command; booting or taking down a lab on a busy machine takes some.
PATIENCE = 90.0

#: Seconds in which what comes by itself must have come, and between two looks at it.
COMING, LOOK = 60.0, 0.1

_FENCE = "```"


class Broken(Exception):
    """The text is no walk."""


class Untrue(Exception):
    """A command did not do what the text says."""


class Step(Value, frozen=True):
    """One command: ``line`` is where it stands in the text, counted from 1."""

    line: int
    command: str
    expected: tuple[str, ...] = ()
    again: bool = False


class Section(Value, frozen=True):
    title: str
    steps: tuple[Step, ...]


class Done(Value, frozen=True):
    """A step, and what it printed: standard output and error as they came."""

    step: Step
    lines: tuple[str, ...]


# --- the text -----------------------------------------------------------------------------------


def read(text: str) -> tuple[Section, ...]:
    """The sections (``## ``) that have commands, in the order of the text."""
    sections: dict[str, list[Step]] = {}
    title = ""
    for number, info, lines in _pieces(text):
        if info is None:
            (heading,) = lines
            title = heading
        elif info in ("console", "console until"):
            steps = _steps(number, lines, again=info != "console")
            sections.setdefault(title, []).extend(steps)
        elif info != "text":
            raise Broken(f"line {number}: a block of {info or 'no kind'} is neither run nor drawn")
    return tuple(Section(title, tuple(steps)) for title, steps in sections.items())


def _pieces(text: str) -> Iterator[tuple[int, str | None, list[str]]]:
    """(line, None, [title]) for a heading, (first line within, kind, lines) for a fenced block."""
    block: list[str] | None = None
    info, begun = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith(_FENCE):
            if block is None:
                block, info, begun = [], line.removeprefix(_FENCE).strip(), number + 1
            else:
                yield begun, info, block
                block = None
        elif block is not None:
            block.append(line)
        elif line.startswith("## "):
            yield number, None, [line.removeprefix("## ")]
        elif line.startswith("    "):
            raise Broken(f"line {number}: an indented block is not run: fence it")
    if block is not None:
        raise Broken(f"line {begun}: the block has no end")


def _steps(begun: int, lines: Sequence[str], *, again: bool) -> Iterator[Step]:
    starts = [index for index, line in enumerate(lines) if line.startswith("$ ")]
    if not starts or starts[0] != 0:
        raise Broken(f"line {begun}: the block does not begin with a command")
    for start, end in zip(starts, [*starts[1:], len(lines)]):
        command, *rest = lines[start:end]
        command = command.removeprefix("$ ")
        while rest and rest[0].startswith("> "):
            command += "\n" + rest.pop(0).removeprefix("> ")
        if rest and not any(words(line) for line in rest):
            raise Broken(f"line {begun + start}: what is expected has no word in it")
        yield Step(begun + start, command, tuple(rest), again)


def words(line: str) -> list[str]:
    """What a line of output must hold, apart from what is elided."""
    return re.findall(rf"[^\s{ELLIPSIS}]+", line)


def inline(text: str) -> list[str]:
    """Code within sentences and tables: no fenced blocks, no targets of links."""
    prose = re.sub(rf"(?ms)^{_FENCE}.*?^{_FENCE}$", "", text)
    return re.findall(r"`([^`\n]+)`", prose)


# --- comparing ----------------------------------------------------------------------------------


def fits(expected: Sequence[str], lines: Sequence[str]) -> bool:
    """Whether the output is as the text says."""
    parts = [r"(?:.*\n)*" if line.strip() == ELLIPSIS else _pattern(line) for line in expected]
    output = "".join(f"{_blanks(line)}\n" for line in lines)
    return re.fullmatch("".join(parts), output) is not None


def _pattern(line: str) -> str:
    literal = (re.escape(part) for part in _blanks(line).split(ELLIPSIS))
    return r"[^\n]*".join(literal) + r"\n"


def _blanks(line: str) -> str:
    return " ".join(line.split())


def falsified(expected: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(word, the expectation with another letter or digit in it) for each word that has one."""
    for number, line in enumerate(expected):
        for match in re.finditer(rf"[^\s{ELLIPSIS}]+", line):
            word = match.group()
            place = next((i for i, letter in enumerate(word) if letter.isalnum()), None)
            if place is not None:
                other = word[:place] + _other(word[place]) + word[place + 1 :]
                changed = line[: match.start()] + other + line[match.end() :]
                yield word, (*expected[:number], changed, *expected[number + 1 :])


def _other(letter: str) -> str:
    if letter.isdigit():
        return str((int(letter) + 1) % 10)
    return "x" if letter != "x" else "y"


# --- running ------------------------------------------------------------------------------------

#: Commands come by a descriptor of their own so that no program reads them as its input, and leave
#: their status between zeros, which no output holds.
_LOOP = 'while IFS= read -r -d "" -u "$1" line; do eval "$line"; printf "\\0%s\\0" "$?"; done'


class Shell:
    """A shell in which one command after the other is typed; what they leave behind ends with it.

    Whatever runs in the background is killed at the end; the shell is a session of its own.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        reading, self._commands = os.pipe()
        self._output, writing = os.pipe()
        self._process = subprocess.Popen(
            ["bash", "-c", _LOOP, "bash", str(reading)],
            cwd=directory,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            pass_fds=(reading,),
            start_new_session=True,
        )
        os.close(reading)
        os.close(writing)
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._commands)
        os.close(self._output)

    def run(self, command: str) -> tuple[tuple[str, ...], int]:
        """The lines that a command printed, and its status."""
        os.write(self._commands, command.encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        output, status = self._until_zero(deadline), self._until_zero(deadline)
        return tuple(output.decode().splitlines()), int(status)

    def _until_zero(self, deadline: float) -> bytes:
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._output], [], [], left)[0]:
                raise TimeoutError(self._buffer.decode(errors="replace"))
            data = os.read(self._output, 65536)
            if not data:
                raise EOFError("the shell has ended")
            self._buffer += data
        found, _, self._buffer = self._buffer.partition(b"\0")
        return found


def walk(steps: Sequence[Step], shell: Shell) -> Iterator[Done]:
    """Type one command after the other. Untrue, with the line of the text, when one does something
    else than is written."""
    for step in steps:
        yield _do(step, shell)


def _do(step: Step, shell: Shell) -> Done:
    deadline = time.monotonic() + COMING
    while True:
        try:
            lines, status = shell.run(step.command)
        except TimeoutError as late:
            raise Untrue(
                _told(step, f"no end within {PATIENCE} s", str(late).splitlines())
            ) from late
        if status == 0 and fits(step.expected, lines):
            return Done(step, lines)
        if not step.again or time.monotonic() > deadline:
            raise Untrue(_told(step, f"status {status}", lines))
        select.select([], [], [], LOOK)


def _told(step: Step, how: str, lines: Sequence[str]) -> str:
    parts = [f"line {step.line}: $ {step.command}", f"{how}; written:"]
    parts += [f"    {line}" for line in step.expected or ("(nothing)",)]
    parts += ["printed:", *(f"    {line}" for line in lines or ("(nothing)",))]
    return "\n".join(parts)
