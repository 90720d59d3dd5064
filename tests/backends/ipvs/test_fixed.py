"""The fixed rules of IPVS mode: what the kernel makes of them, and which they are."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from kproxy.backends.ipvs import chains, sets
from kproxy.backends.ipvs.chains import LAYOUT
from kproxy.backends.ipvs.fixed import Context, RelayPorts, fixed_rules, wanted
from kproxy.backends.xtables import ruleset
from kproxy.backends.xtables.door import ToolDoor
from kproxy.backends.xtables.rules import BASE, Accept, Drop, Jump, Rule, Table
from kproxy.backends.xtables.ruleset import RulesHeld
from kproxy.backends.xtables.saved import parse
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.core.snapshot import LocalDetector, NodePortTargets, NodeSettings
from kproxy.kernel.ipset import IpSets
from tests.contract.namespaces import KERNEL, scratch

NAT, FILTER, MANGLE = Table.NAT, Table.FILTER, Table.MANGLE
V4, V6 = Family.IPV4, Family.IPV6

RANGE = {V4: "10.180.0.0/16", V6: "fd00:10::/64"}
EVERYBODY = {V4: "0.0.0.0/0", V6: "::/0"}
NODE = {V4: "192.168.0.2", V6: "2001:db8::1"}

#: Settings that give different rules.
CASES = {
    "plain": lambda family: NodeSettings("node1"),
    "pods by range": lambda family: NodeSettings(
        "node1", detector=LocalDetector(cidr=RANGE[family])
    ),
    "pods by bridge": lambda family: NodeSettings("node1", detector=LocalDetector(bridge="cbr0")),
    "pods by prefix": lambda family: NodeSettings("node1", detector=LocalDetector(prefix="veth")),
    "everybody a pod": lambda family: NodeSettings(
        "node1", detector=LocalDetector(cidr=EVERYBODY[family])
    ),
    "node ports on loopback": lambda family: NodeSettings(
        "node1", addresses=(NODE[family],), local_addresses=(NODE[family],)
    ),
    "masquerade all": lambda family: NodeSettings("node1", masquerade_all=True, masquerade_bit=31),
    "some node addresses": lambda family: NodeSettings(
        "node1", node_port_targets=NodePortTargets(all=False, addresses=(NODE[family],))
    ),
}


#: IPv4 only: see :mod:`kproxy.backends.ipvs.loopback`.
RELAY = {V4: RelayPorts(tcp=40001, udp=40002), V6: None}


def context(case: str, family: Family = V4, *, drop_invalid: bool = True) -> Context:
    return Context(family, CASES[case](family), drop_invalid=drop_invalid, relay=RELAY[family])


@pytest.mark.kernel
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize(("family", "variant"), KERNEL)
def test_the_kernel_gives_them_back(family: Family, variant: Variant, case: str) -> None:
    """Both tools print what was restored, so that the next sync finds nothing to do."""
    target = wanted(context(case, family))
    with scratch():
        with IpSets(family) as door:
            for name, kind in sets.kinds(family).items():
                door.create(name, kind)
        tool = ToolDoor(family, variant)
        patch = ruleset.diff(target, RulesHeld())
        assert patch is not None
        tool.restore([piece.encode() for piece in ruleset.call(patch)])
        held = ruleset.read(parse(tool.save()), LAYOUT, family)
    assert held == ruleset.settled(target)


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("case", list(CASES))
def test_rules_stand_in_chains_of_the_layout(case: str, family: Family) -> None:
    """Every rule in a chain that is swept with the mode; jumps to one of the same table, and each
    chain but the canaries is reached."""
    rules = [rule for content in fixed_rules(context(case, family)).values() for rule in content]
    assert all(LAYOUT.owns(rule.table, rule.chain) for rule in rules)
    reached = {
        (rule.table, rule.target.chain)
        for rule in (*rules, *LAYOUT.jumps)
        if isinstance(rule.target, Jump)
    }
    canaries = {(table, chains.CANARY) for table in Table}
    relay = {(NAT, chains.FROM_LOOPBACK)} if RELAY[family] is None else set()
    assert reached == set(chains.PLACES) - canaries - relay
    assert {(rule.table, rule.chain) for rule in rules} == reached


def test_every_set_is_asked_and_no_other() -> None:
    """And each by as many directions as its members have parts that a packet has."""
    rules = [rule for content in fixed_rules(context("pods by range")).values() for rule in content]
    asked = {match.name: len(match.directions) for rule in rules for match in rule.sets}
    parts = {name: 1 if kind in ("hash:ip", "bitmap:port") else len(kind.split(","))
             for name, kind in sets.KINDS.items()}  # fmt: skip
    assert asked == parts


@pytest.mark.parametrize("family", list(Family))
def test_a_bitmap_of_ports_is_asked_with_its_protocol(family: Family) -> None:
    """It knows none itself: udp must not be let in by the set of tcp."""
    for content in fixed_rules(context("plain", family)).values():
        for rule in content:
            for match in rule.sets:
                if sets.kinds(family)[match.name] == "bitmap:port":
                    assert rule.protocol
                    assert "NODE-PORT-UDP" not in match.name or rule.protocol == "udp"


@pytest.mark.parametrize("case", list(CASES))
def test_established_connections_are_never_dropped(case: str) -> None:
    """Chains that drop or refuse look at new connections only, whoever's jump led there."""
    made = fixed_rules(context(case))
    for place in ((FILTER, chains.PROXY_FIREWALL), (FILTER, chains.IPVS_FILTER),
                  (MANGLE, chains.IPVS_OUT_FILTER)):  # fmt: skip
        head = made[place][0]
        assert (head.ctstate, head.negated) == (("NEW",), ("ctstate",))


def _masquerades_cluster_ips(case: str) -> list[Rule]:
    match = sets.CLUSTER_IP
    return [
        rule
        for rule in fixed_rules(context(case))[NAT, chains.SERVICES]
        if rule.target == Jump(chains.MARK_MASQ) and rule.sets[0].name == match
    ]


@pytest.mark.parametrize(
    ("case", "who"),
    [
        ("plain", []),
        ("pods by range", [("source", RANGE[V4])]),
        ("pods by bridge", [("in_interface", "cbr0")]),
        ("pods by prefix", [("in_interface", "veth+")]),
        ("everybody a pod", []),
        ("masquerade all", [None]),
    ],
)
def test_who_reaches_cluster_ips_masqueraded(case: str, who: list[tuple[str, str] | None]) -> None:
    """Everybody but pods where pods can be told, everybody if the operator says so, else nobody."""
    rules = _masquerades_cluster_ips(case)
    told = [(rule.negated[0], getattr(rule, rule.negated[0])) if rule.negated else None
            for rule in rules]  # fmt: skip
    assert told == who


@pytest.mark.parametrize("case", [case for case in CASES if case != "everybody a pod"])
def test_outside_clients_are_dropped_without_a_local_endpoint(case: str) -> None:
    """Never pods, never the node itself."""
    (rule,) = (
        rule
        for rule in fixed_rules(context(case))[FILTER, chains.PROXY_FIREWALL]
        if rule.target == Drop() and rule.sets[0].name == sets.NO_LOCAL_ENDPOINT
    )
    assert "source_local" in rule.negated
    assert (len(rule.negated) == 2) == case.startswith("pods")


def test_nobody_is_outside_when_everybody_is_a_pod() -> None:
    content = fixed_rules(context("everybody a pod"))[FILTER, chains.PROXY_FIREWALL]
    names = [match.name for rule in content for match in rule.sets]
    assert sets.NO_LOCAL_ENDPOINT not in names
    assert sets.NO_ENDPOINT in names


def test_what_is_known_goes_no_further() -> None:
    """Behind each masquerading of a kind of VIP the walk through nat ends."""
    for chain in (chains.SERVICES, chains.LOAD_BALANCER, chains.NODE_PORT):
        content = fixed_rules(context("plain"))[NAT, chain]
        marks = [rule for rule in content if rule.target == Jump(chains.MARK_MASQ) and rule.sets]
        ends = {rule.sets for rule in content if rule.target == Accept()}
        named = {rule.sets for rule in marks if not rule.source_local and len(rule.sets) == 1}
        assert named <= ends


def test_invalid_packets_are_left_alone_where_conntrack_is_liberal() -> None:
    rules = fixed_rules(context("plain", drop_invalid=False))[FILTER, chains.FORWARD]
    assert all("INVALID" not in rule.ctstate for rule in rules)


def test_names_fit_the_kernel() -> None:
    """The kernel takes 28 characters of a chain's name, and base chains are nobody's."""
    for table, names in LAYOUT.own.items():
        assert all(len(name) <= 28 for name in names)
        assert names.isdisjoint(BASE[table])


def _from_loopback(case: str, **fields: object) -> list[str]:
    made = wanted(replace(context(case), **fields))  # type: ignore[arg-type]
    text = made.chains.get((NAT, chains.FROM_LOOPBACK), "")
    return [row.partition(" -j ")[2] for row in text.splitlines()]


def test_loopback_sources_go_to_the_relay() -> None:
    """By protocol; node ports of loopback that nobody serves go where IPVS refuses them, if those
    of loopback answer at all."""
    relayed = [f"DNAT --to-destination 127.0.0.1:{port}" for port in (40001, 40002)]
    refused = [f"DNAT --to-destination {NODE[V4]}"] * 2
    assert _from_loopback("node ports on loopback") == relayed + refused
    off = NodePortTargets(localhost=False)
    own = CASES["node ports on loopback"](V4)
    assert (
        _from_loopback("node ports on loopback", settings=replace(own, node_port_targets=off))
        == relayed
    )


def test_without_a_relay_loopback_sources_are_left_to_ipvs() -> None:
    """No chain, and no jump to one."""
    made = wanted(replace(context("node ports on loopback"), relay=None))
    assert (NAT, chains.FROM_LOOPBACK) not in made.chains
    assert chains.FROM_LOOPBACK not in made.chains[NAT, chains.SERVICES]
