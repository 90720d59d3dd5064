"""The lock of the legacy tools held by others, and tools that are missing for a while."""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables import door as doors
from kproxy.backends.xtables.door import ToolDoor
from kproxy.backends.xtables.variant import Variant
from kproxy.errors import ApplyError, MachineError
from kproxy.kernel import netns
from kproxy.kernel.xtables import lock_file, lock_holder
from tests.backends.iptables.plans import V4, port, snapshot
from tests.contract.namespaces import scratch

pytestmark = pytest.mark.kernel


@pytest.fixture
def syncer(tmp_path: Path) -> Iterator[Syncer]:  # type: ignore[type-arg]
    with scratch():
        made = ToolDoor(V4, Variant.LEGACY, records=tmp_path / "records")
        yield Syncer(IptablesBackend(V4, Variant.LEGACY, door=made))


@contextmanager
def held() -> Iterator[None]:
    """The lock, held by this process."""
    descriptor = os.open(lock_file(), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def waiters() -> int:
    """Processes that the kernel lists as waiting for the lock."""
    inode = lock_file().stat().st_ino
    return sum(
        f":{inode} " in row and "->" in row for row in Path("/proc/locks").read_text().splitlines()
    )


def test_a_held_lock_is_waited_for(syncer: Syncer) -> None:  # type: ignore[type-arg]
    """The tool waits; when the lock is free the same sync is done, without a failure."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    done: list[object] = []

    def work() -> None:
        netns.enter(here)
        done.append(syncer.sync(snapshot(port())).written)

    worker = threading.Thread(target=work)
    try:
        with held():
            worker.start()
            while not waiters():
                assert worker.is_alive()
                os.sched_yield()
            assert done == []
    finally:
        worker.join()
        os.close(here)
    assert done
    assert done[0]


def test_a_lock_that_stays_held_is_reported_with_its_holder(
    syncer: Syncer,  # type: ignore[type-arg]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the wait the error names who holds it; the kernel is as it was, and the next sync
    does it all."""
    monkeypatch.setattr(doors, "_LOCK_WAIT", "1")
    with held():
        with pytest.raises(ApplyError, match=rf"process {os.getpid()} \(.+\).*tried again"):
            syncer.sync(snapshot(port()))
        assert lock_holder().startswith(f"process {os.getpid()} ")
    assert lock_holder() == ""
    assert syncer.sync(snapshot(port())).refused == ()
    assert syncer.backend.read() == syncer.backend.settled(syncer.desired)


def test_the_lock_of_a_real_tool_is_seen(syncer: Syncer) -> None:  # type: ignore[type-arg]
    """A restore that waits for its input holds the lock."""
    process = subprocess.Popen(["iptables-legacy-restore", "--noflush"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    try:
        process.stdin.write(b"*nat\n")
        process.stdin.flush()
        while not lock_holder():
            assert process.poll() is None
            os.sched_yield()
        assert lock_holder().startswith(f"process {process.pid} (")
    finally:
        process.kill()
        process.wait()
        process.stdin.close()


def test_a_missing_tool_is_named_and_may_come_back(
    syncer: Syncer,  # type: ignore[type-arg]
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """While the tool is away every sync says how to get it; when it is back the next one works."""
    from kproxy.kernel import command

    syncer.sync(snapshot(port()))
    with monkeypatch.context() as away:
        away.setenv("PATH", str(tmp_path))
        away.setattr(command, "ADMIN_PATH", str(tmp_path))
        for _ in range(2):
            with pytest.raises(MachineError, match="apt-get install iptables"):
                syncer.sync(snapshot(port(pods=3)))
            assert syncer.reads
    assert syncer.sync(snapshot(port(pods=3))).full
    assert syncer.backend.read() == syncer.backend.settled(syncer.desired)
