"""One service port that the kernel refuses: left out, reported, tried again; all others serve."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from kproxy.backends.iptables import chains
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.syncer import LONGEST_WAIT, Syncer
from kproxy.backends.xtables.door import Door
from kproxy.backends.xtables.rules import Table
from kproxy.core.objects import Family, PortName
from kproxy.core.snapshot import PortPlan, Snapshot
from kproxy.errors import ApplyError, CommandError
from tests.backends.iptables.plans import port, snapshot, successor

COUNT = 20


def plan(number: int, family: Family, **shape: Any) -> PortPlan:
    return port(f"svc{number:02}", family, number=8000 + number, **shape)


def some(family: Family) -> Snapshot:
    plans = [plan(number, family, ways="cn", pods=2) for number in range(COUNT)]
    return snapshot(*plans, family=family)


def chain_of(name: PortName) -> str:
    return chains.CLUSTER + chains.port_hash(name)


class Poison:
    """Stands in a door: spoils the text of some service ports with ``row``, a rule that the real
    tools refuse, and counts the calls."""

    def __init__(self, door: Door, names: Iterable[PortName], row: str) -> None:
        self.rows = {f":{chain_of(name)} ": (chain_of(name), row) for name in names}
        self.calls = 0
        self._restore = door.restore
        door.restore = self.restore  # type: ignore[method-assign]

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.calls += 1
        text = b"".join(chunks).decode()
        for mark, (chain, row) in self.rows.items():
            if mark in text:
                text = text.replace(f"-A {chain} ", f"-A {chain} {row}\n-A {chain} ", 1)
        self._restore([text.encode()])

    def cure(self) -> None:
        self.rows = {}


#: What the tools refuse while they read: they name the line. The row stands where the first rule of
#: the chain does, so the line that is named is that service port's.
NAMED = "--nope 1 -j RETURN"


def in_force(syncer: Syncer[Any, Any, Any], out: Iterable[PortName]) -> None:
    """The kernel holds everything but ``out``, and nothing of these."""
    backend = syncer.backend
    held = backend.read()
    assert held == backend.settled(syncer.desired)
    assert set(syncer.desired.blocks) == {plan_.name for plan_ in all_plans} - set(out)
    for name in out:
        assert chain_of(name) not in held.tables[Table.NAT]
        assert str(name) not in held.tables[Table.NAT][chains.SERVICES]


all_plans: list[PortPlan] = []


@pytest.fixture
def cluster(backend: IptablesBackend) -> Snapshot:
    whole = some(backend.family)
    all_plans[:] = whole.ports.values()
    return whole


@pytest.mark.parametrize("bad", [(0,), (7,), (COUNT - 1,), (3, 4, 15)])
def test_all_others_are_applied(
    backend: IptablesBackend, cluster: Snapshot, bad: tuple[int, ...]
) -> None:
    """A first sync: whoever is refused is left out and named with the reason."""
    names = [plan(number, backend.family).name for number in bad]
    Poison(backend.door, names, NAMED)
    syncer = Syncer(backend)
    applied = syncer.sync(cluster)
    assert [name for name, _ in applied.refused] == sorted(names)
    assert all("nope" in why for _, why in applied.refused)
    assert applied.transactions is None
    in_force(syncer, names)


@pytest.mark.parametrize("bad", [2, COUNT - 2])
def test_a_refusal_without_a_line_is_halved(
    backend: IptablesBackend, cluster: Snapshot, bad: int
) -> None:
    """The refusal names no member: the search finds it, in a logarithm of tries."""
    name = plan(bad, backend.family).name
    restore, calls = backend.door.restore, 0

    def refusing(chunks: Iterable[bytes]) -> None:
        nonlocal calls
        calls += 1
        text = b"".join(chunks)
        if f":{chain_of(name)} ".encode() in text:
            raise CommandError(["restore"], 1, "COMMIT failed")
        restore([text])

    backend.door.restore = refusing  # type: ignore[method-assign]
    syncer = Syncer(backend)
    assert [one for one, _ in syncer.sync(cluster).refused] == [name]
    assert calls <= 1 + 5 + 3
    in_force(syncer, [name])


def test_the_kernels_own_refusal_is_halved(backend: IptablesBackend, cluster: Snapshot) -> None:
    """MASQUERADE where PREROUTING comes along: the tools take it, the kernel does not, and says so
    of the whole table or of a base chain."""
    name = plan(5, backend.family).name
    # Only the real kernel looks at hooks.
    row = NAMED if hasattr(backend.door, "tables") else "-j MASQUERADE"
    Poison(backend.door, [name], row)
    syncer = Syncer(backend)
    assert [one for one, _ in syncer.sync(cluster).refused] == [name]
    in_force(syncer, [name])


def test_a_partial_sync_isolates_as_well(backend: IptablesBackend, cluster: Snapshot) -> None:
    """A change of three service ports, one of them refused: the two others are as wanted, the
    refused one serves no longer."""
    syncer = Syncer(backend)
    syncer.sync(cluster)
    changes = [plan(number, backend.family, ways="cn", pods=3) for number in (1, 2, 3)]
    after = successor(cluster, *changes)
    all_plans[:] = after.ports.values()
    Poison(backend.door, [changes[1].name], NAMED)
    assert [name for name, _ in syncer.sync(after).refused] == [changes[1].name]
    in_force(syncer, [changes[1].name])


def change(now: Snapshot, family: Family, bad: int, pods: int) -> Snapshot:
    return successor(now, plan(bad, family, ways="cn", pods=pods))


def gone(now: Snapshot, family: Family, bad: int, pods: int) -> Snapshot:
    return successor(now, removed=(plan(bad, family).name,))


@pytest.mark.parametrize("step", [change, gone])
def test_a_change_tries_again_at_once(
    backend: IptablesBackend,
    cluster: Snapshot,
    step: Callable[[Snapshot, Family, int, int], Snapshot],
) -> None:
    """Nothing is tried while nothing changes; a new plan, or none, ends the matter."""
    name = plan(4, backend.family).name
    poison = Poison(backend.door, [name], NAMED)
    syncer = Syncer(backend)
    syncer.sync(cluster)
    calls = poison.calls
    other = successor(cluster, plan(9, backend.family, ways="cn", pods=1))
    assert [one for one, _ in syncer.sync(other).refused] == [name]
    assert poison.calls == calls + 1
    poison.cure()
    after = step(other, backend.family, 4, 1)
    all_plans[:] = after.ports.values()
    assert syncer.sync(after).refused == ()
    in_force(syncer, [])


def test_full_syncs_try_again_ever_more_rarely(backend: IptablesBackend, cluster: Snapshot) -> None:
    """After 1, 2, 4 … full syncs, never more than LONGEST_WAIT; once cured, it serves again."""
    name = plan(4, backend.family).name
    poison = Poison(backend.door, [name], NAMED)
    syncer = Syncer(backend)
    syncer.sync(cluster)
    tried = []
    for number in range(1, 4 * LONGEST_WAIT):
        calls = poison.calls
        syncer.forget()
        assert [one for one, _ in syncer.sync(cluster).refused] == [name]
        if poison.calls > calls:
            tried.append(number)
    gaps = [later - sooner for sooner, later in zip([0, *tried], tried, strict=False)]
    assert gaps[:6] == [1, 2, 4, 8, 16, 16]
    poison.cure()
    for _ in range(LONGEST_WAIT):
        syncer.forget()
        applied = syncer.sync(cluster)
    assert applied.refused == ()
    in_force(syncer, [])


@pytest.mark.parametrize(
    "words",
    [
        "Another app is currently holding the xtables lock. Stopped waiting after 5s.",
        "Could not fetch rule set generation id: Permission denied (you must be root)",
        "iptables-restore: unable to initialize table 'nat' Error occurred at line: 1",
        "line 8: RULE_APPEND failed (Cannot allocate memory): rule in chain A",
    ],
)
def test_the_surroundings_fault_is_nobodys(
    backend: IptablesBackend, cluster: Snapshot, words: str
) -> None:
    """A lock, a right, memory: nobody is blamed, one call is made, and the next sync does all."""
    restore, calls = backend.door.restore, 0

    def failing(chunks: Iterable[bytes]) -> None:
        nonlocal calls
        calls += 1
        for _ in chunks:
            pass
        raise CommandError(["restore"], 4, words)

    backend.door.restore = failing  # type: ignore[method-assign]
    syncer = Syncer(backend)
    with pytest.raises(ApplyError):
        syncer.sync(cluster)
    assert calls == 1
    backend.door.restore = restore  # type: ignore[method-assign]
    assert syncer.sync(cluster).refused == ()
    in_force(syncer, [])
