"""nftables mode on the kernel: noticed and mended, one transaction a change, listed by the tool."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import cycle

import pytest
from msgspec.structs import replace

from kproxy.backends.nftables.apply import NftablesBackend
from kproxy.backends.nftables.held import Patch
from kproxy.backends.nftables.library import Nft
from kproxy.backends.nftables.plan import CHOICE_ANNOTATION
from kproxy.backends.nftables.rules import TABLE, WORD
from kproxy.backends.nftables.script import skeleton
from kproxy.backends.nftables.watch import NftablesWatch, watch
from kproxy.backends.syncer import Syncer
from kproxy.core.objects import Family, PortName
from kproxy.core.snapshot import Snapshot
from kproxy.kernel import command
from tests.contract.test_backend import own, some, successor, whole

pytestmark = pytest.mark.kernel

#: Seconds within which the kernel's word has come.
TOLD = 20.0

#: What others do to the table, as nft reads it.
DAMAGE = {
    "table deleted": "delete table {t}",
    "everything deleted": "flush ruleset",
    "chain emptied": "flush chain {t} services",
    "rule added": "insert rule {t} leaving drop",
    "map emptied": "flush map {t} ways",
    "element added": "add element {t} cluster-ips {{ {a} }}",
    "element deleted": "delete element {t} cluster-ips {{ {vip} }}",
    "element led elsewhere": "delete element {t} ways {{ {vip} . tcp . 8000 }};"
    "add element {t} ways {{ {vip} . tcp . 8000 : drop }}",
    "chain added": "add chain {t} theirs",
    "base chain emptied": "flush chain {t} nat-prerouting",
    "base chain of theirs": "add chain {t} theirs {{ type filter hook forward priority 5; }};"
    "add rule {t} theirs drop",
    "policy changed": "add chain {t} filter-forward {{ policy drop; }}",
    "hook moved": "flush chain {t} filter-forward; delete chain {t} filter-forward;"
    "add chain {t} filter-forward {{ type filter hook forward priority 10; }};"
    "add rule {t} filter-forward ct state new goto leaving",
    "table put to sleep": "add table {t} {{ flags dormant; }}",
    "map of theirs that leads to ours": "add map {t} theirs {{ type mark : verdict; }};"
    "add element {t} theirs {{ 1 : goto services }}",
    "rule of theirs with a chain": "insert rule {t} services tcp dport 80 jump {{ drop; }}",
    "rule of theirs with a set": "add rule {t} services meta mark {{ 1, 2 }} drop",
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
    """What the watch says as soon as it has something to say."""
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
    vip = next(iter(now.ports.values())).cluster_ip
    nft(DAMAGE[name].format(t=f"{WORD[family]} {TABLE}", a=_ADDRESS[family], vip=vip))
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


def neighbours() -> None:
    """Two transactions on a table of somebody else."""
    nft("add table ip theirs; add chain ip theirs one")
    nft("delete table ip theirs")


def test_other_tables_are_no_concern(nftables: NftablesBackend, watched: NftablesWatch) -> None:
    """What others do with tables of their own is not told between syncs. During a sync it may be
    taken for a change of ours once; then syncs are listened to, and a real one is told of."""
    family, syncer = nftables.family, Syncer(nftables)
    neighbours()
    assert watched.look() == ""
    wanted = (some(family), whole(own(0, family, pods=2)), whole(own(0, family, pods=1)))
    told_of = []
    for plan in wanted:
        watched.pause()
        neighbours()
        transactions = syncer.sync(plan).transactions
        assert watched.look() == ""
        # Nobody who waits for it is kept awake.
        assert not select.select([watched.fileno()], [], [], 0)[0]
        told_of.append(bool(watched.resume(transactions)))
    assert told_of == [True, False, False]
    watched.pause()
    nft("flush", "map", WORD[family], TABLE, "ways")
    neighbours()
    assert watched.resume(0) == "3 transactions of others during a sync"
    watched.pause()
    assert watched.resume(0) == ""


def test_a_busy_neighbour_does_not_spoil_reading(nftables: NftablesBackend) -> None:
    """The kernel calls a listing torn after any transaction; it is believed when ours was not
    touched."""
    family, syncer = nftables.family, Syncer(nftables)
    many = whole(*[own(number, family, ways="c", pods=40) for number in range(60)])
    syncer.sync(many)
    ended = threading.Event()

    def busy() -> None:
        with closing(Nft()) as tool:
            while not ended.is_set():
                tool.run("add table ip theirs; delete table ip theirs\n")

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(10):
            assert nftables.read() == nftables.settled(syncer.desired)
    finally:
        ended.set()
        thread.join()


def test_a_killed_sync_is_all_or_nothing(nftables: NftablesBackend) -> None:
    """Killed anywhere in its syncs, a proxy leaves one plan or the other, and the next one goes on
    from there."""
    family = nftables.family
    shapes = ({"ways": "cn", "pods": 30}, {"ways": "cne", "pods": 2, "affinity": 60})
    plans = [whole(*[own(each, family, **shape) for each in range(40)]) for shape in shapes]
    Syncer(nftables).sync(plans[0])
    for _ in range(5):
        ready, told_ready = os.pipe()
        child = os.fork()
        if not child:
            _sync_for_ever(family, plans, told_ready)
        os.close(told_ready)
        assert os.read(ready, 1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        assert any(_stands(family, plan) for plan in plans)
    with closing(NftablesBackend(family)) as again:
        syncer = Syncer(again)
        syncer.sync(plans[1])
        assert again.read() == again.settled(syncer.desired)


def _sync_for_ever(family: Family, plans: list[Snapshot], told_ready: int) -> None:
    """In a child, until it is killed."""
    try:
        syncer = Syncer(NftablesBackend(family))
        for plan in cycle(plans):
            syncer.sync(plan)
            os.write(told_ready, b".")
    finally:
        os._exit(1)


def _stands(family: Family, plan: Snapshot) -> bool:
    """Whether a proxy that wants ``plan`` has nothing to do, whatever slots endpoints have."""
    with closing(NftablesBackend(family)) as reader:
        desired = reader.render(plan, None)
        held = reader.read()
        return reader.diff(reader.adopted(desired, held), held) is None


def test_a_table_without_elements_is_filled(nftables: NftablesBackend) -> None:
    """Table and base chains as they should be: they are taken over, and what is not there comes."""
    family, syncer = nftables.family, Syncer(nftables)
    now = some(family)
    desired = nftables.render(now, None)
    nftables.door.run(skeleton(desired.frame))
    applied = syncer.sync(now)
    assert applied.transactions == 1
    assert nftables.read() == nftables.settled(syncer.desired)


def test_services_are_elements_and_nothing_else(nftables: NftablesBackend) -> None:
    """Ten times as many of the same kinds: not a rule, chain or set more, named or not."""
    family, syncer, listings = nftables.family, Syncer(nftables), []
    for count in (4, 40):
        shapes = ({"ways": "cnel", "pods": 3}, {"ways": "cn", "pods": 2, "affinity": 60})
        plans = [own(each, family, **shapes[each % len(shapes)]) for each in range(count)]
        syncer.sync(whole(*plans))
        assert sum(map(len, nftables.read().elements.values())) > 10 * count
        listings.append(nft("--terse", "list", "ruleset"))
    assert listings[0] == listings[1]


def test_a_change_is_one_transaction(nftables: NftablesBackend) -> None:
    """Elements, chains for another count and the end of those of the old one together."""
    family, syncer = nftables.family, Syncer(nftables)
    now = whole(own(0, family, ways="cn", pods=3))
    syncer.sync(now)
    applied = syncer.sync(successor(now, own(0, family, ways="cn", pods=2)))
    assert applied.transactions == 1
    assert " node-outside-3 " not in listed(family)
    assert " node-outside-2 " in listed(family)


def test_a_new_process_adopts_the_table(nftables: NftablesBackend) -> None:
    """It writes nothing, and affinities stay."""
    family = nftables.family
    Syncer(nftables).sync(some(family))
    key = "192.0.2.1 . 0x00000001" if family is Family.IPV4 else "0x00000001"
    nft(f"add element {WORD[family]} {TABLE} affinity {{ {key} timeout 1h : 1 }}")
    with closing(NftablesBackend(family)) as again:
        assert Syncer(again).sync(some(family)).written == 0
    assert "expires" in listed(family)


def test_mending_a_rule_keeps_the_rest(nftables: NftablesBackend) -> None:
    """A rule that somebody put into a base chain goes, in one transaction, with nothing but its
    chain made anew; nobody's affinity is lost."""
    family, syncer = nftables.family, Syncer(nftables)
    syncer.sync(some(family))
    key = "192.0.2.1 . 0x00000001" if family is Family.IPV4 else "0x00000001"
    nft(f"add element {WORD[family]} {TABLE} affinity {{ {key} timeout 1h : 1 }}")
    nft(f"insert rule {WORD[family]} {TABLE} filter-forward drop")
    syncer.forget()
    applied = syncer.sync(some(family))
    assert (applied.transactions, applied.foreign) == (1, True)
    assert dict(applied.tables) == {"rules": 1}
    assert "expires" in listed(family)
    assert nftables.read() == nftables.settled(syncer.desired)


def test_a_bad_element_is_left_out(nftables: NftablesBackend) -> None:
    """Two service ports with one key: the kernel takes one of them, all others are served."""
    family, syncer = nftables.family, Syncer(nftables)
    good, bad = own(0, family, pods=2), own(1, family, pods=1)
    bad = replace(bad, port=good.port)
    applied = syncer.sync(whole(good, bad, own(2, family, ways="n", pods=3)))
    ((name, why),) = applied.refused
    assert name in (good.name, bad.name)
    assert "ways" in why or "endpoints" in why
    assert nftables.read() == nftables.settled(syncer.desired)
    # It changes, and is taken.
    mended = whole(good, replace(bad, port=9000), own(2, family, ways="n", pods=3))
    assert syncer.sync(mended).refused == ()
    assert nftables.read() == nftables.settled(syncer.desired)


def test_a_new_process_suspects_only_what_it_changes(
    nftables: NftablesBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Endpoints lie in other slots than a plan without a past would give them; nobody looks for the
    bad element among those, nor writes them."""
    family, syncer = nftables.family, Syncer(nftables)
    moved = [own(number, family, pods=3) for number in range(4)]
    rests = [replace(each.endpoints, cluster=each.endpoints.all[1:]) for each in moved]
    now = whole(*moved)
    syncer.sync(now)
    for ends in (rests, [each.endpoints for each in moved]):
        changed = [replace(each, endpoints=one) for each, one in zip(moved, ends, strict=True)]
        now = successor(now, *changed)
        syncer.sync(now)
    before = nftables.read().elements
    bad = replace(own(7, family, pods=1), port=moved[0].port)
    suspected: list[set[PortName]] = []
    with closing(NftablesBackend(family)) as again:
        touched = again.touched

        def recorded(patch: Patch) -> Iterator[PortName]:
            suspected.append(set(touched(patch)))
            yield from suspected[-1]

        monkeypatch.setattr(again, "touched", recorded)
        applied = Syncer(again).sync(whole(*moved, bad))
        assert [name for name, _ in applied.refused] == [bad.name]
        assert applied.written == 0
    assert suspected == [{bad.name}]
    assert nftables.read().elements == before


def test_what_is_served_without_its_annotation_is_told(nftables: NftablesBackend) -> None:
    """When there is nothing to write as well: by a new process, and when the annotation comes or
    goes alone."""
    family = nftables.family
    plan = own(0, family, pods=2)
    wrong = replace(plan, annotations=((CHOICE_ANNOTATION, "dice"),))
    now = whole(wrong)
    Syncer(nftables).sync(now)
    with closing(NftablesBackend(family)) as again:
        syncer = Syncer(again)
        applied = syncer.sync(now)
        assert (applied.written, [name for name, _ in applied.refused]) == (0, [plan.name])
        for each, told_of in ((plan, []), (wrong, [plan.name])):
            now = successor(now, each)
            applied = syncer.sync(now)
            assert (applied.written, [name for name, _ in applied.refused]) == (0, told_of)


def test_the_probe_leaves_nothing(nftables: NftablesBackend) -> None:
    """It is done elsewhere."""
    nftables.probe()
    assert nft("list", "ruleset") == ""
