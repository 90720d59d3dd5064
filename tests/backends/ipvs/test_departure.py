"""IPVS mode gives way to another mode: what guards that time is gone afterwards, come what may."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.backends import registry
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.ipvs import departure
from kproxy.backends.ipvs.apply import IpvsBackend
from kproxy.backends.ipvs.chains import LEAVING
from kproxy.backends.ipvs.door import KernelDoor
from kproxy.backends.registry import Choice
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.core.snapshot import Snapshot
from tests.backends.iptables.plans import port, snapshot
from tests.contract.namespaces import scratch

pytestmark = pytest.mark.ipvs

LEGACY = Variant.LEGACY


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(params=Family)
def family(request: pytest.FixtureRequest) -> Family:
    made: Family = request.param
    return made


@pytest.fixture
def door(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KernelDoor]:
    monkeypatch.setenv("KPROXY_RECORDS", str(tmp_path))
    with scratch(loopback=True):
        yield KernelDoor(family, LEGACY)


def plan(family: Family) -> Snapshot:
    return snapshot(port("svc1", family, ways="c", pods=2), family=family)


def mangle(door: KernelDoor) -> str:
    """As the tool prints it, without times and counters."""
    lines = door.save().partition("*mangle")[2].partition("COMMIT")[0].splitlines()
    return "\n".join(line for line in lines if not line.startswith(":") or "KUBE" in line)


def left_in_between(door: KernelDoor, monkeypatch: pytest.MonkeyPatch) -> IpvsBackend:
    """A mode that was killed while it gave way: all that it guards with is there."""

    def killed(door: KernelDoor, family: Family) -> None:
        raise Killed

    backend = IpvsBackend(door.family, LEGACY, door=door)
    Syncer(backend).sync(plan(door.family))
    with monkeypatch.context() as patched:
        patched.setattr(departure, "_unguard", killed)
        with pytest.raises(Killed):
            backend.leave()
    assert mangle(door).count(f"-j {LEAVING}") == 2
    assert f"-A {LEAVING} -p tcp" in mangle(door)
    return backend


def test_nothing_stays_when_all_goes_well(door: KernelDoor) -> None:
    """Rules are as they were, real servers are gone."""
    backend = IpvsBackend(door.family, LEGACY, door=door)
    Syncer(backend).sync(plan(door.family))
    before = mangle(door)
    assert any(held.reals for held in door.servers().servers.values())
    backend.leave()
    assert mangle(door) == before
    assert not any(held.reals for held in door.servers().servers.values())


def test_cleanup_takes_the_guard_away(door: KernelDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that was killed in between."""
    left_in_between(door, monkeypatch).cleanup()
    assert "KUBE" not in door.save()


@pytest.mark.parametrize("mode", ["iptables", "userspace"])
def test_another_mode_sweeps_the_guard(
    door: KernelDoor, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """In the same variant, where chains of its own stay."""
    left_in_between(door, monkeypatch)
    if mode == "iptables":
        Syncer(IptablesBackend(door.family, LEGACY)).sync(plan(door.family))
    registry.sweep(Choice(mode, LEGACY), [door.family])
    assert LEAVING not in door.save()


def test_the_next_sync_takes_the_guard_away(
    door: KernelDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of this mode itself, which then stands as if nothing had been, and changes nothing more."""
    left_in_between(door, monkeypatch)
    again = IpvsBackend(door.family, LEGACY, door=door)
    syncer = Syncer(again)
    syncer.sync(plan(door.family))
    assert LEAVING not in door.save()
    assert again.read() == again.settled(syncer.desired)
