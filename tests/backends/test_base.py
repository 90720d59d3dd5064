"""The Syncer: renders, compares, applies; after a failure it reads."""

from __future__ import annotations

import pytest

from kproxy.backends.base import Applied
from kproxy.backends.syncer import Syncer
from kproxy.core.objects import Family
from kproxy.core.snapshot import NodeSettings, Snapshot
from kproxy.errors import ApplyError


class Numbers:
    """A mode whose rules are one number, the generation of the Snapshot."""

    mode = "numbers"
    family = Family.IPV4

    def __init__(self) -> None:
        self.kernel = 0
        self.refuse = 0
        self.log: list[str] = []

    def probe(self) -> None:
        pass

    def render(self, snapshot: Snapshot, previous: int | None) -> int:
        self.log.append(f"render after {previous}")
        return snapshot.generation

    def read(self) -> int:
        self.log.append("read")
        return self.kernel

    def settled(self, desired: int) -> int:
        return desired

    def diff(self, desired: int, actual: int) -> int | None:
        return desired - actual or None

    def apply(self, patch: int) -> Applied:
        self.log.append(f"apply {patch}")
        if self.refuse:
            self.refuse -= 1
            raise ApplyError("refused")
        self.kernel += patch
        return Applied(full=False, written=patch)

    def cleanup(self) -> None:
        self.kernel = 0


def snapshot(generation: int) -> Snapshot:
    return Snapshot(Family.IPV4, NodeSettings("node1"), {}, generation=generation)


def test_first_sync_reads_and_later_ones_do_not() -> None:
    """What was applied is believed; the kernel is read at the start only."""
    backend = Numbers()
    syncer = Syncer(backend)
    assert syncer.sync(snapshot(3)) == Applied(full=True, written=3)
    assert syncer.sync(snapshot(5)) == Applied(full=False, written=2)
    assert backend.log == ["render after None", "read", "apply 3", "render after 3", "apply 2"]


def test_nothing_to_do_applies_nothing() -> None:
    """No patch, no call; the result says whether the kernel was read."""
    backend = Numbers()
    syncer = Syncer(backend)
    syncer.sync(snapshot(3))
    backend.log.clear()
    assert syncer.sync(snapshot(3)) == Applied(full=False)
    syncer.forget()
    assert syncer.sync(snapshot(3)) == Applied(full=True)
    assert [entry for entry in backend.log if entry.startswith("apply")] == []


def test_forgetting_finds_what_others_changed() -> None:
    """After forget the difference to the real kernel is applied."""
    backend = Numbers()
    syncer = Syncer(backend)
    syncer.sync(snapshot(3))
    backend.kernel = 100
    assert syncer.sync(snapshot(3)).written == 0
    syncer.forget()
    syncer.sync(snapshot(3))
    assert backend.kernel == 3


def test_after_a_refusal_the_kernel_is_read() -> None:
    """A failed apply leaves nothing believed, however often it fails; then all is set right."""
    backend = Numbers()
    syncer = Syncer(backend)
    syncer.sync(snapshot(3))
    backend.refuse = 2
    for _ in range(2):
        with pytest.raises(ApplyError):
            syncer.sync(snapshot(5))
    backend.kernel = 4
    assert syncer.sync(snapshot(5)) == Applied(full=True, written=1)
    assert syncer.desired == backend.kernel == 5
