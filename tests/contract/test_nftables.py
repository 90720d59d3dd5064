"""nftables mode on the kernel: noticed and mended, one transaction a change, listed by the tool."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import closing

import pytest
from msgspec.structs import replace

from kproxy.backends.nftables import sweep
from kproxy.backends.nftables.apply import NftablesBackend
from kproxy.backends.nftables.rules import TABLE, WORD
from kproxy.backends.nftables.watch import NftablesWatch, watch
from kproxy.backends.syncer import Syncer
from kproxy.core.objects import Family
from kproxy.kernel import command
from tests.contract.test_backend import own, some, successor, whole

pytestmark = pytest.mark.kernel

#: Seconds within which the kernel's word has come.
TOLD = 1.0

#: What others do to the table, as nft reads it.
DAMAGE = {
    "table deleted": "delete table {t}",
    "everything deleted": "flush ruleset",
    "chain emptied": "flush chain {t} services",
    "rule added": "insert rule {t} leaving drop",
    "map emptied": "flush map {t} ways",
    "element added": "add element {t} cluster-ips {{ {a} }}",
    "chain added": "add chain {t} theirs",
    "base chain emptied": "flush chain {t} nat-prerouting",
}
_ADDRESS = {Family.IPV4: "10.9.9.9", Family.IPV6: "fd00:9::9"}


def nft(*words: str) -> str:
    return command.run(["nft", *words]).stdout.decode()


def listed(family: Family) -> str:
    return nft("list", "table", WORD[family], TABLE)


@pytest.fixture
def watched(nftables: NftablesBackend) -> Iterator[NftablesWatch]:
    with closing(watch([nftables.family])) as made:
        yield made


def told(made: NftablesWatch) -> str:
    """What the watch says within a second."""
    while select.select([made.fileno()], [], [], TOLD)[0]:
        if said := made.look():
            return said
    return ""


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_told_and_mended(
    nftables: NftablesBackend, watched: NftablesWatch, name: str
) -> None:
    """Each change by others is noticed, and the next sync that reads leaves nothing of it."""
    family, syncer = nftables.family, Syncer(nftables)
    now = some(family)
    watched.pause()
    assert watched.resume(syncer.sync(now).transactions) == ""
    before = listed(family)
    nft(DAMAGE[name].format(t=f"{WORD[family]} {TABLE}", a=_ADDRESS[family]))
    assert told(watched)
    syncer.forget()
    assert syncer.sync(now).foreign
    assert nftables.read() == nftables.settled(syncer.desired)
    assert sorted(listed(family).split()) == sorted(before.split())


def test_own_syncs_are_not_told(nftables: NftablesBackend, watched: NftablesWatch) -> None:
    """What we write ourselves is nobody else's doing, new counts of endpoints neither."""
    syncer, now = Syncer(nftables), some(nftables.family)
    for plan in (now, successor(now, own(0, nftables.family, ways="cn", pods=2))):
        watched.pause()
        assert watched.resume(syncer.sync(plan).transactions) == ""
    assert watched.look() == ""


def test_a_change_is_one_transaction(nftables: NftablesBackend) -> None:
    """Elements, chains for another count and the end of those of the old one together."""
    family, syncer = nftables.family, Syncer(nftables)
    now = whole(own(0, family, ways="c", pods=3))
    syncer.sync(now)
    applied = syncer.sync(successor(now, own(0, family, ways="c", pods=2)))
    assert applied.transactions == 1
    assert " inside-3 " not in listed(family)


def test_a_new_process_adopts_the_table(nftables: NftablesBackend) -> None:
    """It writes nothing, and affinities stay."""
    family = nftables.family
    Syncer(nftables).sync(some(family))
    key = "192.0.2.1 . 0x00000001" if family is Family.IPV4 else "0x00000001"
    nft(f"add element {WORD[family]} {TABLE} affinity {{ {key} timeout 1h : 1 }}")
    with closing(NftablesBackend(family)) as again:
        assert Syncer(again).sync(some(family)).written == 0
    assert "expires" in listed(family)


def test_a_bad_element_is_left_out(nftables: NftablesBackend) -> None:
    """Two service ports with one key: the kernel takes one of them, all others are served."""
    family, syncer = nftables.family, Syncer(nftables)
    good, bad = own(0, family, pods=2), own(1, family, pods=1)
    bad = replace(bad, port=good.port)
    applied = syncer.sync(whole(good, bad, own(2, family, ways="n", pods=3)))
    assert len(applied.refused) == 1
    assert applied.refused[0][0] in (good.name, bad.name)
    assert nftables.read() == nftables.settled(syncer.desired)


def test_cleanup_and_sweep_leave_others_alone(nftables: NftablesBackend) -> None:
    """Nothing of ours is left, and all of theirs."""
    family = nftables.family
    nft("add", "table", WORD[family], "theirs")
    before = nft("list", "ruleset")
    Syncer(nftables).sync(some(family))
    nftables.cleanup()
    assert nft("list", "ruleset") == before
    assert not sweep.sweep(family)
    Syncer(nftables).sync(some(family))
    nft(f"add table {WORD[family]} kube-proxy")
    nft(f"add chain {WORD[family]} kube-proxy services")
    assert sweep.sweep(family)
    assert nft("list", "ruleset") == before


def test_the_probe_leaves_nothing(nftables: NftablesBackend) -> None:
    """It is done elsewhere."""
    nftables.probe()
    assert nft("list", "ruleset") == ""
