"""What a service port becomes in IPVS mode: servers, members of sets, addresses."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from kproxy.backends.ipvs import sets
from kproxy.backends.ipvs.fixed import Context
from kproxy.backends.ipvs.held import settled
from kproxy.backends.ipvs.plan import (
    STAND_IN,
    Block,
    range_members,
    real_keys,
    server_key,
)
from kproxy.backends.ipvs.render import render
from kproxy.core.members import LAYOUTS, size_of, told
from kproxy.core.objects import Family, Protocol
from kproxy.core.servers import (
    MH_FALLBACK,
    MH_PORT,
    PERSISTENT,
    SCHEDULER_ANNOTATION,
    SH_FALLBACK,
    Scheduling,
)
from kproxy.core.snapshot import IpvsSettings, NodePortTargets, NodeSettings, PortPlan
from tests.backends.iptables.plans import (
    ADDRESSES,
    CLUSTER,
    LOCAL,
    MATRIX,
    V4,
    endpoints,
    port,
    settings,
    snapshot,
)

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP


def on_node(family: Family = V4, **fields: object) -> NodeSettings:
    return settings(family, local_addresses=(ADDRESSES[family][3],), **fields)


def block(plan: PortPlan, family: Family = V4, **fields: object) -> Block:
    return Block(plan, family, on_node(family, **fields))


@pytest.mark.parametrize("family", Family)
def test_every_way_in_is_a_server(family: Family) -> None:
    """Cluster IP, external IP, load-balancer address at the port, the node's address at the node
    port, all with the same real servers."""
    made = block(port(family=family, ways="cenl"), family)
    cluster_ip, external, balancer, node, _, _ = ADDRESSES[family]
    assert set(made.servers) == {
        server_key(cluster_ip, 80, TCP),
        server_key(external, 80, TCP),
        server_key(balancer, 80, TCP),
        server_key(node, 30080, TCP),
    }
    assert {virtual.reals for virtual in made.servers.values()} == {
        real_keys(endpoints(family, 2), family)
    }


#: (pods, of them here, internal, external) -> endpoints behind the cluster IP and behind the
#: others, and which sets close them: for everybody, for clients outside.
POLICIES = [
    ((2, 1, CLUSTER, CLUSTER), 2, 2, "", ""),
    ((2, 1, LOCAL, CLUSTER), 1, 2, "", ""),
    ((2, 0, LOCAL, CLUSTER), 0, 2, "cluster", ""),
    ((2, 1, CLUSTER, LOCAL), 2, 1, "", ""),
    ((2, 0, CLUSTER, LOCAL), 2, 2, "", "external"),
    ((2, 0, LOCAL, LOCAL), 0, 2, "cluster", "external"),
    ((0, 0, CLUSTER, CLUSTER), 0, 0, "", ""),
    ((0, 0, LOCAL, LOCAL), 0, 0, "", ""),
]


@pytest.mark.parametrize(("case", "inside", "outside", "nobody", "no_outsider"), POLICIES)
def test_policies(
    case: tuple[int, int, object, object],
    inside: int,
    outside: int,
    nobody: str,
    no_outsider: str,
) -> None:
    """Local policy takes this node's endpoints; without any, the cluster's for clients inside,
    while what is closed is in a set. Without any anywhere the server stays, and refuses."""
    pods, near, internal, external = case
    plan = port(pods=pods, local_pods=near, ways="cenl", internal=internal, external=external)  # type: ignore[arg-type]
    made = block(plan)
    inner = {server_key(plan.cluster_ip, 80, TCP)}
    outer = set(made.servers) - inner
    by_name = {"": set(), "cluster": inner, "external": outer}
    assert {len(made.servers[key].reals) for key in inner} == {inside}
    assert {len(made.servers[key].reals) for key in outer} == {outside}
    assert set(made.members.get(sets.NO_ENDPOINT, ())) == by_name[nobody]
    assert set(made.members.get(sets.NO_LOCAL_ENDPOINT, ())) == by_name[no_outsider]


#: (scheduler of the node, annotation, affinity) -> how the server schedules
SCHEDULING = [
    ("rr", "", None, Scheduling("rr")),
    ("mh", "", None, Scheduling("mh", MH_PORT | MH_FALLBACK)),
    ("sh", "", 600, Scheduling("sh", SH_FALLBACK | PERSISTENT, 600)),
    ("rr", "lc", None, Scheduling("lc")),
    ("rr", "mh", 5, Scheduling("mh", MH_PORT | MH_FALLBACK | PERSISTENT, 5)),
]


@pytest.mark.parametrize(("node", "own", "affinity", "wanted"), SCHEDULING)
def test_scheduling(node: str, own: str, affinity: int | None, wanted: Scheduling) -> None:
    """The service's scheduler beats the node's; affinity is persistence."""
    notes = ((SCHEDULER_ANNOTATION, own),) if own else ()
    plan = replace(port(affinity=affinity), annotations=notes)
    made = block(plan, ipvs=IpvsSettings(scheduler=node))
    assert [virtual.scheduling for virtual in made.servers.values()] == [wanted]


@pytest.mark.parametrize(("protocol", "kind"), [(TCP, 2), (UDP, 2), (SCTP, 7)])
@pytest.mark.parametrize("policy", [CLUSTER, LOCAL])
def test_node_ports_are_in_the_set_of_their_protocol(
    protocol: Protocol, kind: int, policy: object
) -> None:
    """Ports alone, but for SCTP; Local policy is in a set more."""
    made = block(port(ways="n", protocol=protocol, external=policy))  # type: ignore[arg-type]
    others = (sets.LOOP_BACK, sets.FROM_LOOPBACK)
    members = {name: found for name, found in made.members.items() if name not in others}
    both = [sets.NODE_PORT[protocol], sets.NODE_PORT_LOCAL[protocol]]
    assert sorted(members) == sorted(both[:1] if policy is CLUSTER else both)
    assert {len(member) for found in members.values() for member in found} == {kind}


def test_node_ports_never_on_loopback() -> None:
    """IPVS lets nothing from a loopback address out of the node."""
    targets = NodePortTargets(all=False, addresses=("192.168.0.2", "127.0.0.1"))
    made = block(port(ways="n"), node_port_targets=targets)
    assert set(made.servers) == {server_key("192.168.0.2", 30080, TCP)}


#: (ways, how many pods, of them here, policies, protocol, node ports answer at) -> what a client
#: with a loopback source reaches by the relay
FROM_LOOPBACK = [
    ("cenl", 2, 1, (CLUSTER, CLUSTER), TCP, {},
     "172.30.0.41,tcp:80 EXT,tcp:80 LB,tcp:80 192.168.0.2,tcp:30080 127.0.0.0/8,tcp:30080"),
    ("cn", 2, 1, (CLUSTER, CLUSTER), UDP, {},
     "172.30.0.41,udp:80 192.168.0.2,udp:30080 127.0.0.0/8,udp:30080"),
    ("cenl", 0, 0, (CLUSTER, CLUSTER), TCP, {}, ""),
    ("cn", 2, 0, (LOCAL, LOCAL), TCP, {}, "192.168.0.2,tcp:30080 127.0.0.0/8,tcp:30080"),
    ("cn", 2, 0, (LOCAL, CLUSTER), TCP, {}, "192.168.0.2,tcp:30080 127.0.0.0/8,tcp:30080"),
    ("cn", 2, 1, (CLUSTER, CLUSTER), SCTP, {}, ""),
    ("n", 2, 1, (CLUSTER, CLUSTER), TCP, {"localhost": False}, "192.168.0.2,tcp:30080"),
    ("n", 2, 1, (CLUSTER, CLUSTER), TCP, {"all": False, "addresses": ("192.168.0.9",)},
     "192.168.0.9,tcp:30080 127.0.0.0/8,tcp:30080"),
    ("n", 2, 1, (CLUSTER, CLUSTER), TCP, {"all": False},
     "192.0.0.8,tcp:30080 127.0.0.0/8,tcp:30080"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("ways", "pods", "here", "policies", "protocol", "targets", "wanted"), FROM_LOOPBACK
)
def test_what_loopback_sources_reach_by_the_relay(
    ways: str,
    pods: int,
    here: int,
    policies: tuple[object, object],
    protocol: Protocol,
    targets: dict[str, object],
    wanted: str,
) -> None:
    """What has an endpoint for the node itself, node ports of loopback only where they answer."""
    internal, external = policies
    plan = port(
        pods=pods, local_pods=here, ways=ways, internal=internal, external=external,
        protocol=protocol,
    )  # type: ignore[arg-type]  # fmt: skip
    names = {"EXT": "".join(plan.external_ips), "LB": "".join(plan.load_balancer_ips)}
    if plan.cluster_ip and "c" not in ways:
        plan = replace(plan, cluster_ip="")
    made = block(plan, node_port_targets=NodePortTargets(**targets))  # type: ignore[arg-type]
    found = made.members.get(sets.FROM_LOOPBACK, ())
    for short, address in names.items():
        wanted = wanted.replace(f"{short},", f"{address},")
    assert sorted(told("hash:net,port", V4, one) for one in found) == sorted(wanted.split())


def test_loopback_clients_are_of_ipv4() -> None:
    """Nobody serves at ::1, and its packets are translated nowhere."""
    assert sets.FROM_LOOPBACK not in block(port(family=Family.IPV6), Family.IPV6).members


def test_node_ports_of_loopback_alone_stand_at_an_address_of_nobody() -> None:
    """It is bound, and closed to others as VIPs are; without node ports it is not there."""
    targets = NodePortTargets(all=False)
    made = block(port(ways="n"), node_port_targets=targets)
    assert set(made.servers) == {server_key(STAND_IN, 30080, TCP)}
    assert STAND_IN in made.addresses
    assert STAND_IN in {told("hash:ip", V4, one) for one in made.members[sets.IPVS_IPS]}
    assert STAND_IN not in block(port(ways="c"), node_port_targets=targets).addresses
    nowhere = NodePortTargets(all=False, localhost=False)
    assert not block(port(ways="n"), node_port_targets=nowhere).servers


def test_an_address_of_the_node_is_not_bound() -> None:
    """An external IP that the node has anyway stays where it is, other daemons' ports with it."""
    plan = replace(port(ways="ce"), external_ips=("192.168.0.2",))
    made = block(plan)
    assert set(made.addresses) == {plan.cluster_ip}
    assert [told("hash:ip", V4, one) for one in made.members[sets.IPVS_IPS]] == [plan.cluster_ip]


@pytest.mark.parametrize("family", Family)
def test_source_ranges(family: Family) -> None:
    """VIPs with ranges, the ranges, and the VIP itself when the node is permitted."""
    made = block(port(family=family, ways="l", restricted=True), family)
    balancer, ranges = ADDRESSES[family][2], ADDRESSES[family][5]
    said = {
        name: {told(sets.KINDS[name], family, one) for one in made.members[name]}
        for name in (
            sets.LOAD_BALANCER_FIREWALL,
            sets.LOAD_BALANCER_SOURCE_RANGE,
            sets.LOAD_BALANCER_SOURCE_IP,
        )
    }
    vip = f"{balancer},tcp:80"
    assert said == {
        sets.LOAD_BALANCER_FIREWALL: {vip},
        sets.LOAD_BALANCER_SOURCE_RANGE: {f"{vip},{text}" for text in ranges},
        sets.LOAD_BALANCER_SOURCE_IP: {f"{vip},{balancer}"},
    }


def test_nobody_is_kept_from_a_refusal() -> None:
    """Without endpoints everybody is refused at once, permitted or not."""
    made = block(port(ways="l", restricted=True, pods=0, local_pods=0))
    assert sets.LOAD_BALANCER_FIREWALL not in made.members


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("10.0.0.0/8", [b"\x0a\0\0\0\x08"]),
        ("0.0.0.0/0", [b"\0\0\0\0\x01", b"\x80\0\0\0\x01"]),
        ("::/0", [bytes(16) + b"\x01", b"\x80" + bytes(15) + b"\x01"]),
    ],
)
def test_ranges_as_members(text: str, members: list[bytes]) -> None:
    """The kernel takes no prefix of 0: two halves are the same."""
    assert range_members(text) == members


@pytest.mark.parametrize(("family", "plan"), MATRIX[::7], ids=str)
def test_members_are_as_long_as_their_kind_says(family: Family, plan: PortPlan) -> None:
    """Whatever the plan, each member fits its set, and no set has the same one twice."""
    for name, members in block(plan, family).members.items():
        size = sum(size_of(part, family) for part in LAYOUTS[sets.KINDS[name]])
        assert {len(member) for member in members} == {size}
        assert len(set(members)) == len(members)


def test_an_own_address_beats_a_node_port_there() -> None:
    """An external IP that is the node's, at the number of another service's node port: it stays
    its owner's, and falls to the node port when the owner goes."""
    owner = replace(port("a", ways="e", number=30080), external_ips=("192.168.0.2",))
    other = port("b", ways="n", pods=3)
    key = server_key("192.168.0.2", 30080, TCP)
    both = snapshot(other, owner, settings_=on_node())
    first = render(both, Context(V4, both.settings), (6, 1), None)
    assert first.servers[key][1] == owner.name
    assert key not in first.blocks[other.name].servers
    alone = replace(
        both, ports={other.name: other}, generation=2, base=1, removed=frozenset({owner.name}),
        changed=frozenset(),
    )  # fmt: skip
    after = render(alone, Context(V4, both.settings), (6, 1), first)
    assert after.servers[key][1] == other.name
    assert settled(after) == settled(render(alone, Context(V4, both.settings), (6, 1), None))
