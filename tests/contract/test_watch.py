"""Foreign changes are noticed, our own are not: on the kernel, by other programs' real commands."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from kproxy.backends.base import Scope, Watch
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.layout import LAYOUT
from kproxy.backends.iptables.watch import watch
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables.door import ToolDoor, tool
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.variant import Variant
from kproxy.backends.xtables.watch import concern
from kproxy.core.objects import Family
from kproxy.core.snapshot import Snapshot
from kproxy.kernel import command
from kproxy.kernel.nftables import Event, Kind
from kproxy.kernel.xtables import Tables
from kproxy.kernel.xtables import entries as entries_of
from tests.backends.iptables.plans import port, snapshot, successor
from tests.contract.namespaces import scratch

#: Twice the period of looks at the legacy tables; nft tells at once.
PATIENCE = 1.0

FAMILIES = tuple(Family)


class World:
    """Both families in force in one namespace, and their watch."""

    def __init__(self, variant: Variant, records: Path) -> None:
        self.variant = variant
        self.syncers = {
            family: Syncer(
                IptablesBackend(family, variant, door=ToolDoor(family, variant, records=records))
            )
            for family in FAMILIES
        }
        self.plans = {family: self._first(family) for family in FAMILIES}
        self.watch: Watch = watch(variant, FAMILIES)
        self.sync()

    def _first(self, family: Family) -> Snapshot:
        plans = [port(f"svc{n:03}", family, ways="cn", number=8000 + n) for n in range(120)]
        return snapshot(*plans, family=family)

    def sync(self) -> str:
        """What was noticed before or during it."""
        before = self.watch.pause()
        if before:
            self.remember()
        done = [self.syncers[family].sync(self.plans[family]).transactions for family in FAMILIES]
        return before or self.watch.resume(
            sum(each for each in done if each is not None), self.entries()
        )

    def entries(self) -> dict[Family, Mapping[str, int]]:
        known = {family: syncer.backend.entries for family, syncer in self.syncers.items()}
        return {family: entries for family, entries in known.items() if entries is not None}

    def remember(self) -> None:
        """The next sync looks where others were, and nowhere else."""
        harm = self.watch.harm()
        for family, syncer in self.syncers.items():
            if harm is None or family in harm:
                syncer.forget(None if harm is None else harm[family])

    def run(self, *words: str, family: Family = Family.IPV4) -> None:
        command.run([tool(family, self.variant), *words])

    def noticed(self) -> str:
        """Looks when there is a reason to, twice at most; what is noticed is to be mended."""
        for _ in range(2):
            if select.select([self.watch], [], [], PATIENCE)[0] and (what := self.watch.look()):
                self.remember()
                return what
        return ""


@pytest.fixture(params=list(Variant))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with scratch():
        made = World(request.param, tmp_path)
        yield made
        made.watch.close()


def reload(world: World) -> None:
    """A firewall's own file, put in force as a whole."""
    text = b"*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p icmp -j ACCEPT\nCOMMIT\n"
    command.run([tool(Family.IPV4, world.variant, "restore")], stdin=text)


CHANGES: list[tuple[str, Callable[[World], None]]] = [
    ("filter flushed", lambda world: world.run("-F")),
    ("nat flushed", lambda world: world.run("-t", "nat", "-F")),
    ("nat of IPv6 flushed", lambda world: world.run("-t", "nat", "-F", family=Family.IPV6)),
    ("chain emptied", lambda world: world.run("-t", "nat", "-F", "KUBE-SERVICES")),
    ("canary deleted", lambda world: world.run("-t", "mangle", "-X", "KUBE-PROXY-CANARY")),
    ("jump deleted", lambda world: world.run("-t", "nat", "-D", "OUTPUT", "1")),
    ("rule of ours added", lambda world: world.run("-t", "nat", "-A", "KUBE-MARK-MASQ")),
    ("firewall reloaded", reload),
]


@pytest.mark.kernel
@pytest.mark.parametrize(("about", "change"), CHANGES, ids=[about for about, _ in CHANGES])
def test_a_change_by_others_is_noticed_and_mended(
    world: World, about: str, change: Callable[[World], None]
) -> None:
    """In either variant, in any table; once mended where it was, there is nothing more to find."""
    change(world)
    assert world.noticed()
    world.sync()
    for syncer in world.syncers.values():
        syncer.forget()
        assert syncer.sync(world.plans[syncer.backend.family]).written == 0
    assert world.noticed() == ""


@pytest.mark.kernel
def test_a_legacy_table_is_looked_at_by_the_clock(tmp_path: Path) -> None:
    """The descriptor becomes readable by itself, and the look after a change says which table."""
    with scratch():
        world = World(Variant.LEGACY, tmp_path)
        assert select.select([world.watch], [], [], PATIENCE)[0]
        assert world.watch.look() == ""
        world.run("-t", "nat", "-F", "KUBE-SERVICES")
        assert world.watch.look() == "another size of table nat (IPv4)"
        world.watch.close()


@pytest.mark.kernel
def test_our_own_syncs_are_not_foreign(world: World) -> None:
    """Large and small ones, of both families, with deletions: nothing is noticed."""
    for family in FAMILIES:
        now = world.plans[family]
        changed = port("svc003", family, ways="cn", pods=3, number=8003)
        world.plans[family] = successor(now, changed, removed=tuple(sorted(now.ports))[50:])
    assert world.sync() == ""
    assert world.noticed() == ""
    for family in FAMILIES:
        now = world.plans[family]
        world.plans[family] = successor(now, removed=tuple(now.ports))
    assert world.sync() == ""
    assert world.sync() == ""
    assert world.noticed() == ""


@pytest.mark.kernel
@pytest.mark.parametrize("world", [Variant.NFT], indirect=True)
def test_other_peoples_own_chains_are_their_business(world: World) -> None:
    """nft: new chains, rules in them, jumps to them, tables of other names."""
    world.run("-N", "MINE")
    world.run("-A", "MINE", "-j", "ACCEPT")
    world.run("-I", "INPUT", "-j", "MINE")
    world.run("-F", "MINE")
    command.run(["nft", "add table inet mine; add chain inet mine c; add rule inet mine c accept"])
    assert world.noticed() == ""
    assert world.sync() == ""


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("world", "said"),
    [
        (Variant.NFT, "1 transactions of others during a sync"),
        (Variant.LEGACY, "another size of table nat (IPv4)"),
    ],
    indirect=["world"],
)
def test_a_change_during_a_sync_is_noticed(world: World, said: str) -> None:
    """While we sync nobody looks, but afterwards the generation, or the sizes, tell of others."""
    world.watch.pause()
    world.run("-t", "nat", "-F", "KUBE-SERVICES")
    assert world.watch.look() == ""
    assert world.watch.resume(0) == said


class Meddling(ToolDoor):
    """Somebody else's commands just before and just after a writing call of ours."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def restore(self, chunks: Iterable[bytes]) -> None:
        before, after = self.before, self.after
        self.before = self.after = ()
        if before:
            command.run([tool(self.family, self.variant), *before])
        super().restore(chunks)
        if after:
            command.run([tool(self.family, self.variant), *after])


#: What others do, and what legacy says of it: entries that should not be there, or should.
RACES: list[tuple[tuple[str, ...], str]] = [
    (("-t", "nat", "-F", "KUBE-SERVICES"), "nat (IPv4) by -121"),
    (("-t", "nat", "-A", "KUBE-MARK-MASQ", "-p", "icmp"), "nat (IPv4) by +1"),
    (("-t", "nat", "-D", "OUTPUT", "1"), "nat (IPv4) by -1"),
    (("-F",), "filter (IPv4) by -15"),
    (("-t", "mangle", "-X", "KUBE-PROXY-CANARY"), "mangle (IPv4) by -2"),
    (("-N", "MINE"), "filter (IPv4) by +2"),
]


@pytest.mark.kernel
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(("words", "said"), RACES, ids=[said for _, said in RACES])
def test_a_change_beside_our_own_writing_is_noticed(
    world: World, words: tuple[str, ...], said: str, moment: str, tmp_path: Path
) -> None:
    """Somebody else writes between our last look and our next one, while we write too: the very
    look that follows says so, and the next sync mends it."""
    family = Family.IPV4
    world.syncers[family].backend.door = Meddling(family, world.variant, records=tmp_path)
    setattr(world.syncers[family].backend.door, moment, words)
    changed = port("svc003", family, ways="cn", pods=3, number=8003)
    world.plans[family] = successor(world.plans[family], changed)
    legacy = f"during a sync, entries of table {said}"
    expected = (
        legacy if world.variant is Variant.LEGACY else "1 transactions of others during a sync"
    )
    assert world.sync() == expected
    world.remember()
    assert world.sync() == ""
    for syncer in world.syncers.values():
        syncer.forget()
        assert syncer.sync(world.plans[syncer.backend.family]).written == 0


@pytest.mark.kernel
def test_we_count_entries_as_the_kernel_does(tmp_path: Path) -> None:
    """legacy: after a first sync beside a firewall, after changes and deletions of services, and
    after a full one; whatever the others have there."""
    with scratch():
        for family in FAMILIES:
            rules = "-A INPUT -p icmp -j ACCEPT\n-A MINE -j DROP\n-A INPUT -j MINE\n"
            text = f"*filter\n:MINE - [0:0]\n{rules}COMMIT\n*nat\n:EMPTY - [0:0]\nCOMMIT\n"
            argv = [tool(family, Variant.LEGACY, "restore"), "--noflush"]
            command.run(argv, stdin=text.encode())
        world = World(Variant.LEGACY, tmp_path)
        assert_counted(world)
        for family in FAMILIES:
            now = world.plans[family]
            new = [port(f"svc{n:03}", family, ways="cnl", pods=n % 4, number=8000 + n)
                   for n in range(110, 140)]  # fmt: skip
            world.plans[family] = successor(now, *new, removed=tuple(sorted(now.ports))[:20])
        assert world.sync() == ""
        assert_counted(world)
        for syncer in world.syncers.values():
            syncer.forget()
        world.run("-t", "nat", "-F", "KUBE-NODEPORTS")
        world.sync()
        assert_counted(world)
        for family in FAMILIES:
            now = world.plans[family]
            world.plans[family] = successor(now, removed=tuple(now.ports))
        assert world.sync() == ""
        assert_counted(world)
        world.watch.close()


def assert_counted(world: World) -> None:
    for family, entries in world.entries().items():
        tables = Tables(family)
        assert entries == {name: entries_of(tables.info(name)) for name in map(str, Table)}
        tables.close()
    assert world.entries().keys() == set(FAMILIES)


@pytest.mark.kernel
@pytest.mark.parametrize("world", [Variant.NFT], indirect=True)
def test_who_it_was_is_said(world: World) -> None:
    """nft: the program, and what it touched first."""
    command.run(["nft", "flush", "chain", "ip", "nat", "KUBE-SERVICES"])
    what = world.noticed()
    assert what.startswith("nft (")
    assert what.endswith("DELRULE nat KUBE-SERVICES")


@pytest.mark.kernel
@pytest.mark.parametrize("world", [Variant.NFT], indirect=True)
def test_more_than_can_be_told_is_a_change(world: World) -> None:
    """nft: a transaction that overruns the socket's buffer may have been of any rules."""
    others_rules(40_000)
    assert world.watch.look() == "more changes of rules than could be told"
    assert world.watch.harm() is None
    assert world.sync() == ""


@pytest.mark.kernel
@pytest.mark.parametrize("world", [Variant.NFT], indirect=True)
def test_a_large_table_of_others_is_their_business(world: World) -> None:
    """nft: thousands of rules in one transaction can still be told, and none of them is ours."""
    others_rules(4_000)
    assert world.noticed() == ""


def others_rules(count: int) -> None:
    note = "x" * 120
    rules = f'add rule ip6 other c tcp dport 80 accept comment "{note}"\n' * count
    text = f"add table ip6 other\nadd chain ip6 other c\n{rules}"
    command.run(["nft", "-f", "-"], stdin=text.encode())


#: What others do; where legacy and nft say that it was, None: anywhere.
WHERE: list[tuple[tuple[str, ...], Scope, Scope]] = [
    (
        ("-t", "nat", "-F", "KUBE-SERVICES"),
        Scope(tables=frozenset({"nat"})),
        Scope(chains=frozenset({("nat", "KUBE-SERVICES")})),
    ),
    (
        ("-t", "nat", "-D", "OUTPUT", "1"),
        Scope(tables=frozenset({"nat"})),
        Scope(chains=frozenset({("nat", "OUTPUT")})),
    ),
    (
        ("-t", "mangle", "-X", "KUBE-PROXY-CANARY"),
        Scope(tables=frozenset({"mangle"})),
        Scope(chains=frozenset({("mangle", "KUBE-PROXY-CANARY")})),
    ),
]


@pytest.mark.kernel
@pytest.mark.parametrize(("words", "legacy", "nft"), WHERE, ids=lambda value: repr(value)[:40])
def test_where_it_was_is_told(
    world: World, words: tuple[str, ...], legacy: Scope, nft: Scope
) -> None:
    """The table, or the chain, of that family only; told once."""
    world.run(*words, family=Family.IPV6)
    while not world.watch.look():
        assert select.select([world.watch], [], [], PATIENCE)[0]
    expected = legacy if world.variant is Variant.LEGACY else nft
    assert world.watch.harm() == {Family.IPV6: expected}
    assert world.watch.harm() == {}


TABLE_OF_CONCERN = [
    (Event(Kind.DELRULE, 2, "nat", "KUBE-SERVICES"), True),
    (Event(Kind.NEWRULE, 2, "nat", "KUBE-SVC-AAAA"), True),
    (Event(Kind.DELRULE, 10, "nat", "KUBE-SERVICES"), False),
    (Event(Kind.NEWRULE, 2, "filter", "INPUT"), False),
    (Event(Kind.DELRULE, 2, "filter", "INPUT"), True),
    (Event(Kind.DELCHAIN, 2, "filter", "INPUT"), True),
    (Event(Kind.DELRULE, 2, "filter", "KUBE-FIREWALL"), True),
    (Event(Kind.NEWRULE, 2, "filter", "KUBE-FIREWALL"), False),
    (Event(Kind.NEWRULE, 2, "filter", "DOCKER"), False),
    (Event(Kind.DELTABLE, 2, "mangle"), True),
    (Event(Kind.DELTABLE, 2, "other"), False),
    (Event(Kind.DELTABLE, 1, "nat"), False),
]


@pytest.mark.parametrize(("event", "ours"), TABLE_OF_CONCERN, ids=lambda value: repr(value)[:70])
def test_what_concerns_us(event: Event, ours: bool) -> None:
    """Changes of our chains, and what takes our jumps away from base chains; IPv4 only is ours."""
    assert bool(concern(event, frozenset({Family.IPV4}), LAYOUT)) is ours
