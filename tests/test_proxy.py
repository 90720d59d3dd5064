"""One family's syncs against the in-memory kernel: what their records say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from kproxy.backends.fake import FakeIptables
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.host import Machine
from kproxy.core.events import Delta, Ref
from kproxy.core.objects import Family
from kproxy.core.tracker import Tracker
from kproxy.errors import CommandError, KernelError
from kproxy.family import TEND_RETRY, FamilyProxy, SyncRecord
from tests.factories import make_service, make_settings, make_slice

START = 1000.0


class Door(FakeIptables):
    """Refuses every restore while ``broken``."""

    broken = False

    def restore(self, chunks: Iterable[bytes]) -> None:
        if self.broken:
            raise CommandError(["iptables-restore"], 4, "out of luck")
        super().restore(chunks)


class World:
    """A tracker, one family, and its kernel."""

    def __init__(self) -> None:
        self.tracker = Tracker()
        self.door = Door()
        backend = IptablesBackend(Family.IPV4, "nft", door=self.door, machine=Machine())
        self.family = FamilyProxy(Family.IPV4, backend)

    def change(self, *objects: Any, deleted: tuple[Ref, ...] = ()) -> None:
        delta = Delta(upserted=objects, deleted=deleted)
        self.family.note_triggers(self.tracker, delta, START)
        self.tracker.apply(delta)

    def sync(self, *, full: bool = False) -> SyncRecord:
        # Rules only: tracked flows are the kernel's own, and this test has none.
        changes = self.tracker.take()
        return self.family._sync_rules(self.tracker, make_settings(), changes, full, ())


@pytest.fixture
def world() -> World:
    made = World()
    made.change(make_service(), make_slice("10.180.0.1"))
    made.sync(full=True)
    return made


def piece(address: str, trigger: float, **fields: Any) -> Any:
    made = make_slice(address, **fields)
    return type(made)(
        made.namespace, made.name, made.service, made.family, made.ports, made.endpoints, trigger
    )


def ages(made: SyncRecord) -> list[float]:
    """When the changes that were acknowledged happened."""
    return [round(made.at - latency, 3) for latency in made.latencies]


def test_a_change_is_timed_to_the_acknowledgement(world: World) -> None:
    """Once for each changed slice, by its annotation; the next sync does not count it again."""
    world.change(piece("10.180.0.2", START + 1), piece("10.180.0.3", START + 2, name="other"))
    made = world.sync()
    assert (made.ok, made.full, sorted(ages(made))) == (True, False, [START + 1, START + 2])
    assert world.sync().latencies == ()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([(piece("10.180.0.2", START - 1),)], id="older than the process"),
        pytest.param([(piece("10.180.0.2", 0.0),)], id="no annotation"),
        pytest.param([(piece("fd00:10::1", START + 1),)], id="of the other family"),
    ],
)
def test_what_is_not_timed(world: World, changes: list[tuple[Any, ...]]) -> None:
    """Changes that this family and process could not have been late with."""
    for objects in changes:
        world.change(*objects)
    assert world.sync().latencies == ()


def test_a_deleted_slice_is_not_timed(world: World) -> None:
    """Its change never was acknowledged as such; a Service of the same name takes nothing away."""
    changed = piece("10.180.0.2", START + 1)
    world.change(changed)
    world.change(deleted=(Ref("Service", changed.key),))
    assert ages(world.sync()) == [START + 1]
    world.change(piece("10.180.0.3", START + 2))
    world.change(deleted=(Ref("EndpointSlice", changed.key),))
    assert world.sync().latencies == ()


def test_the_clock_runs_while_syncs_fail(world: World) -> None:
    """A refused sync acknowledges nothing; the good one counts from the oldest change."""
    world.door.broken = True
    world.change(piece("10.180.0.2", START + 1))
    failed = world.sync()
    assert (failed.ok, failed.refused, failed.full, failed.latencies) == (False, True, False, ())
    world.change(piece("10.180.0.3", START + 2))
    again = world.sync()
    assert (again.ok, again.refused, again.full) == (False, True, True)
    world.door.broken = False
    assert ages(world.sync()) == [START + 1]


def test_written_rules_are_told_by_table(world: World) -> None:
    """One changed endpoint: its chain and the choice, in nat; nothing in filter."""
    world.change(piece("10.180.0.2", 0.0))
    assert dict(world.sync().tables).keys() == {"nat"}
    assert dict(world.sync(full=True).tables) == {}


def test_foreign_changes_are_told_apart(world: World) -> None:
    """A periodic full sync that mends rules; no sync that brings changes or follows a failure."""
    assert not world.sync(full=True).foreign
    world.door.run("-F KUBE-SERVICES", table="nat")
    assert world.sync(full=True).foreign
    assert not world.sync(full=True).foreign
    world.change(piece("10.180.0.2", 0.0))
    assert not world.sync(full=True).foreign
    world.door.broken = True
    world.change(piece("10.180.0.3", 0.0))
    assert not world.sync().foreign
    world.door.broken = False
    assert not world.sync().foreign


class Tender(IptablesBackend):
    """An iptables backend with something to finish: ``answers`` are what it says, in turn."""

    def __init__(self, door: Door) -> None:
        super().__init__(Family.IPV4, "nft", door=door, machine=Machine())
        self.answers: list[float | Exception | None] = []

    def tend(self) -> float | None:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("answer", "delay"),
    [
        pytest.param(None, None, id="nothing waits"),
        pytest.param(1.5, 1.5, id="it wants to be called again"),
        pytest.param(KernelError("no"), TEND_RETRY, id="refused"),
        pytest.param(ValueError("a fault of ours"), TEND_RETRY, id="broken"),
    ],
)
def test_what_a_mode_finishes_between_syncs(
    world: World, answer: float | Exception | None, delay: float | None
) -> None:
    """The mode says when it wants to be called again; whatever goes wrong is tried again."""
    backend = Tender(world.door)
    family = FamilyProxy(Family.IPV4, backend)
    backend.answers = [answer, None]
    family.tend()
    assert family.tend_delay == delay
    family.tend()
    assert (family.tend_delay, backend.answers) == (None, [])


def test_a_mode_that_finishes_all_in_its_syncs(world: World) -> None:
    """It is never called, and nothing waits."""
    world.family.tend()
    assert world.family.tend_delay is None
