"""What others changed is told apart from what we had to change ourselves."""

from __future__ import annotations

import pytest

from kproxy.backends.fake import FakeIptables
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.host import Machine
from kproxy.backends.syncer import Syncer
from kproxy.errors import ApplyError
from tests.backends.iptables.plans import V4, port, snapshot, successor


def made() -> tuple[FakeIptables, Syncer]:  # type: ignore[type-arg]
    door = FakeIptables()
    return door, Syncer(IptablesBackend(V4, "nft", door=door, machine=Machine()))


@pytest.mark.parametrize("change", [False, True])
@pytest.mark.parametrize("damage", [False, True])
def test_damage_is_foreign_whatever_else_changes(change: bool, damage: bool) -> None:
    """Alone or together with a change of ours, a full sync knows whether somebody else wrote."""
    door, syncer = made()
    now = snapshot(port())
    assert not syncer.sync(now).foreign
    if damage:
        door.run("-F KUBE-SERVICES", table="nat")
    if change:
        now = successor(now, port(pods=3))
    syncer.forget()
    assert syncer.sync(now).foreign is damage
    syncer.forget()
    assert not syncer.sync(now).foreign


def test_after_a_failure_of_ours_nobody_else_is_blamed() -> None:
    """What the kernel holds then is not known, so nothing can be told."""
    door, syncer = made()
    syncer.sync(snapshot(port()))
    door.failures = ["Permission denied"]
    after = snapshot(port(pods=3), generation=2)
    with pytest.raises(ApplyError):
        syncer.sync(after)
    applied = syncer.sync(after)
    assert applied.written
    assert not applied.foreign


def test_a_foreign_jump_to_a_dead_chain_is_no_change_for_ever() -> None:
    """A chain that somebody else's rule keeps alive is not found again at each full sync."""
    door, syncer = made()
    now = snapshot(port("svc1"), port("svc2"))
    syncer.sync(now)
    gone = min(now.ports)
    chain = next(c for c in syncer.desired.blocks[gone].chains if c.startswith("KUBE-SVC-"))
    door.run(":MINE - [0:0]", f"-A MINE -j {chain}", table="nat")
    now = successor(now, removed=(gone,))
    syncer.sync(now)
    for _ in range(2):
        syncer.forget()
        assert not syncer.sync(now).foreign
