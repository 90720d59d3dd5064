"""What every backend promises (kproxy/backends/base.py), on the fake and on the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from msgspec.structs import replace

from kproxy.backends.base import Adopting, Backend, Tending
from kproxy.backends.fastpath.apply import LOOK_FOR_PODS
from kproxy.backends.iptables import chains
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.saved import Saved, parse
from kproxy.core.objects import Family, PortName
from kproxy.core.snapshot import PortPlan, Snapshot
from kproxy.errors import KernelError
from tests.backends.iptables.plans import (
    LOCAL,
    MATRIX,
    port,
    settings,
    snapshot,
    successor,
)

AnyBackend = Backend[Any, Any, Any]


def some(family: Family) -> Snapshot:
    """A small cluster with every kind of rule in it."""
    shapes = (
        {"ways": "cn", "pods": 3},
        {"ways": "cnel", "pods": 3, "external": LOCAL, "restricted": True, "health": 32000},
        {"ways": "cl", "pods": 2, "affinity": 10800},
        {"ways": "cne", "pods": 0},
        {"ways": "cn", "pods": 2, "local_pods": 0, "internal": LOCAL, "external": LOCAL},
    )
    return whole(*[own(n, family, **shape) for n, shape in enumerate(shapes)])


def own(number: int, family: Family, **shape: Any) -> PortPlan:
    """A service port with ports of its own: the planner lets no two have the same place."""
    return apart(number, port(f"svc{number}", family, **shape))


def apart(number: int, plan: PortPlan) -> PortPlan:
    node_port = plan.node_port and 30000 + number
    return replace(plan, port=8000 + number, node_port=node_port)


def whole(*plans: PortPlan, family: Family | None = None) -> Snapshot:
    its = family or Family.IPV6 if any(":" in plan.cluster_ip for plan in plans) else Family.IPV4
    return snapshot(*plans, family=its)


def in_force(syncer: Syncer) -> None:
    """The kernel holds what is wanted, and a second look finds nothing to do; nobody has
    connections that would have to end first."""
    backend = syncer.backend
    if isinstance(backend, Tending):
        # Pods behind interfaces are looked for again and again.
        assert backend.tend() in (None, LOOK_FOR_PODS)
    held = backend.read()
    assert held == backend.settled(syncer.desired)
    assert backend.diff(syncer.desired, held) is None
    assert backend.diff(syncer.desired, backend.settled(syncer.desired)) is None


def test_read_after_apply_is_what_was_wanted(any_backend: AnyBackend) -> None:
    """The first sync writes everything, the second nothing."""
    syncer = Syncer(any_backend)
    first = syncer.sync(some(any_backend.family))
    assert first.full
    assert first.written > 0
    in_force(syncer)
    syncer.forget()
    again = syncer.sync(some(any_backend.family))
    assert (again.full, again.written) == (True, 0)


def test_every_shape_of_service_comes_back_as_written(any_backend: AnyBackend) -> None:
    """All shapes of service ports at once, with each kind of detector."""
    shapes = [plan for family, plan in MATRIX if family is any_backend.family]
    plans = [apart(number, plan) for number, plan in enumerate(shapes)]
    for detector in ("cidr", "bridge", "prefix", "all"):
        syncer = Syncer(any_backend)
        syncer.sync(
            snapshot(
                *plans, family=any_backend.family, settings_=settings(any_backend.family, detector)
            )
        )
        in_force(syncer)


def change_endpoints(now: Snapshot, family: Family) -> Snapshot:
    return successor(now, own(0, family, ways="cn", pods=2))


def add(now: Snapshot, family: Family) -> Snapshot:
    return successor(now, own(9, family, ways="cnel", pods=1))


def remove(now: Snapshot, family: Family) -> Snapshot:
    return successor(now, removed=(_named(now, "svc1"), _named(now, "svc3")))


def empty(now: Snapshot, family: Family) -> Snapshot:
    return successor(now, *[own(n, family, ways="cn", pods=0) for n in range(3)])


def fill(now: Snapshot, family: Family) -> Snapshot:
    return successor(now, own(3, family, ways="cne", pods=3))


def retype(now: Snapshot, family: Family) -> Snapshot:
    return successor(now, own(0, family, ways="c", pods=3), own(2, family, ways="nel"))


def resettle(now: Snapshot, family: Family) -> Snapshot:
    return snapshot(
        *now.ports.values(),
        family=family,
        settings_=settings(family, "bridge", masquerade_all=True, masquerade_bit=3),
        generation=now.generation + 1,
    )


def nothing_left(now: Snapshot, family: Family) -> Snapshot:
    return successor(now, removed=tuple(now.ports))


def _named(now: Snapshot, name: str) -> PortName:
    return next(each for each in now.ports if each.name == name)


CHANGES = [change_endpoints, add, remove, empty, fill, retype, resettle, nothing_left]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_ends_where_a_fresh_start_does(
    any_backend: AnyBackend, change: Callable[[Snapshot, Family], Snapshot]
) -> None:
    """After any change the kernel holds what a first sync of the same plan would give."""
    syncer = Syncer(any_backend)
    now = some(any_backend.family)
    syncer.sync(now)
    after = change(now, any_backend.family)
    applied = syncer.sync(after)
    assert not applied.full
    in_force(syncer)
    fresh, there = any_backend.render(after, None), any_backend.read()
    if isinstance(any_backend, Adopting):
        fresh = any_backend.adopted(fresh, there)
    assert any_backend.diff(fresh, there) is None


def test_changes_follow_one_another(any_backend: AnyBackend) -> None:
    """Each change on top of the others, and the way back to an empty cluster."""
    syncer = Syncer(any_backend)
    now = some(any_backend.family)
    syncer.sync(now)
    for change in (change_endpoints, add, empty, fill, retype, resettle, nothing_left):
        now = change(now, any_backend.family)
        syncer.sync(now)
        in_force(syncer)


def run(backend: IptablesBackend, table: Table, *rows: str) -> None:
    """Somebody else's commands."""
    text = "".join(f"{row}\n" for row in (f"*{table}", *rows, "COMMIT"))
    backend.door.restore([text.encode()])


def service_chain(backend: IptablesBackend, prefix: str) -> str:
    return min(chain for chain in backend.read().tables[Table.NAT] if chain.startswith(prefix))


DAMAGE: list[tuple[str, Callable[[IptablesBackend], tuple[Table, list[str]]]]] = [
    ("flushed", lambda b: (Table.NAT, [f"-F {chains.SERVICES}"])),
    ("foreign rule", lambda b: (Table.NAT, [f"-I {chains.SERVICES} 1 -j RETURN"])),
    ("rule changed", lambda b: (Table.NAT, [f"-A {service_chain(b, chains.CLUSTER)} -j RETURN"])),
    ("mark emptied", lambda b: (Table.NAT, [f"-F {chains.MARK_MASQ}"])),
    ("foreign SEP", lambda b: (Table.NAT, [":KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]"])),
    ("canary gone", lambda b: (Table.MANGLE, [f"-X {chains.CANARY}"])),
    (
        "filter flushed",
        lambda b: (Table.FILTER, [f"-F {chains.FORWARD}", "-F INPUT", "-F FORWARD"]),
    ),
    ("guard gone", lambda b: (Table.FILTER, [f"-F {chains.KUBELET_FIREWALL}"])),
]


@pytest.mark.parametrize(("about", "damage"), DAMAGE, ids=[about for about, _ in DAMAGE])
def test_foreign_damage_is_repaired(
    backend: IptablesBackend,
    about: str,
    damage: Callable[[IptablesBackend], tuple[Table, list[str]]],
) -> None:
    """What others changed is set right by the next sync that reads the kernel."""
    syncer = Syncer(backend)
    now = some(backend.family)
    syncer.sync(now)
    table, rows = damage(backend)
    run(backend, table, *rows)
    syncer.forget()
    syncer.sync(now)
    in_force(syncer)


def test_a_refused_change_is_made_anew_from_what_is_there(backend: IptablesBackend) -> None:
    """A foreign rule holds a chain that has to go: the change is refused, the kernel is as before;
    it is read, that chain is left empty, and all the rest is done, in the same sync."""
    syncer = Syncer(backend)
    now = some(backend.family)
    syncer.sync(now)
    chain = min(
        chain
        for chain in syncer.desired.blocks[_named(now, "svc0")].chains
        if chain.startswith(chains.CLUSTER)
    )
    run(backend, Table.NAT, ":FOREIGN - [0:0]", f"-A FOREIGN -j {chain}")
    after = successor(now, removed=(_named(now, "svc0"),))
    refused = backend.diff(backend.render(after, syncer.desired), backend.settled(syncer.desired))
    before = parse(backend.door.save())
    with pytest.raises(KernelError):
        backend.apply(refused)
    assert parse(backend.door.save()) == before
    applied = syncer.sync(after)
    assert (applied.full, applied.refused) == (True, ())
    kept = dict(backend.read().tables[Table.NAT])
    assert kept.pop(chain) == ""
    assert kept == backend.settled(syncer.desired).tables[Table.NAT]


#: Rules of other people, with which cleanup has to get along. The tools list no table that was
#: never used, so each has one.
FOREIGN = {
    Table.NAT: [":MINE - [0:0]", "-A MINE -j RETURN", "-A PREROUTING -j MINE"],
    Table.FILTER: [":MINE - [0:0]", "-A FORWARD -j MINE", "-A MINE -j ACCEPT"],
    Table.MANGLE: [":MINE - [0:0]", "-A OUTPUT -j MINE", "-A MINE -j ACCEPT"],
}


def given(backend: IptablesBackend) -> Saved:
    """Other people's rules, in force, as they are printed."""
    for table, rows in FOREIGN.items():
        run(backend, table, *rows)
    return parse(backend.door.save())


def test_cleanup_leaves_no_trace(backend: IptablesBackend) -> None:
    """After cleanup the kernel holds what it held before us; a second one is fine."""
    before = given(backend)
    backend.cleanup()
    assert parse(backend.door.save()) == before
    Syncer(backend).sync(some(backend.family))
    assert parse(backend.door.save()) != before
    for _ in range(2):
        backend.cleanup()
        assert parse(backend.door.save()) == before


@pytest.mark.parametrize(
    ("table", "chain"),
    [(Table.NAT, chains.MARK_MASQ), (Table.FILTER, chains.KUBELET_FIREWALL)],
)
def test_cleanup_keeps_shared_chains_that_others_use(
    backend: IptablesBackend, table: Table, chain: str
) -> None:
    """A shared chain stays with its rules while a foreign rule goes there, and no longer."""
    before = given(backend)
    Syncer(backend).sync(some(backend.family))
    rows = parse(backend.door.save())[table][chain]
    run(backend, table, f"-A MINE -j {chain}")
    backend.cleanup()
    after = parse(backend.door.save())
    assert after[table].pop(chain) == rows
    assert after[table]["MINE"].pop() == f"-A MINE -j {chain}"
    assert after == before
    run(backend, table, f"-D MINE -j {chain}")
    backend.cleanup()
    assert parse(backend.door.save()) == before


def test_cleanup_empties_a_chain_that_a_foreign_chain_holds(backend: IptablesBackend) -> None:
    """Somebody's chain goes to KUBE-SERVICES: the kernel keeps it, empty, and all else is gone."""
    before = given(backend)
    Syncer(backend).sync(some(backend.family))
    run(backend, Table.NAT, f"-A MINE -j {chains.SERVICES}")
    backend.cleanup()
    after = parse(backend.door.save())
    assert after[Table.NAT].pop(chains.SERVICES) == []
    after[Table.NAT]["MINE"].pop()
    assert after == before


def test_cleanup_takes_jumps_of_other_versions(backend: IptablesBackend) -> None:
    """A jump to us that an older proxy wrote differently is no reason to leave chains behind."""
    before = given(backend)
    Syncer(backend).sync(some(backend.family))
    run(backend, Table.FILTER, f"-A INPUT -j {chains.SERVICES}")
    backend.cleanup()
    assert parse(backend.door.save()) == before


def test_cleanup_leaves_the_kubelets_own_rules(backend: IptablesBackend) -> None:
    """A kubelet that keeps rules in the chain that we share keeps that chain, and the way to it."""
    theirs = f"-A {chains.KUBELET_FIREWALL} -m mark --mark 0x8000/0x8000 -j DROP"
    before = given(backend)
    Syncer(backend).sync(some(backend.family))
    run(backend, Table.FILTER, theirs)
    backend.cleanup()
    after = parse(backend.door.save())
    assert theirs in after[Table.FILTER].pop(chains.KUBELET_FIREWALL)
    for base in ("INPUT", "OUTPUT"):
        assert after[Table.FILTER][base].pop() == f"-A {base} -j {chains.KUBELET_FIREWALL}"
    assert after == before


def test_cleanup_sets_sysctls_back_before_rules_go(backend: IptablesBackend) -> None:
    """route_localnet without its guard would open 127.0.0.1 to neighbours."""
    Syncer(backend).sync(some(backend.family))
    name = "net/ipv4/conf/all/route_localnet"
    seen = []
    restore = backend.door.restore

    def watching(chunks: Iterable[bytes]) -> None:
        seen.append(backend.door.sysctl(name))
        restore(chunks)

    backend.door.restore = watching  # type: ignore[method-assign]
    backend.cleanup()
    assert seen
    assert set(seen) == {"0"}
