"""Changes: what is written is what differs, the kernel takes it, and it ends as wanted."""

from __future__ import annotations

from collections import Counter

import pytest
from msgspec.structs import replace

from kproxy.backends.nftables.elements import KINDS, unpack
from kproxy.backends.nftables.held import Held, diff, settled
from kproxy.backends.nftables.render import Desired, render
from kproxy.backends.nftables.rules import ALWAYS
from kproxy.core.objects import Family
from kproxy.core.snapshot import Endpoint, EndpointSets
from tests.backends.iptables.plans import port, settings, snapshot, successor
from tests.backends.nftables.changes import Kernel, changes
from tests.contract.test_backend import apart

V4 = Family.IPV4


def served(desired: Desired) -> Counter[tuple[object, ...]]:
    """What there is, whoever has which slot; no slot is left free."""
    found: Counter[tuple[object, ...]] = Counter()
    slots: dict[tuple[object, ...], list[int]] = {}
    for name, records in desired.elements().items():
        for record in records:
            element = unpack(KINDS[name], record, desired.frame.family)
            key = element.key
            if name.endswith(("endpoints", "ids")):
                key = key[:-1]
                slots.setdefault((name, key), []).append(int(element.key[-1]))
            found[name, key, element.data] += 1
    assert all(sorted(each) == list(range(len(each))) for each in slots.values())
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", Family)
def test_changes_end_where_a_fresh_start_does(family: Family, seed: int) -> None:
    """Step by step the kernel takes what is written, holds what is wanted, and serves what a first
    sync of the same plan would have served."""
    kernel, previous = Kernel(), None
    for now in changes(family, seed, 60):
        desired = render(now, previous)
        before = Held(table=False, family=family) if previous is None else settled(previous)
        patch = diff(desired, before)
        if patch is not None:
            kernel.take(patch)
        assert kernel.held(family) == settled(desired)
        assert diff(desired, kernel.held(family)) is None
        fresh = render(now, None)
        assert served(desired) == served(fresh)
        assert desired.chains == fresh.chains
        assert (desired.own, desired.shared) == (fresh.own, fresh.shared)
        previous = desired


def pods(*numbers: int) -> EndpointSets:
    ends = tuple(Endpoint(f"10.180.1.{number}", 8080) for number in numbers)
    return EndpointSets(cluster=ends, local=None, all=ends, has_any=bool(ends))


@pytest.mark.parametrize(
    ("before", "after", "written"),
    [
        # One element goes and one comes, whoever of them it is.
        ((1, 2, 3), (2, 3, 4), 2),
        ((1, 2, 3), (1, 2, 9), 2),
        # And what leads to the chain for another number; the last one moves into the hole.
        ((1, 2, 3), (1, 2), 1 + 2),
        ((1, 2, 3), (2, 3), 3 + 2),
        ((1, 2, 3), (1, 2, 3, 4), 1 + 2),
        ((1, 2, 3), (1, 2, 3), 0),
    ],
)
def test_a_change_writes_what_it_changes(
    before: tuple[int, ...], after: tuple[int, ...], written: int
) -> None:
    """Of one of two services; no chain is made for a number of slots that cluster IPs may have."""
    plan, other = replace(port("a"), endpoints=pods(*before)), apart(9, port("b"))
    first = render(snapshot(plan, other), None)
    second = render(successor(first.snapshot, replace(plan, endpoints=pods(*after))), first)
    patch = diff(second, settled(first))
    if not written:
        assert patch is None
        return
    assert patch is not None
    sizes = [sum(map(len, sets.values())) for sets in (patch.added, patch.gone)]
    assert sum(sizes) == written
    assert (patch.chains, patch.spare) == ((), ())
    assert list(patch.names()) == [plan.name]


def test_chains_for_many_slots_come_and_go() -> None:
    """Beyond those that always stand."""
    many = replace(port("a"), endpoints=pods(*range(1, ALWAYS + 2)))
    more = {f"inside-{ALWAYS + 1}", f"pick-{ALWAYS + 1}"}
    first = render(snapshot(port("a")), None)
    second = render(successor(first.snapshot, many), first)
    patch = diff(second, settled(first))
    assert patch is not None
    assert {chain.name for chain in patch.chains} == more
    third = render(successor(second.snapshot, port("a")), second)
    patch = diff(third, settled(second))
    assert patch is not None
    assert set(patch.spare) == more


def test_what_did_not_change_is_not_made_anew() -> None:
    """Also where everything has to be looked at."""
    one, other = apart(1, port("a")), apart(2, port("b"))
    first = render(snapshot(one, other), None)
    again = render(snapshot(one, other, generation=9), first)
    assert all(again.blocks[name] is block for name, block in first.blocks.items())
    assert diff(again, settled(first)) is None


def test_rules_of_another_frame_are_written_anew() -> None:
    """Typed they may be the same: their text is not."""
    plan = port("a")
    first = render(snapshot(plan), None)
    second = render(snapshot(plan, settings_=settings(masquerade_bit=3)), first)
    patch = diff(second, settled(first))
    assert patch is not None
    assert not patch.rebuild
    assert {chain.name for chain in patch.chains} == second.chains.keys()
    assert (patch.added, patch.gone) == ({}, {})


def test_what_is_not_as_made_is_mended_or_made_anew() -> None:
    """A chain whose rules others changed is written anew; where the table is not ours any more all
    of it is, whatever is left in it."""
    desired = render(snapshot(port("a")), None)
    there = {**desired.chains, "pick-2": None}
    mended = diff(desired, Held(chains=there, elements=desired.elements()))
    assert mended is not None
    assert not mended.rebuild
    assert [chain.name for chain in mended.chains] == ["pick-2"]
    rebuilt = diff(desired, Held(table=False, chains=there, elements=desired.elements()))
    assert rebuilt is not None
    assert rebuilt.rebuild
    assert (rebuilt.added, rebuilt.gone) == (desired.listed(), {})
    assert rebuilt.chains == tuple(desired.chains.values())
