"""A cluster that changes at random leaves nothing behind; bench_ipvs.py makes 10,000 changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.churn import Churn
from kproxy.backends.ipvs.apply import IpvsBackend
from kproxy.backends.ipvs.door import KernelDoor
from kproxy.backends.ipvs.host import Machine
from kproxy.backends.ipvs.sets import kinds
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.kernel import command, netns

CHANGES = 300


@pytest.mark.ipvs
@pytest.mark.parametrize("seed", [1, 2])
def test_after_random_changes_the_kernel_holds_what_a_fresh_start_would_make(
    tmp_path: Path, seed: int
) -> None:
    """No destination, address or member is left over or missing, and no server differs."""
    history = Churn(40, seed)
    with netns.fresh():
        command.run(["ip", "link", "set", "lo", "up"])
        door = KernelDoor(Family.IPV4, Variant.LEGACY, records=tmp_path)
        backend = IpvsBackend(Family.IPV4, Variant.LEGACY, door=door, machine=Machine())
        syncer = Syncer(backend)
        syncer.sync(history.snapshot)
        for _ in range(CHANGES):
            syncer.sync(history.step())
            backend.tend()
        # There were no connections: whatever was let go is gone by now.
        assert backend.tend() is None
        desired = IpvsBackend(Family.IPV4, Variant.LEGACY, machine=Machine()).render(
            history.afresh(), None
        )
        assert backend.diff(desired, backend.read()) is None
        reals = {key: set(server.reals) for key, server in door.servers().servers.items()}
        assert reals == {key: set(one.reals) for key, (one, _) in desired.servers.items()}
        held = door.read_sets(kinds(Family.IPV4))
        assert sum(len(members or ()) for members in held.values()) == len(desired.members.all)
        assert door.addresses() == desired.addresses.all
