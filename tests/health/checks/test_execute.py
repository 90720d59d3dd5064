"""Programs as checks."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from kproxy.core.health.values import Exec, Pace
from kproxy.health.checks import Outcome, probe
from kproxy.health.checks.outcome import bad, own
from tests.health.checks.places import BRIEF, PATIENT, TIMEOUT, run, target


def outcome(*command: str, pace: Pace = PATIENT) -> Outcome:
    found = []

    async def work() -> None:
        before = threading.active_count()
        found.append(await probe(target(Exec(command=command), 80, "10.0.0.1", pace)))
        # The one thread that may be new loaded the prober.
        assert threading.active_count() <= before + 1

    run(work())
    return found[0]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("true",), Outcome(True, "exit status 0")),
        (("false",), bad("exit status 1")),
        (("sh", "-c", "echo a; echo no leader >&2; exit 3"), bad('exit status 3: "no leader"')),
        (("sh", "-c", "kill -9 $$"), bad("ended by SIGKILL")),
        (("sh", "-c", "kill -60 $$"), bad("ended by signal 60")),
        (("sh", "-c", 'test -z "$HOME$USER" && read -r line'), bad("exit status 1")),
        (("sh", "-c", 'test "$KPROXY_CHECK_IP:$KPROXY_CHECK_PORT" = 10.0.0.1:80'),
         Outcome(True, "exit status 0")),
        (("echo", "; exit 1"), Outcome(True, "exit status 0")),
        (("/nonexistent/program",), own('no program "/nonexistent/program" on this node')),
        (("/etc/passwd",), own('this node may not run "/etc/passwd"')),
        (("sh", "-c", "yes | head -c 2000000; exit 1"), bad('exit status 1: "y"')),
    ],
)  # fmt: skip
def test_programs(command: tuple[str, ...], expected: Outcome) -> None:
    """Status 0 is good; the last line that a program wrote tells why it is not."""
    assert outcome(*command) == expected


def test_one_that_never_ends_is_killed_with_its_children(tmp_path: Path) -> None:
    """The whole group: a pipe that all of it held open has an end."""
    gone = tmp_path / "gone"
    os.mkfifo(gone)
    held = os.open(gone, os.O_RDONLY | os.O_NONBLOCK)
    command = f"exec 5>{gone}; sleep 1000 & sleep 1000"
    assert outcome("sh", "-c", command, pace=BRIEF) == bad("still running in 0.2s")
    os.set_blocking(held, True)
    assert os.read(held, 1) == b""
    os.close(held)


def test_what_it_leaves_behind_is_killed(tmp_path: Path) -> None:
    """A program that has ended keeps no child running, and does not wait for it."""
    gone = tmp_path / "gone"
    os.mkfifo(gone)
    held = os.open(gone, os.O_RDONLY | os.O_NONBLOCK)
    command = f"exec 5>{gone}; sleep 1000 &"
    assert outcome("sh", "-c", command) == Outcome(True, "exit status 0")
    os.set_blocking(held, True)
    assert os.read(held, 1) == b""
    os.close(held)


def test_endless_output_is_thrown_away() -> None:
    """It neither fills memory nor stops the program, which runs out of time."""
    assert outcome("yes", pace=BRIEF) == bad("still running in 0.2s")


def _zombies() -> set[str]:
    """Children of this process that have ended and were not collected."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        # A thread or a child may end while they are listed.
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in (task / "children").read_text().split():
                name, _, rest = Path(f"/proc/{child}/stat").read_text().rpartition(")")
                # Others may have left children as well, which end when they like.
                if rest.split()[0] == "Z" and name.endswith(("(true", "(sleep")):
                    found.add(child)
    return found


def test_no_descriptor_and_no_zombie_is_left() -> None:
    """Neither of programs that ended nor of those that were killed."""

    async def work() -> None:
        warm = Exec(command=("true",))
        await probe(target(warm, 80))
        before, zombies = len(os.listdir("/proc/self/fd")), _zombies()
        for command, pace in ((("true",), PATIENT), (("sleep", "1000"), BRIEF)):
            for _ in range(3):
                await probe(target(Exec(command=command), 80, pace=pace))
        async with asyncio.timeout(TIMEOUT):
            # Killed ones are collected as soon as the kernel tells.
            while len(os.listdir("/proc/self/fd")) > before:
                await asyncio.sleep(0)
        assert not _zombies() - zombies

    run(work())
