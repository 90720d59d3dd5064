"""The rules of IPVS mode: they depend on this node's settings only, services stand in sets. Pure.

IPVS translates destinations; rules do the rest, for all services at once::

    nat     KUBE-SERVICES         who is masqueraded, by kind of VIP and policy: a mark
              ├─ KUBE-FROM-LOOPBACK  to a relay, since IPVS lets no loopback source out (IPv4)
              ├─ KUBE-LOAD-BALANCER
              └─ KUBE-NODE-PORT   what is addressed to this node
            KUBE-POSTROUTING      the marked and the hairpins leave with this node's address
    filter  KUBE-NODE-PORT        health checks are let in
            KUBE-PROXY-FIREWALL   source ranges, and Local policy without a local endpoint
            KUBE-IPVS-FILTER      other ports of VIPs are refused: the node has the addresses, and
                                  would answer there
            KUBE-FORWARD          replies are let through, but for those that are INVALID
    mangle  KUBE-IPVS-OUT-FILTER  KUBE-PROXY-FIREWALL for what the node itself sends

New connections are judged, others are not: those that IPVS already serves go on.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from kproxy.backends.ipvs import chains, sets
from kproxy.backends.ipvs.plan import loopback_target
from kproxy.backends.xtables.detector import of_others, of_pods
from kproxy.backends.xtables.layout import Place
from kproxy.backends.xtables.rules import (
    Accept,
    Dnat,
    Drop,
    Jump,
    Mark,
    Masquerade,
    Reject,
    Return,
    Rule,
    SetMark,
    SetMatch,
    Table,
    Target,
)
from kproxy.backends.xtables.ruleset import Ruleset, ruleset
from kproxy.backends.xtables.text import host
from kproxy.core.objects import Family, Protocol, Value
from kproxy.core.snapshot import NodeSettings

_LOOPBACK = {Family.IPV4: "127.0.0.0/8", Family.IPV6: "::1/128"}
_TO_MARK = Jump(chains.MARK_MASQ)
_ADDRESS_PORT = ("dst", "dst")


class RelayPorts(Value, frozen=True):
    """Where on 127.0.0.1 the relay takes what comes from loopback."""

    tcp: int
    udp: int


class Context(Value, frozen=True):
    """What the rules depend on. ``random_fully``: the tool knows that flag of MASQUERADE.
    ``drop_invalid``: packets of endpoints that conntrack calls INVALID are dropped when
    forwarded. ``relay`` None: loopback sources are left to IPVS."""

    family: Family
    settings: NodeSettings
    random_fully: bool = True
    drop_invalid: bool = True
    relay: RelayPorts | None = None


def wanted(context: Context) -> Ruleset:
    """The rules as text, with the jumps to them."""
    return ruleset(chains.LAYOUT, fixed_rules(context), context.family)


def fixed_rules(context: Context) -> dict[Place, list[Rule]]:
    """Every chain of the mode with its rules; without a relay there is none that leads to one."""
    unused = (Table.NAT, chains.FROM_LOOPBACK) if context.relay is None else None
    rules: dict[Place, list[Rule]] = {place: [] for place in chains.PLACES if place != unused}
    for rule in (
        *_nat(context),
        *_from_loopback(context),
        *_postrouting(context),
        *_forward(context),
        *_firewall(context),
        *_own_firewall(context),
        *_access(context),
    ):
        rules[rule.table, rule.chain].append(rule)
    return rules


def _ask(name: str, family: Family, *directions: str) -> SetMatch:
    """The match of a set; of destination address and port when nothing is said."""
    return SetMatch(sets.in_family(name, family), directions or _ADDRESS_PORT)


# --- nat: who is masqueraded --------------------------------------------------------------------


def _nat(context: Context) -> Iterator[Rule]:
    family, bit = context.family, context.settings.masquerade_mark
    yield Rule(Table.NAT, chains.MARK_MASQ, SetMark(bit, bit))
    if context.relay is not None:
        yield _in_services(Jump(chains.FROM_LOOPBACK), source=_LOOPBACK[family])
    # IPVS takes them to endpoints on this node only, where they need no other address.
    yield _in_services(Return(), source=_LOOPBACK[family])
    # The node picks a VIP as its source when it connects to one, since the VIPs are its own: an
    # endpoint elsewhere could not answer that.
    from_vip = _ask(sets.IPVS_IPS, family, "src"), _ask(sets.IPVS_IPS, family, "dst")
    yield _in_services(_TO_MARK, "the node itself, from a service IP", sets=from_vip)
    yield from _cluster_ips(context)
    yield from _external(context, chains.SERVICES, sets.EXTERNAL_IP, sets.EXTERNAL_IP_LOCAL)
    yield _in_services(
        Jump(chains.LOAD_BALANCER),
        "Kubernetes service lb portal",
        sets=(_ask(sets.LOAD_BALANCER, family),),
    )
    yield from _external(
        context, chains.LOAD_BALANCER, sets.LOAD_BALANCER, sets.LOAD_BALANCER_LOCAL
    )
    yield from _to_node_ports(context)
    for protocol in Protocol:
        every, local = sets.NODE_PORT[protocol], sets.NODE_PORT_LOCAL[protocol]
        yield from _external(context, chains.NODE_PORT, every, local, protocol)


def _in_services(
    target: Target, comment: str = "", *, source: str = "", sets: tuple[SetMatch, ...] = ()
) -> Rule:
    return Rule(Table.NAT, chains.SERVICES, target, comment=comment, source=source, sets=sets)


def _from_loopback(context: Context) -> Iterator[Rule]:
    """IPVS drops what has a loopback source and an endpoint elsewhere to go to
    (crosses_local_route_boundary in net/netfilter/ipvs/ip_vs_xmit.c). A relay on this node takes it
    instead, and asks again with another source.

    What no endpoint serves is left to IPVS, which refuses it; at a node port of loopback there is
    no virtual server to do so, but there is one at the node's address.
    """
    if context.relay is None:
        return
    place, family = (Table.NAT, chains.FROM_LOOPBACK), context.family
    ports = {Protocol.TCP: context.relay.tcp, Protocol.UDP: context.relay.udp}
    for protocol, port in ports.items():
        yield Rule(
            *place,
            Dnat(f"127.0.0.1:{port}"),
            comment="served by way of a relay",
            protocol=protocol.value.lower(),
            sets=(_ask(sets.FROM_LOOPBACK, family),),
        )
    target = loopback_target(context.settings)
    if not target:
        return
    for protocol in ports:
        yield Rule(
            *place,
            Dnat(target),
            comment="node ports on loopback that nobody serves",
            protocol=protocol.value.lower(),
            destination=_LOOPBACK[family],
            sets=(_ask(sets.NODE_PORT[protocol], family, "dst"),),
        )


def _cluster_ips(context: Context) -> Iterator[Rule]:
    """policy.masquerades_internal as rules. What is known goes no further: nobody else's rules for
    local addresses (host ports, say) are to translate it."""
    settings = context.settings
    note = "Kubernetes service cluster ip + port for masquerade purpose"
    known = (_ask(sets.CLUSTER_IP, context.family),)
    rule = _in_services(_TO_MARK, note, sets=known)
    if settings.masquerade_all:
        yield rule
    elif settings.detector is not None:
        others = of_others(rule, settings.detector)
        yield from () if others is None else (others,)
    yield _in_services(Accept(), sets=known)


def _external(
    context: Context, chain: str, every: str, local: str, protocol: Protocol | None = None
) -> Iterator[Rule]:
    """policy.EXTERNAL as rules, for the VIPs of set ``every`` or, of Local policy, in ``local``.

    With a ``protocol`` the sets are those of its node ports, which know no address where they are
    bitmaps.
    """
    bitmap = sets.KINDS[every] == "bitmap:port"

    def rule(name: str, target: Target, comment: str = "") -> Rule:
        match = _ask(name, context.family, *(("dst",) if bitmap else ()))
        word = protocol.value.lower() if protocol is not None else ""
        return Rule(Table.NAT, chain, target, comment=comment, protocol=word, sets=(match,))

    detector = context.settings.detector
    if detector is not None:
        yield of_pods(rule(local, Accept(), "pods reach external VIPs as they are"), detector)
    node = rule(local, _TO_MARK, "the node itself, to any endpoint")
    yield replace(node, source_local=True)
    yield rule(local, Accept(), "client addresses are kept")
    yield rule(every, _TO_MARK, "masquerade traffic for external destinations")
    yield rule(every, Accept())


def _to_node_ports(context: Context) -> Iterator[Rule]:
    """The end of KUBE-SERVICES: what is addressed to this node, never its loopback."""
    jump = Jump(chains.NODE_PORT)
    targets = context.settings.node_port_targets
    if targets.all:
        loopback = _LOOPBACK[context.family]
        anywhere = Rule(
            Table.NAT,
            chains.SERVICES,
            jump,
            destination=loopback,
            destination_local=True,
            negated=("destination",),
        )
        yield anywhere
        return
    for address in targets.addresses:
        place = host(address, context.family)
        yield Rule(Table.NAT, chains.SERVICES, jump, destination=place)


def _postrouting(context: Context) -> Iterator[Rule]:
    bit = context.settings.masquerade_mark
    place = (Table.NAT, chains.POSTROUTING)
    masquerade = Masquerade(context.random_fully)
    # An endpoint that reaches itself would answer itself directly.
    yield Rule(
        *place,
        masquerade,
        comment="Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose",
        sets=(_ask(sets.LOOP_BACK, context.family, "dst", "dst", "src"),),
    )
    yield Rule(*place, Return(), mark=Mark(bit, bit), negated=("mark",))
    # Cleared, because an encapsulated packet passes here once more and must not be translated
    # twice.
    yield Rule(*place, SetMark(bit, 0))
    yield Rule(*place, masquerade, comment="kubernetes service traffic requiring SNAT")


# --- filter and mangle: who is let through ------------------------------------------------------


def _forward(context: Context) -> Iterator[Rule]:
    bit, place = context.settings.masquerade_mark, (Table.FILTER, chains.FORWARD)
    if context.drop_invalid:
        # A reply that conntrack cannot place is not translated back: forwarded, it would reach the
        # client from an address that it never spoke to, and be answered by a reset. Each member is
        # an endpoint with its own address once more, so that source, source port and again source
        # find it.
        endpoint = _ask(sets.LOOP_BACK, context.family, "src", "src", "src")
        yield Rule(*place, Drop(), ctstate=("INVALID",), sets=(endpoint,))
    yield Rule(*place, Accept(), comment="kubernetes forwarding rules", mark=Mark(bit, bit))
    yield Rule(
        *place,
        Accept(),
        comment="kubernetes forwarding conntrack rule",
        ctstate=("RELATED", "ESTABLISHED"),
    )


def _new_only(table: Table, chain: str) -> Rule:
    """The head of a chain that judges new connections."""
    return Rule(table, chain, Return(), ctstate=("NEW",), negated=("ctstate",))


def _firewall(context: Context) -> Iterator[Rule]:
    """For what arrives. The policies of service ports decide which sets their VIPs are in."""
    place = (Table.FILTER, chains.PROXY_FIREWALL)
    yield _new_only(*place)
    yield from _drops_for_all(context, *place)
    outside = Rule(
        *place,
        Drop(),
        comment="clients outside, of services without a local endpoint",
        sets=(_ask(sets.NO_LOCAL_ENDPOINT, context.family),),
        source_local=True,
        negated=("source_local",),
    )
    detector = context.settings.detector
    dropped = outside if detector is None else of_others(outside, detector)
    yield from () if dropped is None else (dropped,)


def _own_firewall(context: Context) -> Iterator[Rule]:
    """For what the node sends: in mangle, because IPVS translates before filter sees it."""
    place = (Table.MANGLE, chains.IPVS_OUT_FILTER)
    yield _new_only(*place)
    yield from _drops_for_all(context, *place)


def _drops_for_all(context: Context, table: Table, chain: str) -> Iterator[Rule]:
    family, ranges = context.family, chains.SOURCE_RANGES
    restricted = (_ask(sets.LOAD_BALANCER_FIREWALL, family),)
    note = "Kubernetes service load balancer ip + port for load balancer with sourceRange"
    yield Rule(table, chain, Jump(ranges), comment=note, sets=restricted)
    nobody = (_ask(sets.NO_ENDPOINT, family),)
    yield Rule(table, chain, Drop(), comment="services without a local endpoint", sets=nobody)
    for name in (sets.LOAD_BALANCER_SOURCE_RANGE, sets.LOAD_BALANCER_SOURCE_IP):
        permitted = (_ask(name, family, "dst", "dst", "src"),)
        yield Rule(table, ranges, Return(), sets=permitted)
    yield Rule(table, ranges, Drop())


#: VIPs with their ports: all else of a VIP is refused.
_SERVED = (
    sets.CLUSTER_IP,
    sets.EXTERNAL_IP,
    sets.EXTERNAL_IP_LOCAL,
    sets.LOAD_BALANCER,
)


def _access(context: Context) -> Iterator[Rule]:
    family = context.family
    place = (Table.FILTER, chains.IPVS_FILTER)
    yield _new_only(*place)
    for name in _SERVED:
        yield Rule(*place, Return(), sets=(_ask(name, family),))
    yield Rule(*place, Reject(), sets=(_ask(sets.IPVS_IPS, family, "dst"),))
    yield Rule(
        Table.FILTER,
        chains.NODE_PORT,
        Accept(),
        comment="Kubernetes health check node port",
        protocol="tcp",
        sets=(_ask(sets.HEALTH_CHECK_NODE_PORT, family, "dst"),),
    )
