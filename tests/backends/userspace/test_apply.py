"""The backend on a relay and a kernel in memory: what is done, in which order, what is left out."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from kproxy.backends.fake import FakeIptables
from kproxy.backends.syncer import Syncer
from kproxy.backends.userspace import chains
from kproxy.backends.userspace.apply import UserspaceBackend
from kproxy.backends.userspace.plan import Front, NodePort
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family, PortName, Protocol
from kproxy.core.policy import Use
from kproxy.core.snapshot import NodePortTargets, PortPlan
from kproxy.errors import ContentError, KernelError
from tests.backends.iptables.plans import (
    LOCAL,
    NO_LOCALHOST,
    V4,
    port,
    settings,
    snapshot,
    successor,
)
from tests.backends.userspace.relay import FakeRelay

WEB = port("web", ways="cn")
OTHER = port("other", number=81)
NOW = snapshot(WEB, OTHER)
CLUSTER = Front(WEB.name, Use.CLUSTER)


class World:
    """A backend, and everything that it said to the relay and to the kernel, in order."""

    def __init__(self) -> None:
        self.door, self.relay = FakeIptables(), FakeRelay()
        self.backend = UserspaceBackend(V4, Variant.NFT, door=self.door, relay=self.relay)
        self.syncer = Syncer(self.backend)
        self.log = self.relay.said
        restore = self.door.restore

        def restoring(chunks: Iterable[bytes]) -> None:
            whole = b"".join(chunks)
            self.log.append(("restore", whole.decode()))
            restore([whole])

        self.door.restore = restoring  # type: ignore[method-assign]

    def verbs(self) -> list[str]:
        """What was said since this was last asked."""
        said = [verb for verb, _ in self.log]
        self.log.clear()
        return said

    def rows(self, table: str, chain: str) -> list[str]:
        return self.door.tables[table][chain]

    def left_out(self) -> list[str]:
        return [name.name for name, _ in self.backend.left_out()]


@pytest.fixture
def world() -> World:
    made = World()
    made.syncer.sync(NOW)
    made.verbs()
    return made


def test_first_sockets_then_rules() -> None:
    """Nothing leads to a port on which nobody listens, nobody is let in before it is guarded, and
    what is held is held before."""
    world = World()
    world.syncer.sync(NOW)
    guards, rules = [str(said) for verb, said in world.log if verb == "restore"]
    assert world.verbs() == ["hold", "put", "put", "restore", "hear", "restore"]
    assert guards.count("-A KUBE-RELAY-GUARD ") == len(NOW.ports)
    assert "*nat" not in guards
    assert "-A KUBE-RELAY-GUARD " not in rules


#: Guards, then clients, then what leads them there.
OPENED = ("restore", "hear", "restore")


@pytest.mark.parametrize(
    ("plans", "removed", "verbs"),
    [
        ((port("web", ways="cn", pods=3),), (), ["put"]),
        ((port("web", ways="cn", affinity=60),), (), ["put"]),
        ((port("web", ways="cn", pods=0),), (), ["restore", "drop", "restore"]),
        ((), (WEB.name,), ["restore", "drop", "release", "restore"]),
        ((port("web", ways="c"),), (), ["put", "restore", "release"]),
        ((port("web", ways="cn", internal=LOCAL),), (), ["put", *OPENED]),
        ((port("other", number=81, internal=LOCAL),), (), ["put", *OPENED, "shut", "restore"]),
        ((port("new", ways="e", number=82),), (), ["put", *OPENED]),
        ((), (), []),
    ],
)
def test_order_of_a_change(
    world: World, plans: tuple[PortPlan, ...], removed: tuple[PortName, ...], verbs: list[str]
) -> None:
    """What comes is there before rules lead to it, and what goes is when none do. Endpoints and
    affinity concern the relay alone."""
    applied = world.syncer.sync(successor(NOW, *plans, removed=removed))
    assert world.verbs() == verbs
    assert applied.transactions == 0 or "restore" in verbs


@pytest.mark.parametrize("count", [1, 300])
def test_a_guard_stands_as_long_as_its_port_is_open(count: int) -> None:
    """What leads there goes, then the sockets, then the guard; also when so many go that chains
    are written anew."""
    world = World()
    plans = [port(f"svc{n:03}", number=1000 + n) for n in range(count)]
    first = snapshot(*plans, OTHER)
    world.syncer.sync(first)
    guards, portals = (
        lambda: len(world.rows("filter", chains.RELAY_GUARD)),
        lambda: len(world.rows("nat", chains.PORTALS_HOST)),
    )
    seen = []
    drop = world.relay.drop

    def dropping(names: Iterable[PortName]) -> None:
        seen.append((portals(), guards()))
        drop(names)

    world.relay.drop = dropping  # type: ignore[method-assign]
    new = port("new", number=82)
    last = successor(first, new, removed=tuple(plan.name for plan in plans))
    world.syncer.sync(last)
    assert seen == [(2, count + 2)]
    assert (portals(), guards()) == (2, 2)
    assert world.backend.diff(world.syncer.desired, world.backend.read()) is None


def test_an_endpoint_list_is_not_told_twice(world: World) -> None:
    """A full sync finds the relay as it should be."""
    world.syncer.forget()
    applied = world.syncer.sync(NOW)
    assert (applied.full, applied.written, applied.foreign) == (True, 0, False)
    assert world.verbs() == []


def test_a_node_port_that_somebody_has(world: World) -> None:
    """It is left out and told, the other ways in are served; tried again when all is read."""
    fresh = World()
    fresh.relay.taken.add((30080, False))
    applied = fresh.syncer.sync(NOW)
    assert applied.refused == ((WEB.name, "somebody has it"),)
    assert fresh.rows("nat", chains.NODEPORT_HOST) == []
    assert len(fresh.rows("nat", chains.PORTALS_HOST)) == 2
    fresh.verbs()
    fresh.syncer.forget()
    again = fresh.syncer.sync(NOW)
    assert (again.refused, again.written, again.foreign) == (applied.refused, 0, False)
    assert fresh.verbs() == ["hold"]
    fresh.relay.taken.clear()
    fresh.syncer.forget()
    assert fresh.syncer.sync(NOW).refused == ()
    assert len(fresh.rows("nat", chains.NODEPORT_HOST)) == 1


def test_a_refusal_is_told_as_long_as_it_lasts() -> None:
    """Also by syncs that do not look, and no longer than there is such a node port."""
    world = World()
    world.relay.taken.add((30080, False))
    world.syncer.sync(NOW)
    after = successor(NOW, port("other", number=81, pods=3))
    assert [name for name, _ in world.syncer.sync(after).refused] == [WEB.name]
    assert world.syncer.sync(successor(after, port("web", ways="c"))).refused == ()


def test_a_front_that_cannot_be_opened(world: World) -> None:
    """Its service port has no rules that lead there, it is refused; the others are served."""
    fresh = World()
    fresh.relay.unopened.add(CLUSTER)
    assert [name for name, _ in fresh.syncer.sync(NOW).refused] == [WEB.name]
    assert len(fresh.rows("nat", chains.PORTALS_HOST)) == 1
    for chain in (chains.PORTALS_FILTER, chains.NODEPORT_FILTER):
        (row,) = fresh.rows("filter", chain)
        assert "ns1/web:p80 has no relay port" in row
        assert "-j REJECT" in row
    fresh.syncer.forget()
    assert not fresh.syncer.sync(NOW).foreign
    fresh.relay.unopened.clear()
    fresh.syncer.forget()
    assert fresh.syncer.sync(NOW).refused == ()
    assert len(fresh.rows("nat", chains.PORTALS_HOST)) == 2
    assert fresh.rows("filter", chains.PORTALS_FILTER) == []
    assert fresh.rows("filter", chains.NODEPORT_FILTER) == []


@pytest.mark.parametrize("goes", ["the service", "its endpoints"])
def test_a_port_that_is_given_up_is_used_at_once(world: World, goes: str) -> None:
    """By one that had found none, in the same sync; as many are tried as were given up."""
    fronts = [Front(PortName("ns1", name, "p80", Protocol.TCP), Use.CLUSTER) for name in "ab"]
    world.relay.unopened |= {*fronts}
    late = [port(front.name.name, number=90 + n) for n, front in enumerate(fronts)]
    first = successor(NOW, *late)
    assert len(world.syncer.sync(first).refused) == 2
    world.verbs()
    gone = {"removed": (OTHER.name,)} if goes == "the service" else {}
    plans = () if gone else (port("other", number=81, pods=0),)
    world.relay.unopened.clear()
    applied = world.syncer.sync(successor(first, *plans, **gone))  # type: ignore[arg-type]
    assert not applied.full
    assert world.verbs() == ["restore", "drop", "restore", "put", *OPENED]
    assert world.left_out() == ["b"]
    assert world.relay.deafened == set()
    a, b = (f"ns1/{front.name.name}:p80" for front in fronts)
    rows = "".join(world.rows("nat", chains.PORTALS_HOST))
    assert (a in rows, b in rows) == (True, False)
    world.syncer.forget()
    assert world.syncer.sync(successor(first, *plans, **gone)).refused == ()  # type: ignore[arg-type]


def test_a_node_port_that_is_given_up_is_held_at_once(world: World) -> None:
    """By another service port that had wanted it at other addresses."""
    release = world.relay.release

    def giving_up(ports: Iterable[NodePort]) -> None:
        world.relay.taken.clear()
        release(ports)

    world.relay.taken.add((30080, False))
    world.relay.release = giving_up  # type: ignore[method-assign]
    some = NodePortTargets(all=False, addresses=("10.9.0.1",))
    world.syncer.sync(
        snapshot(WEB, OTHER, settings_=settings(node_port_targets=some), generation=2)
    )
    assert world.left_out() == []
    assert world.relay.held == {NodePort(30080, False, ("10.9.0.1", "127.0.0.1"))}
    assert len(world.rows("nat", chains.NODEPORT_HOST)) == 2


def test_sctp_is_refused_and_told() -> None:
    """In the kernel like a service port without endpoints."""
    world = World()
    sctp = port("sctp", ways="cn", protocol=Protocol.SCTP)
    applied = world.syncer.sync(snapshot(sctp))
    assert [name for name, _ in applied.refused] == [sctp.name]
    assert "-j REJECT" in world.rows("filter", chains.PORTALS_FILTER)[0]
    assert world.verbs() == ["restore"]
    assert world.syncer.sync(successor(snapshot(sctp), removed=(sctp.name,))).refused == ()


def test_relay_ports_of_an_earlier_life_are_taken_again(world: World) -> None:
    """A relay that knows nothing is told what the rules lead to: nothing of them changes."""
    relay = FakeRelay()
    relay._next = 50000  # what it would choose by itself
    backend = UserspaceBackend(V4, Variant.NFT, door=world.door, relay=relay)
    applied = Syncer(backend).sync(NOW)
    assert (applied.transactions, [verb for verb, _ in relay.said]) == (
        0,
        ["hold", "put", "put", "hear"],
    )


@pytest.mark.parametrize("again", [(), (port("web", ways="cn"),)])
def test_lines_that_were_found_are_taken_away(world: World, again: tuple[PortPlan, ...]) -> None:
    """A successor that found everything as it should be knows whose lines they are: a service that
    goes leaves none behind, and one that comes again has no second ones."""
    backend = UserspaceBackend(V4, Variant.NFT, door=world.door, relay=world.relay)
    syncer = Syncer(backend)
    syncer.sync(NOW)
    assert world.verbs() == []
    without = successor(NOW, removed=(WEB.name,))
    syncer.sync(without)
    last = successor(without, *again)
    syncer.sync(last)
    fresh = World()
    fresh.syncer.sync(last)
    for table, content in fresh.door.tables.items():
        for chain, rows in content.items():
            assert len(world.rows(table, chain)) == len(rows)


def test_a_port_that_changed_changes_its_lines(world: World) -> None:
    """When the old one is not to be had any more."""
    relay = FakeRelay()
    relay._next = 50000
    relay.remember = lambda ports: None  # type: ignore[method-assign]
    backend = UserspaceBackend(V4, Variant.NFT, door=world.door, relay=relay)
    Syncer(backend).sync(NOW)
    rows = world.rows("nat", chains.PORTALS_HOST)
    assert len(rows) == 2
    assert all("--to-ports 5000" in row for row in rows)


def test_refused_rules_leave_the_relay_serving(world: World) -> None:
    """What was to go is still there, since rules still lead to it; the next sync takes it away."""
    after = successor(NOW, removed=(OTHER.name,))
    world.door.failures += ["Another app is currently holding the xtables lock."]
    with pytest.raises(KernelError):
        world.syncer.sync(after)
    assert OTHER.name in world.relay.running()
    world.syncer.sync(after)
    assert OTHER.name not in world.relay.running()
    assert world.verbs() == ["restore", "restore", "drop", "restore"]


def test_loopback_is_guarded_as_soon_as_it_is_served() -> None:
    """Node ports answer there from now on: the rule stands before the sysctl is set."""
    world = World()
    world.syncer.sync(snapshot(WEB, settings_=settings(node_port_targets=NO_LOCALHOST)))
    assert world.rows("filter", "KUBE-FIREWALL") == []
    applied = world.syncer.sync(snapshot(WEB, generation=2))
    assert not applied.full
    assert len(world.rows("filter", "KUBE-FIREWALL")) == 1
    assert world.door.sysctls["net/ipv4/conf/all/route_localnet"] == "1"


def test_addresses_to_connect_from_are_told_when_they_change(world: World) -> None:
    """At the first sync that has any, when they are others, and to a relay that is another."""
    own = settings(addresses=("10.9.0.1",), local_addresses=("10.9.0.1", "10.9.0.2"))
    world.syncer.sync(snapshot(WEB, OTHER, settings_=own, generation=2))
    assert ("sources", ("10.9.0.1", "10.9.0.2")) in world.log
    world.verbs()
    world.syncer.sync(snapshot(WEB, settings_=own, generation=3))
    world.syncer.forget()
    world.syncer.sync(snapshot(WEB, settings_=own, generation=3))
    assert "sources" not in world.verbs()
    world.relay.sources = ()
    world.syncer.forget()
    world.syncer.sync(snapshot(WEB, settings_=own, generation=3))
    assert world.log[0] == ("sources", ("10.9.0.1", "10.9.0.2"))


def test_a_refused_line_names_its_service_port(world: World) -> None:
    """So that no other has to be left out to find it."""
    desired = world.backend.render(successor(NOW, port("new", number=82)), world.syncer.desired)
    patch = world.backend.diff(desired, world.backend.settled(world.syncer.desired))
    world.door.failures.append("iptables-restore v1.8.9: Error occurred at line: 2")
    with pytest.raises(ContentError) as caught:
        world.backend.apply(patch)
    assert [name.name for name in caught.value.suspects] == ["new"]


def test_a_sysctl_that_may_not_be_set_is_done_without() -> None:
    """In a container; it is not asked for at every sync as if others had changed it."""
    world = World()
    asked = []

    def refused(name: str, value: str) -> None:
        asked.append(name)
        raise KernelError(f"cannot set {name}={value}: Read-only file system")

    world.door.set_sysctl = refused  # type: ignore[method-assign]
    world.syncer.sync(NOW)
    world.syncer.forget()
    assert not world.syncer.sync(NOW).foreign
    assert len(asked) == len(set(asked))


def test_sysctls_come_after_their_guard(world: World) -> None:
    """And go before it."""
    fresh = World()
    seen = []
    fresh.door.set_sysctl = lambda name, value: seen.append(  # type: ignore[method-assign]
        (name, bool(fresh.rows("filter", "KUBE-FIREWALL")))
    )
    fresh.syncer.sync(NOW)
    assert ("net/ipv4/conf/all/route_localnet", True) in seen


def test_cleanup_leaves_nothing(world: World) -> None:
    """Rules, sockets, node ports."""
    before = FakeIptables().save()
    world.backend.cleanup()
    assert world.door.save() == before
    assert (dict(world.relay.running()), world.relay.held) == ({}, frozenset())


@pytest.mark.parametrize("family", list(Family))
def test_many_changes_end_where_a_fresh_start_does(family: Family) -> None:
    """Services that come by hundreds and go by hundreds, so that chains are written anew."""
    world = World()
    world.backend.family = family
    plans = [port(f"svc{n:03}", family, ways="cn", number=1000 + n) for n in range(300)]
    plans = [replace(plan, node_port=31000 + n) for n, plan in enumerate(plans)]
    first = snapshot(*plans, family=family)
    world.syncer.sync(first)
    last = successor(first, removed=tuple(plan.name for plan in plans[20:]))
    world.syncer.sync(last)
    assert world.backend.diff(world.syncer.desired, world.backend.read()) is None
    assert len(world.rows("nat", chains.PORTALS_HOST)) == 20
