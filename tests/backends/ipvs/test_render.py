"""What IPVS mode wants for a Snapshot: whole at first, then by what changed."""

from __future__ import annotations

from msgspec.structs import replace

from kproxy.backends.ipvs import sets
from kproxy.backends.ipvs.fixed import Context
from kproxy.backends.ipvs.held import settled
from kproxy.backends.ipvs.plan import Block, server_key
from kproxy.backends.ipvs.render import Desired, render
from kproxy.core.objects import PortName, Protocol
from kproxy.core.snapshot import IpvsSettings, PortPlan, Snapshot
from tests.backends.iptables.plans import LOCAL, V4, port, settings, snapshot, successor

KERNEL = (6, 1)
NODE = "192.168.0.2"


def plan(number: int, **fields: object) -> PortPlan:
    """One of many service ports, each with an address of its own."""
    return replace(port(f"svc{number}", **fields), cluster_ip=f"172.30.1.{number}")  # type: ignore[arg-type]


def whole(now: Snapshot, previous: Desired | None = None) -> Desired:
    return render(now, Context(V4, now.settings), KERNEL, previous)


def first(*plans: PortPlan) -> Snapshot:
    return snapshot(*plans, settings_=settings(local_addresses=(NODE,)))


def same(desired: Desired, now: Snapshot) -> bool:
    """Whether it is what a first render gives."""
    fresh = whole(now)
    return (
        settled(desired) == settled(fresh)
        and list(desired.blocks) == list(fresh.blocks)
        and desired.taken == fresh.taken
    )


def test_only_what_changed_is_made_anew() -> None:
    """Blocks of other service ports are the predecessor's own; so is all of it when nothing
    changed."""
    one = first(*map(plan, range(5)))
    before = whole(one)
    two = successor(one, plan(2, pods=3))
    after = whole(two, before)
    changed = [name for name, block in after.blocks.items() if block is not before.blocks[name]]
    assert changed == [plan(2).name]
    assert same(after, two)
    assert whole(two, after) is after


def test_a_snapshot_that_follows_another_one_keeps_equal_plans() -> None:
    """A predecessor that was never rendered: all plans are compared, equal ones stay."""
    one = first(*map(plan, range(3)))
    before = whole(one)
    gap = successor(successor(one, plan(1, pods=1)), plan(2, pods=1))
    after = whole(gap, before)
    assert after.blocks[plan(0).name] is before.blocks[plan(0).name]
    assert same(after, gap)


def test_settings_change_every_block() -> None:
    """The scheduler of the node is in every server."""
    one = first(*map(plan, range(3)))
    two = replace(
        one, settings=replace(one.settings, ipvs=IpvsSettings(scheduler="lc")), generation=2
    )
    after = whole(two, whole(one))
    assert {virtual.scheduling.scheduler for virtual, _ in after.servers.values()} == {"lc"}
    assert same(after, two)


def test_a_service_comes_and_goes() -> None:
    """Blocks stay in the order of their names, whatever came when."""
    one = first(plan(1), plan(3))
    before = whole(one)
    two = successor(one, plan(2), removed=(plan(3).name,))
    after = whole(two, before)
    assert same(after, two)
    three = successor(two, removed=(plan(1).name, plan(2).name))
    assert same(whole(three, after), three)
    assert not whole(three, after).members.all


def test_a_vip_passes_from_one_service_to_another() -> None:
    """In one change: neither order of the two loses it."""
    for loser, winner in ((1, 2), (2, 1)):
        shared = replace(plan(loser), external_ips=("198.51.100.7",))
        one = first(shared, plan(winner))
        before = whole(one)
        heir = replace(plan(winner), external_ips=("198.51.100.7",))
        two = successor(one, plan(loser), heir)
        after = whole(two, before)
        key = server_key("198.51.100.7", 80, Protocol.TCP)
        assert (before.servers[key][1], after.servers[key][1]) == (shared.name, heir.name)
        assert same(after, two)


def owner(number: int = 30080, **fields: object) -> PortPlan:
    """It has an address of the node for itself, at the number of :func:`node_port`'s."""
    return replace(plan(7, ways="e", **fields), cluster_ip="", external_ips=(NODE,), port=number)


def node_port(**fields: object) -> PortPlan:
    return replace(port("np", ways="n", **fields), cluster_ip="")  # type: ignore[arg-type]


def test_an_own_address_is_taken_from_node_ports_there() -> None:
    """Whoever comes first, and back again when its owner goes; nobody else is touched."""
    key = server_key(NODE, 30080, Protocol.TCP)
    alone = whole(first(plan(1), node_port()))
    assert alone.servers[key][1] == node_port().name
    both = successor(alone.snapshot, owner())
    after = whole(both, alone)
    assert after.servers[key][1] == owner().name
    assert same(after, both)
    assert after.blocks[plan(1).name] is alone.blocks[plan(1).name]
    moved = successor(both, owner(30081))
    assert whole(moved, after).servers[key][1] == node_port().name
    assert same(whole(moved, after), moved)
    again = successor(both, removed=(owner().name,))
    assert whole(again, after).servers[key][1] == node_port().name
    assert same(whole(again, after), again)


def test_a_node_port_closes_nothing_on_another_ones_address() -> None:
    """Sets are asked by address and port: one that has no local endpoint keeps clients off its own
    addresses only."""
    now = first(owner(), node_port(local_pods=0, external=LOCAL))
    key = server_key(NODE, 30080, Protocol.TCP)
    assert whole(now).servers[key][1] == owner().name
    assert (sets.NO_LOCAL_ENDPOINT, key) not in whole(now).members.all
    alone = whole(first(node_port(local_pods=0, external=LOCAL)))
    assert (sets.NO_LOCAL_ENDPOINT, key) in alone.members.all


def test_following_makes_no_other_blocks(monkeypatch) -> None:
    """Work follows the change: the parts of other blocks are not looked at."""
    one = first(*map(plan, range(50)))
    before = whole(one)
    assert all((before.servers, before.members.all, before.addresses.all))
    looked: set[PortName] = set()
    for part in ("members", "addresses", "servers"):
        made = getattr(Block, part)

        def look(self: Block, made: property = made) -> object:
            looked.add(self.name)
            return made.fget(self)  # type: ignore[misc]

        monkeypatch.setattr(Block, part, property(look))
    two = successor(one, plan(7, pods=3))
    after = whole(two, before)
    assert all((after.servers, after.members.all, after.addresses.all))
    assert looked == {plan(7).name}
