"""The change from what the kernel holds to what IPVS mode wants: every attribute, in order."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from kproxy.backends.ipvs import sets
from kproxy.backends.ipvs.diff import Patch, diff, excluded, leaving
from kproxy.backends.ipvs.fixed import Context
from kproxy.backends.ipvs.held import Held, settled
from kproxy.backends.ipvs.plan import server_key
from kproxy.backends.ipvs.render import Desired, render
from kproxy.core.objects import Protocol
from kproxy.core.servers import (
    MASQUERADE,
    PERSISTENT,
    ROUTE,
    HeldReal,
    HeldServer,
    Order,
    Scheduling,
    Verb,
)
from kproxy.core.snapshot import IpvsSettings, PortPlan, Snapshot
from tests.backends.iptables.plans import V4, port, settings, snapshot, successor

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP
KERNEL = (6, 1)

ONE, TWO, GONE = (bytes((10, 180, 0, last)) + b"\0\x50" for last in (1, 2, 9))


def now(*plans: PortPlan, **fields: object) -> Snapshot:
    chosen = settings(local_addresses=("192.168.0.2",), **fields)
    return snapshot(*plans, settings_=chosen)


def whole(wanted: Snapshot, previous: Desired | None = None) -> Desired:
    return render(wanted, Context(V4, wanted.settings), KERNEL, previous)


def read(desired: Desired, **other: object) -> Held:
    """What a kernel that is as it should be gives, but for ``other``."""
    held = settled(desired)
    content = {
        "servers": held.servers,
        "sets": {name: set(members) for name, members in held.sets.items() if members is not None},
        "addresses": set(held.addresses or ()),
        "rules": held.rules,
        "sysctls": dict(desired.sysctls),
        "timeouts": (900, 120, 300),
    }
    return Held(**{**content, **other})  # type: ignore[arg-type]


def patch_of(desired: Desired, held: Held) -> Patch:
    patch = diff(desired, held)
    assert patch is not None
    return patch


def key_of(plan: PortPlan) -> bytes:
    return server_key(plan.cluster_ip, plan.port, plan.protocol)


def test_nothing_to_do() -> None:
    """Neither against what was read nor against what is believed."""
    desired = whole(now(port(ways="cenl", restricted=True)))
    assert diff(desired, read(desired)) is None
    assert diff(desired, settled(desired)) is None
    assert diff(whole(desired.snapshot), settled(desired)) is None


def test_an_empty_kernel_gets_all_of_it() -> None:
    """Sets are made, and the dummy device even for no address at all."""
    nothing = whole(now())
    patch = patch_of(nothing, Held())
    assert all((patch.first, patch.full, patch.device))
    assert {change.name for change in patch.sets} == sets.kinds(V4).keys()
    assert all(change.make for change in patch.sets)
    assert {name for name, _ in patch.sysctls} == {name for name, _ in nothing.sysctls}
    desired = whole(now(port()))
    orders = patch_of(desired, Held()).orders
    key = key_of(port())
    assert orders == (
        Order(Verb.ADD_SERVER, key, scheduling=Scheduling("rr")),
        Order(Verb.ADD_REAL, key, ONE),
        Order(Verb.ADD_REAL, key, TWO),
    )


#: What is held of a server with the two real ones ONE and TWO -> (orders about it, what is let go).
FINE = HeldReal(1, MASQUERADE, 3, 4)
ATTRIBUTES = {
    "scheduler": (
        (Scheduling("lc"), 32, {ONE: FINE, TWO: FINE}),
        [(Verb.SET_SERVER, b"", 1)],
        [],
    ),
    "flags": (
        (Scheduling("rr", PERSISTENT, 60), 32, {ONE: FINE, TWO: FINE}),
        [(Verb.SET_SERVER, b"", 1)],
        [],
    ),
    "netmask": (
        (Scheduling("rr"), 24, {ONE: FINE, TWO: FINE}),
        [(Verb.SET_SERVER, b"", 1)],
        [],
    ),
    "weight": (
        (Scheduling("rr"), 32, {ONE: FINE, TWO: HeldReal(0)}),
        [(Verb.SET_REAL, TWO, 1)],
        [],
    ),
    "a heavier weight": (
        (Scheduling("rr"), 32, {ONE: HeldReal(7), TWO: FINE}),
        [(Verb.SET_REAL, ONE, 1)],
        [],
    ),
    "forwarding": (
        (Scheduling("rr"), 32, {ONE: HeldReal(1, ROUTE), TWO: FINE}),
        [(Verb.SET_REAL, ONE, 1)],
        [],
    ),
    "connections": ((Scheduling("rr"), 32, {ONE: FINE, TWO: HeldReal(1)}), [], []),
    "one more, in use": (
        (Scheduling("rr"), 32, {ONE: FINE, TWO: FINE, GONE: FINE}),
        [],
        [GONE],
    ),
    "one more, that drains already": (
        (Scheduling("rr"), 32, {ONE: FINE, TWO: FINE, GONE: HeldReal(0, MASQUERADE, 1, 0)}),
        [],
        [],
    ),
    "one less": ((Scheduling("rr"), 32, {ONE: FINE}), [(Verb.ADD_REAL, TWO, 1)], []),
    "one less, another drains": (
        (Scheduling("rr"), 32, {ONE: FINE, GONE: HeldReal(0, MASQUERADE, 1, 0)}),
        [(Verb.ADD_REAL, TWO, 1)],
        [],
    ),
}


@pytest.mark.parametrize("case", ATTRIBUTES.values(), ids=ATTRIBUTES)
def test_every_attribute_of_a_server(case: tuple[object, list[object], list[bytes]]) -> None:
    """Edited where it stands; one that drains is nobody's business here, but it is told."""
    (scheduling, prefix, reals), wanted, gone = case  # type: ignore[misc]
    desired, key = whole(now(port())), key_of(port())
    held = read(desired, servers={key: HeldServer(scheduling, prefix, reals)})
    patch = diff(desired, held)
    made = (
        [] if patch is None else [(order.verb, order.real, order.weight) for order in patch.orders]
    )
    assert made == wanted
    assert [real for _, real in (patch.let_go if patch else ())] == gone
    assert not (patch and patch.removals)
    drains = [key] * any(not real.weight for each, real in reals.items() if each == GONE)
    assert [server for server, _ in leaving(desired, held)] == drains


@pytest.mark.parametrize("protocol", [TCP, UDP, SCTP])
@pytest.mark.parametrize("believed", [True, False])
def test_an_endpoint_goes(protocol: Protocol, believed: bool) -> None:
    """TCP is let go, whatever is known of connections; what UDP and SCTP sent there is lost
    anyway, so it is deleted at once."""
    one = now(port(protocol=protocol))
    before = whole(one)
    after = whole(successor(one, port(protocol=protocol, pods=1)), before)
    patch = patch_of(after, settled(before) if believed else read(before))
    key = key_of(port(protocol=protocol))
    if protocol is TCP:
        assert (patch.orders, patch.let_go) == ((), ((key, TWO),))
    else:
        assert (patch.orders, patch.let_go) == ((Order(Verb.REMOVE_REAL, key, TWO),), ())
    assert patch.full is not believed


@pytest.mark.parametrize("believed", [True, False])
def test_a_service_goes(believed: bool) -> None:
    """The server at once, with all that it has; its address, and what its sets had."""
    one = now(port("a"), replace(port("b", pods=3), cluster_ip="172.30.0.42"))
    before = whole(one)
    gone = next(name for name in one.ports if name.name == "b")
    after = whole(successor(one, removed=(gone,)), before)
    patch = patch_of(after, settled(before) if believed else read(before))
    key = server_key("172.30.0.42", 80, TCP)
    assert patch.removals == (Order(Verb.REMOVE_SERVER, key),)
    assert (patch.orders, patch.let_go, patch.bound) == ((), (), frozenset())
    assert patch.unbound == {"172.30.0.42"}
    went = {change.name: set(change.gone) for change in patch.sets}
    assert went == {
        sets.LOOP_BACK: {bytes((10, 180, 0, 3)) + b"\0\x50\x06" + bytes((10, 180, 0, 3))},
        sets.CLUSTER_IP: {key},
        sets.IPVS_IPS: {bytes((172, 30, 0, 42))},
        sets.FROM_LOOPBACK: {key + bytes((32,))},
    }
    assert patch.owner(key) == (gone if believed else None)
    assert list(patch.ports()) == []


STRANGE = HeldServer(Scheduling("wlc"), 32, {GONE: HeldReal(5)})
EXCLUDED = IpvsSettings(exclude_cidrs=("192.0.2.0/24", "172.30.0.0/24"))


def test_servers_of_others() -> None:
    """They go, but for those in excludeCIDRs; ours are kept as they should be in there as well."""
    desired = whole(now(port(), ipvs=EXCLUDED))
    spared, other = server_key("192.0.2.7", 80, TCP), server_key("198.51.100.9", 80, UDP)
    mine = key_of(port())
    assert excluded(mine, EXCLUDED)
    patch = patch_of(desired, read(desired, servers={spared: STRANGE, other: STRANGE}))
    assert [order.server for order in patch.removals] == [other]
    assert {order.server for order in patch.orders} == {mine}


def test_our_own_servers_in_excluded_ranges_go_with_their_service() -> None:
    """After a good sync we know whose they were."""
    one = now(port(), ipvs=EXCLUDED)
    before = whole(one)
    after = whole(successor(one, removed=(port().name,)), before)
    assert [order.server for order in patch_of(after, settled(before)).removals] == [key_of(port())]


def test_settings_change_what_is_believed() -> None:
    """Another scheduler edits all servers in place, and makes nothing anew."""
    one = now(port("a"), replace(port("b"), cluster_ip="172.30.0.42"))
    two = replace(
        one, settings=replace(one.settings, ipvs=IpvsSettings(scheduler="mh")), generation=2
    )
    before = whole(one)
    patch = patch_of(whole(two, before), settled(before))
    assert {order.verb for order in patch.orders} == {Verb.SET_SERVER}
    assert len(patch.orders) == 2
    assert (patch.removals, patch.sets, patch.bound, patch.full) == ((), (), frozenset(), False)


def test_the_mark_is_in_rules_only() -> None:
    """Another bit for masquerading writes rules and no server."""
    one = now(port())
    two = replace(one, settings=replace(one.settings, masquerade_bit=15), generation=2)
    before = whole(one)
    patch = patch_of(whole(two, before), settled(before))
    assert patch.rules
    assert (patch.orders, patch.sets, patch.sysctls) == ((), (), ())


@pytest.mark.parametrize(
    ("asked", "held", "wanted"),
    [
        ((0, 0, 0), (900, 120, 300), None),
        ((600, 0, 0), (900, 120, 300), (600, 0, 0)),
        ((900, 120, 0), (900, 120, 300), None),
        ((900, 120, 60), (900, 120, 300), (900, 120, 60)),
    ],
)
def test_timeouts(asked: object, held: object, wanted: object) -> None:
    """Those that are asked for; 0 leaves the kernel's."""
    tcp, fin, udp = asked  # type: ignore[misc]
    chosen = IpvsSettings(tcp_timeout=tcp, tcp_fin_timeout=fin, udp_timeout=udp)
    desired = whole(now(port(), ipvs=chosen))
    patch = diff(desired, read(desired, timeouts=held))
    assert (patch and patch.timeouts) == wanted
    before = whole(now(port()))
    following = diff(desired, settled(before))
    assert (following and following.timeouts) == (asked if any(asked) else None)  # type: ignore[call-overload]


def test_members_addresses_and_sysctls_of_others() -> None:
    """Too much goes, too little comes, in sets and on the device; a sysctl is set back."""
    desired = whole(now(port()))
    held = read(desired)
    name = sets.CLUSTER_IP
    stray = server_key("198.51.100.9", 1, TCP)
    other = {
        "sets": {**held.sets, name: {stray}, sets.NO_ENDPOINT: None},
        "addresses": {"198.51.100.9"},
        "sysctls": {**held.sysctls, "net/ipv4/vs/conntrack": "0"},
    }
    patch = patch_of(desired, read(desired, **other))
    by_name = {change.name: change for change in patch.sets}
    assert by_name.keys() == {name, sets.NO_ENDPOINT}
    assert (by_name[name].added, by_name[name].gone) == ({key_of(port())}, {stray})
    assert by_name[sets.NO_ENDPOINT].make
    assert (patch.bound, patch.unbound) == ({port().cluster_ip}, {"198.51.100.9"})
    assert patch.sysctls == (("net/ipv4/vs/conntrack", "1"),)
    assert (patch.orders, patch.removals, patch.rules) == ((), (), None)


def test_whose_it_is() -> None:
    """A refused server, member or address is told by the service ports that need it; ports that
    share one are all named."""
    web, dns = port("web", ways="cn"), replace(port("dns", protocol=UDP), port=53)
    other = replace(port("other", pods=3), cluster_ip="172.30.0.42")
    patch = patch_of(whole(now(web, dns, other)), Held())
    assert patch.owner(server_key("192.168.0.2", 30080, TCP)) == web.name
    assert patch.owner(server_key("192.0.2.1", 1, TCP)) is None
    assert set(patch.owners_of_address(web.cluster_ip)) == {web.name, dns.name}
    shared = ONE[:4] + b"\0\x50\x06" + ONE[:4]
    assert set(patch.owners_of_member(sets.LOOP_BACK, shared)) == {web.name, other.name}
    assert set(patch.ports()) == {web.name, dns.name, other.name}


def test_touched_by_a_member_alone() -> None:
    """When all that is missing is a member or an address, those that have it are named."""
    web, other = port("web"), replace(port("other", pods=3), cluster_ip="172.30.0.42")
    desired = whole(now(web, other))
    held = read(desired)
    third = bytes((10, 180, 0, 3))
    loop_back = held.sets[sets.LOOP_BACK] - {third + b"\0\x50\x06" + third}  # type: ignore[operator]
    patch = patch_of(desired, read(desired, sets={**held.sets, sets.LOOP_BACK: loop_back}))
    assert list(patch.ports()) == [other.name]
    patch = patch_of(desired, read(desired, addresses={"172.30.0.42"}))
    assert list(patch.ports()) == [web.name]


def test_an_address_that_passes_to_a_node_port() -> None:
    """The server is edited for its new owner, whom the change does not name, not made anew."""
    owner = replace(
        port("own", ways="e", pods=1), external_ips=("192.168.0.2",), port=30080, cluster_ip=""
    )
    heir = replace(port("np", ways="n"), cluster_ip="")
    one = now(owner, heir)
    before = whole(one)
    after = whole(successor(one, removed=(owner.name,)), before)
    patch = patch_of(after, settled(before))
    key = server_key("192.168.0.2", 30080, TCP)
    assert patch.orders == (Order(Verb.ADD_REAL, key, TWO),)
    assert patch.removals == ()
    assert patch.owner(key) == heir.name


def test_held_compares_what_is_ours() -> None:
    """Connections come and go; a weight or a member is a difference."""
    desired, key = whole(now(port())), key_of(port())
    server = settled(desired).servers[key]
    busy = replace(server, reals={real: HeldReal(1, MASQUERADE, 9, 9) for real in (ONE, TWO)})
    assert read(desired, servers={key: busy}) == settled(desired)
    drains = replace(server, reals={**server.reals, GONE: HeldReal(0, MASQUERADE, 1, 0)})
    assert read(desired, servers={key: drains}) == settled(desired)
    for reals in (
        {ONE: FINE},
        {ONE: FINE, TWO: HeldReal(2)},
        {ONE: FINE, TWO: HeldReal(0)},
        {ONE: FINE, TWO: HeldReal(1, ROUTE)},
    ):
        assert read(desired, servers={key: replace(server, reals=reals)}) != settled(desired)
    assert read(desired, addresses=None) != settled(desired)
