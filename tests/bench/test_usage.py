"""What processes use, asked of real ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from kproxy.bench import usage
from kproxy.errors import CheckFailed


@pytest.fixture(params=["sys.stdin.read()", "while True: pass"])
def process(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """One that waits, one that never does: from now on, while its start may wait for a disk."""
    code = f"import sys\nprint('begun', flush=True)\n{request.param}"
    made = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert made.stdout is not None
    assert made.stdout.readline() == b"begun\n"
    yield made
    made.kill()
    made.communicate()


def test_who_is_calm(process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who only waits comes to rest; who works does not, and is called by name."""
    if "while" in process.args[2]:
        monkeypatch.setattr(usage, "_PATIENCE", 0.5)
        with pytest.raises(CheckFailed, match="the worker does not come to rest"):
            usage.await_calm([process.pid], "the worker")
    else:
        usage.await_calm([process.pid], "the waiter")


def test_nobody_is_calm() -> None:
    """Where the kernel does the work there is no process to wait for."""
    usage.await_calm([], "the kernel")


def test_the_kernels_own_memory() -> None:
    """Every machine has some, and all that is mapped by vmalloc is in it."""
    with open("/proc/meminfo") as lines:
        mapped = next(int(line.split()[1]) for line in lines if line.startswith("VmallocUsed:"))
    assert usage.kernel_memory() > 1024 * mapped / 2 > 0
