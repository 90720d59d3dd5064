"""Foreign changes are noticed, our own are not: on the kernel, by other programs' real commands."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kproxy.backends.base import Watch
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.layout import LAYOUT
from kproxy.backends.iptables.watch import watch
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables.door import ToolDoor, tool
from kproxy.backends.xtables.variant import Variant
from kproxy.backends.xtables.watch import concern
from kproxy.core.objects import Family
from kproxy.core.snapshot import Snapshot
from kproxy.kernel import command
from kproxy.kernel.nftables import Event, Kind, events, generations
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
            for syncer in self.syncers.values():
                syncer.forget()
        done = [self.syncers[family].sync(self.plans[family]).transactions for family in FAMILIES]
        return before or self.watch.resume(sum(each for each in done if each is not None))

    def run(self, *words: str, family: Family = Family.IPV4) -> None:
        command.run([tool(family, self.variant), *words])

    def noticed(self) -> str:
        """Looks when there is a reason to, twice at most; what is noticed is to be mended."""
        for _ in range(2):
            if select.select([self.watch], [], [], PATIENCE)[0] and (what := self.watch.look()):
                for syncer in self.syncers.values():
                    syncer.forget()
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
    """In either variant, in any table; once mended, there is nothing more to notice."""
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
    """nft: a transaction that overruns the socket's buffer counts as one of ours lost."""
    rules = "".join(
        f"add rule ip6 other c tcp dport {number} accept\n" for number in range(1, 3000)
    )
    text = f"add table ip6 other\nadd chain ip6 other c\n{rules}"
    command.run(["nft", "-f", "-"], stdin=text.encode())
    assert world.noticed() == "more changes than could be told"
    assert world.sync() == ""


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


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_broken_datagrams_say_nothing_wrong(cut: int) -> None:
    """A datagram that ends early gives what is whole in it, and never an exception."""
    whole = (
        b"\x30\x00\x00\x00\x0f\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
        b"\x08\x00\x01\x00\x00\x00\x00\x07\x08\x00\x02\x00\x00\x00\x00\x2a\x08\x00\x03\x00nft\x00"
        b"\x04\x00\x63\x00"
    )
    assert list(events(whole)) == [Event(Kind.NEWGEN, generation=7, program="nft", pid=42)]
    assert all(event.kind is Kind.NEWGEN for event in events(whole[:cut]))


def test_generations_start_again() -> None:
    """The counter has 32 bits."""
    assert generations(5, 9) == 4
    assert generations(2**32 - 1, 1) == 2
