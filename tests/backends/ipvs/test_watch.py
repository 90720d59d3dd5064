"""Foreign changes of IPVS mode are noticed, our own are not."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.backends.ipvs.apply import IpvsBackend
from kproxy.backends.ipvs.door import KernelDoor
from kproxy.backends.ipvs.watch import CHEAP, PATIENCE, Budget, IpvsWatch, Listing, watch
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.core.snapshot import Snapshot
from kproxy.kernel import command
from tests.backends.iptables.plans import port, snapshot
from tests.contract.namespaces import scratch

#: Twice the period of looks, for what must not be noticed.
SOON = 1.0

#: For what must be: on a slow machine a listing is dear, and made less often.
PATIENT = 60.0

FAMILIES = tuple(Family)


# --- what has to be listed ---------------------------------------------------------------------


class Stock:
    """Something that can be listed, at a price."""

    def __init__(self, price: float, budget: Budget | None = None) -> None:
        self.price, self.state, self.spent, self.looks = price, "as it was", 0.0, 0
        self.listing = Listing(self.take, self.tell, clocks=lambda: (self.spent,), budget=budget)

    def take(self) -> str:
        self.spent += self.price
        self.looks += 1
        return self.state

    def tell(self, known: str, now: str) -> str:
        return "" if known == now or now.startswith("nobody") else f"{known} > {now}"


def test_a_cheap_listing_is_made_at_every_tick_and_after_every_sync() -> None:
    stock = Stock(CHEAP / 2)
    stock.listing.settle(0.0)
    stock.state = "another"
    assert [stock.listing.look(now) for now in (0.1, 0.1)] == ["as it was > another"] * 2
    stock.listing.settle(0.2)
    assert stock.listing.look(0.3) == ""


def test_a_dear_listing_waits_and_never_costs_more_than_a_hundredth() -> None:
    """Not in a sync either: what is there when it is due again is what should be there."""
    stock = Stock(0.05)
    now, ticks = 0.0, 400
    for tick in range(ticks):
        now = tick * 0.5
        stock.listing.look(now)
        if tick % 3 == 0:
            stock.listing.settle(now)
    assert stock.spent <= now / PATIENCE + 4 * stock.price
    assert stock.looks >= ticks * 0.5 / (stock.price * PATIENCE) - 1


@pytest.mark.parametrize("prices", [(0.05, 0.05), (0.05, 0.004), (0.004, 0.004)], ids=str)
def test_listings_that_share_a_budget_cost_a_hundredth_together(
    prices: tuple[float, float],
) -> None:
    """Whatever part of it each takes; neither is forgotten."""
    budget = Budget()
    stocks = [Stock(price, budget) for price in prices]
    now = 0.0
    for tick in range(800):
        now = tick * 0.5
        for stock in stocks:
            stock.listing.look(now)
    assert sum(stock.spent for stock in stocks) <= now / PATIENCE + 2 * sum(prices)
    assert all(stock.looks >= now / (2 * PATIENCE * stock.price + 0.5) - 1 for stock in stocks)


def test_a_dear_listing_finds_changes_between_looks() -> None:
    stock = Stock(0.05)
    assert stock.listing.look(0.0) == ""
    stock.state = "another"
    assert stock.listing.look(4.9) == ""
    assert stock.listing.look(5.1) == "as it was > another"


def test_one_dear_look_is_nothing_to_go_by() -> None:
    """It was held up by something else, or a clock that ticks has ticked."""
    stock = Stock(0.0)
    stock.listing.settle(0.0)
    stock.price = 0.01
    assert stock.listing.look(0.5) == ""
    stock.state, stock.price = "another", 0.0
    assert stock.listing.look(1.0) == "as it was > another"


@pytest.mark.parametrize("held_up", [1, 2])
def test_the_first_ones_may_be_held_up(held_up: int) -> None:
    """A proxy that starts on a busy machine knows what is there all the same."""
    stock = Stock(5 * CHEAP)
    for number in range(held_up + 1):
        stock.listing.settle(float(number))
    stock.state = "another"
    assert stock.listing.look(60.0) == "as it was > another"


def test_what_is_nobodys_business_becomes_what_is_known() -> None:
    stock = Stock(0.0)
    stock.listing.settle(0.0)
    stock.state = "nobody cares"
    assert stock.listing.look(0.1) == ""
    stock.state = "another"
    assert stock.listing.look(0.2) == "nobody cares > another"


def test_a_listing_that_was_held_up_once_is_still_cheap() -> None:
    """Other work on the machine, or a clock that ticks rarely: what others do after the next sync
    is not taken for ours."""
    stock = Stock(0.0)
    stock.listing.look(0.0)
    stock.price = 5 * CHEAP
    stock.listing.look(0.5)
    stock.price = 0.0
    stock.listing.settle(0.6)
    stock.state = "another"
    assert stock.listing.look(1.0) == "as it was > another"


# --- on a kernel with IPVS ---------------------------------------------------------------------


class World:
    """Both families in force in one namespace, and their watch."""

    def __init__(self, records: Path) -> None:
        variant = Variant.LEGACY
        self.syncers = {
            family: Syncer(
                IpvsBackend(family, variant, door=KernelDoor(family, variant, records=records))
            )
            for family in FAMILIES
        }
        self.plans = {family: self._first(family) for family in FAMILIES}
        self.watch: IpvsWatch = watch(variant, FAMILIES, spared=("198.51.100.0/24",))
        self.sync()

    def _first(self, family: Family) -> Snapshot:
        plans = [port(f"svc{n:03}", family, ways="cn", number=8000 + n) for n in range(20)]
        return snapshot(*plans, family=family)

    def sync(self) -> str:
        before = self.watch.pause()
        done = [self.syncers[family].sync(self.plans[family]) for family in FAMILIES]
        after = self.watch.resume(sum(each.transactions or 0 for each in done))
        return before or after

    def noticed(self, within: float = SOON) -> str:
        """Looks whenever there is a reason to, until something is noticed, or for a while."""
        end = time.monotonic() + within
        while (left := end - time.monotonic()) > 0:
            if select.select([self.watch], [], [], left)[0] and (what := self.watch.look()):
                for syncer in self.syncers.values():
                    syncer.forget()
                return what
        return ""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with scratch():
        command.run(["ip", "link", "set", "lo", "up"])
        made = World(tmp_path)
        yield made
        made.watch.close()


VIP = "172.30.0.41:8003"
CHANGES = {
    "a server deleted": f"ipvsadm -D -t {VIP}",
    "a server edited": f"ipvsadm -E -t {VIP} -s lc",
    "a server of IPv6 deleted": "ipvsadm -D -t [fd00:30::41]:8003",
    "a server added": "ipvsadm -A -t 172.30.0.41:9 -s rr",
    "a real server added": f"ipvsadm -a -t {VIP} -r 10.9.9.9:80 -m",
    "a real server's weight": f"ipvsadm -e -t {VIP} -r 10.180.0.1:80 -m -w 7",
    "a real server of weight 0": f"ipvsadm -e -t {VIP} -r 10.180.0.1:80 -m -w 0",
    "all servers": "ipvsadm -C",
    "a member": "ipset del KUBE-CLUSTER-IP 172.30.0.41,tcp:8003",
    "a set flushed": "ipset flush KUBE-6-LOOP-BACK",
    "an address": "ip address del 172.30.0.41/32 dev kube-ipvs0",
    "an address too many": "ip address add 172.30.9.9/32 dev kube-ipvs0",
    "the device": "ip link del kube-ipvs0",
    "a chain": "iptables-legacy -t nat -F KUBE-SERVICES",
    "a rule": "ip6tables-legacy -t mangle -A KUBE-IPVS-OUT-FILTER",
}


@pytest.mark.ipvs
@pytest.mark.parametrize("change", list(CHANGES.values()), ids=list(CHANGES))
def test_a_change_by_others_is_noticed_and_mended(world: World, change: str) -> None:
    """Once mended, there is nothing more to notice."""
    command.run(change.split())
    assert world.noticed(PATIENT)
    world.sync()
    for syncer in world.syncers.values():
        syncer.forget()
        assert syncer.sync(world.plans[syncer.backend.family]).written == 0
    assert world.noticed() == ""


@pytest.mark.ipvs
@pytest.mark.parametrize(
    "change",
    [
        "ipvsadm -A -t 198.51.100.9:80 -s rr",
        "ipvsadm -A -f 7 -s rr",
        "ipset create MINE hash:ip",
        "ip address add 198.51.100.9/32 dev lo",
    ],
)
def test_other_peoples_things_are_their_business(world: World, change: str) -> None:
    """Servers in ranges that are spared, or by packet mark; their sets and addresses."""
    command.run(change.split())
    assert world.noticed() == ""


@pytest.mark.ipvs
def test_our_own_syncs_are_not_foreign(world: World) -> None:
    """Everything made anew, then all but nothing."""
    for family in FAMILIES:
        more = [port(f"new{n:03}", family, ways="cnel", pods=3, number=9000 + n) for n in range(9)]
        world.plans[family] = snapshot(*more, family=family)
    assert world.sync() == ""
    assert world.noticed() == ""


@pytest.mark.ipvs
def test_while_we_write_nothing_is_noticed_and_nothing_spins(world: World) -> None:
    """Notices of our own addresses do not make the descriptor readable."""
    world.watch.pause()
    command.run(["ip", "address", "add", "172.30.9.9/32", "dev", "kube-ipvs0"])
    command.run(["ipvsadm", "-C"])
    assert world.watch.look() == ""
    assert world.watch.resume(0) == ""
    assert not select.select([world.watch], [], [], 0)[0] or world.watch.look() == ""


@pytest.mark.ipvs
def test_a_look_tells_once_and_the_sync_that_mends_is_told_again(world: World) -> None:
    """Else a look between asking for that sync and its beginning would ask for another one."""
    # Of rules, which every look sees: a listing that is dear is not due again so soon.
    command.run(["iptables-legacy", "-t", "nat", "-F", "KUBE-SERVICES"])
    said = world.noticed(PATIENT)
    assert said
    assert world.watch.look() == ""
    assert world.watch.pause() == said
    world.watch.resume(0)
