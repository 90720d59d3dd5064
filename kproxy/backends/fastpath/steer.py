"""Which packets go to the engine, as nftables says it: one table, three sets, seven chains. Pure.

A packet is led to the device by a bit of its mark. Conntrack remembers why, in two bits of the
connection's mark, so that neither established connections nor answers need a look-up of ours:

=============  ==================================================================================
ASKED          a client's connection to a service address: what the client sends is the engine's,
               also when the service is gone meanwhile, and ICMP errors about it as well
SERVED         a connection that the engine made to an endpoint: its answers are the engine's
=============  ==================================================================================

The sets name service addresses and node ports exactly, so nothing else takes the detour. What the
engine writes is never led back to it; an answer that it hands back has no flow there any more, and
would reach the client from an address that it never spoke to: it is dropped, and sent again by the
endpoint until the client's next packet has made the flow anew.

Of connections that are new only so many a second are led there. The device has one queue, and a
flood of first packets that fills it would lose those of established connections among them: so the
flood is thinned before the queue, and before conntrack has an entry of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from kproxy.backends.xtables.localnet import ROUTE_LOCALNET
from kproxy.core.objects import Family, Value
from kproxy.core.steering import TO_ENGINE, Plan

TABLE = "kpsteer"

#: Of a packet's mark: to be led to the device.
STEER = TO_ENGINE
#: Of a connection's mark.
SERVED, ASKED = 0x10000, 0x20000

#: Preferences of rules: local goes back behind the marked ones.
_MARKED, _LOCAL = 20, 50
_ROUTES = 102

#: Packets that may wait for the engine: at 200,000 a second those of 20 ms.
_QUEUE = 4096

#: New connections that each thread is given a second, most of what it carries under a flood: each
#: comes with an answer, and in the node's softirq as well. And how many may come at once: half of
#: the queue.
NEW_A_SECOND, _AT_ONCE = 50_000, _QUEUE // 2
#: Counts those that were not led there.
THINNED = "thinned"

#: Ports behind which clients are hidden. They are reserved, so that the node's own connections do
#: not take them; half of the range from which Linux chooses by default stays.
HIDING_PORTS = (49152, 65535)

#: One a family, so that each is served by itself.
DEVICES = {Family.IPV4: "kp4", Family.IPV6: "kp6"}
#: Without one the kernel checks no source on the device, and drops all.
_ADDRESSES = {Family.IPV4: "169.254.77.1", Family.IPV6: ""}

#: What TUN devices are to the kernel: ARPHRD_NONE (linux/if_arp.h).
_TUN = 0xFFFE

WORD = {Family.IPV4: "ip", Family.IPV6: "ip6"}
_KEY = {Family.IPV4: "ipv4_addr", Family.IPV6: "ipv6_addr"}

SERVICES, PORTS, HOSTS = "services", "ports", "hosts"
#: No set of the table: health check node ports, see :mod:`kproxy.backends.fastpath.gate`.
CHECKS = "checks"

#: A member of a set, as nft writes it: (address, protocol, port), (protocol, port), or address.
Member = tuple[str, str, int] | tuple[str, int] | str
Sets = Mapping[str, Collection[Member]]


def plan(family: Family) -> Plan:
    """Device, route and rules."""
    return Plan(
        family=family,
        device=DEVICES[family],
        mark=STEER,
        table=_ROUTES,
        marked=_MARKED,
        local=_LOCAL,
        address=_ADDRESSES[family],
        queue_length=_QUEUE,
    )


class Frame(Value, frozen=True):
    """What the chains depend on. ``localhost``: node ports answer on 127.0.0.0/8 as well, and
    clients there are served (IPv4 only). ``new``: connections a second, others are dropped."""

    family: Family
    localhost: bool = False
    new: int = NEW_A_SECOND


#: Of the node, and recorded. An answer that conntrack could not place would not be led to the
#: engine, and reach the client from an address that it never spoke to: so none is to be called
#: INVALID for its sequence numbers.
LIBERAL = ("net/netfilter/nf_conntrack_tcp_be_liberal", "1")
#: Ports that the kernel gives to nobody who does not ask for one of them. Of both families.
RESERVED = "net/ipv4/ip_local_reserved_ports"


def sysctls(frame: Frame, *, checked: bool = True) -> dict[str, str]:
    """All of them by name; :data:`RESERVED` has its ports among others. ``checked``: the sources of
    what any device receives are checked."""
    first, last = HIDING_PORTS
    node = dict([LIBERAL, (RESERVED, f"{first}-{last}")])
    loopback = dict([ROUTE_LOCALNET]) if frame.localhost else {}
    return node | loopback | device_sysctls(frame.family, checked=checked)


def device_sysctls(family: Family, *, checked: bool = True) -> dict[str, str]:
    """Those of the device, which go with it."""
    device, version = DEVICES[family], f"ipv{int(family)}"
    names = {
        "forwarding": "1",
        # Without a reader the device has no carrier, and packets go their ordinary way.
        "ignore_routes_with_linkdown": "1",
    }
    if family is Family.IPV6:
        # No address of the link, and no search for routers on it.
        names |= {"addr_gen_mode": "1"}
    if family is Family.IPV4:
        names |= {
            # The node as a client, and clients that are hidden behind it.
            "accept_local": "1",
            "route_localnet": "1",
            # No source is behind the device. The strictest of this and conf/all counts: where that
            # one checks, a loose check is the least, and there must be some route to a source.
            "rp_filter": "2" if checked else "0",
        }
    return {f"net/{version}/conf/{device}/{name}": value for name, value in names.items()}


def skeleton(frame: Frame) -> str:
    """The table without members: a script that makes it, or makes its chains anew."""
    word, table = WORD[frame.family], f"{WORD[frame.family]} {TABLE}"
    key = _KEY[frame.family]
    lines = [
        f"add table {table}",
        f"add set {table} {SERVICES} {{ type {key} . inet_proto . inet_service; }}",
        f"add set {table} {PORTS} {{ type inet_proto . inet_service; }}",
        f"add set {table} {HOSTS} {{ type {key}; }}",
        f"add counter {table} {THINNED}",
        f"add chain {table} back",
        f"add chain {table} fresh",
        f"add chain {table} steer",
        f"add chain {table} pre {{ type filter hook prerouting priority mangle; }}",
        # Of type route: the way is looked up again after the mark.
        f"add chain {table} out {{ type route hook output priority mangle; }}",
        # Just before others' translation.
        f"add chain {table} kept {{ type nat hook prerouting priority -101; }}",
        f"add chain {table} keptout {{ type nat hook output priority -101; }}",
        f"flush table {table}",
    ]
    for chain, rule in _rules(frame, word):
        lines.append(f"add rule {table} {chain} {rule}")
    return "\n".join(lines) + "\n"


def _rules(frame: Frame, word: str) -> Iterator[tuple[str, str]]:
    device = DEVICES[frame.family]
    go = f"meta mark set mark or {STEER:#x} accept"
    ask = "goto fresh"
    # What is cheap to ask comes first: a name is copied before it is compared.
    yield "pre", f'meta iiftype {_TUN} iifname "{device}" goto back'
    if frame.localhost:
        # What the kernel does by itself where route_localnet is off (CVE-2020-8558).
        yield "pre", 'ip daddr 127.0.0.0/8 iifname != "lo" drop'
        yield "pre", 'ip saddr 127.0.0.0/8 iifname != "lo" drop'
    yield "pre", "goto steer"
    yield "back", f"ct direction reply ct mark and {SERVED:#x} != 0 drop"
    fresh = f"ct direction original ct mark and {SERVED | ASKED:#x} == 0"
    yield "back", f"{fresh} ct mark set ct mark or {SERVED:#x}"
    yield "steer", f"ct direction reply ct mark and {SERVED:#x} != 0 {go}"
    yield "steer", f"ct direction original ct mark and {ASKED:#x} != 0 {go}"
    # What another mode has translated, and conntrack goes on translating.
    yield "steer", "ct status dnat accept"
    yield "steer", f"{word} daddr . meta l4proto . th dport @{SERVICES} {ask}"
    yield "steer", f"meta l4proto . th dport @{PORTS} {word} daddr @{HOSTS} {ask}"
    if frame.localhost:
        yield "steer", f"ip daddr 127.0.0.0/8 meta l4proto . th dport @{PORTS} {ask}"
    over = f"limit rate over {frame.new}/second burst {_AT_ONCE} packets"
    yield "fresh", f"{over} counter name {THINNED} drop"
    yield "fresh", f"ct mark set ct mark or {ASKED:#x} {go}"
    yield "out", "goto steer"
    # To where it goes anyway: what is led to the engine is translated by nobody else, while rules
    # of another mode stand beside these.
    for chain in ("kept", "keptout"):
        yield chain, f"meta mark and {STEER:#x} != 0 dnat to {word} daddr"


def leaving(family: Family) -> str:
    """A script by which nothing new is led to the engine, while established connections are.

    And packets of TCP connections that conntrack does not know go nowhere: those are, for a moment,
    the ones that are given to conntrack, and the next mode would take them for new ones. What is
    dropped is sent again.
    """
    table = f"{WORD[family]} {TABLE}"
    lost = "ct state new tcp flags & (syn | rst) == 0 drop"
    lines = [f"flush set {table} {name}" for name in (SERVICES, PORTS, HOSTS)]
    lines += [f"insert rule {table} {chain} {lost}" for chain in ("pre", "out")]
    # What the engine still writes has a flow, or is late.
    lines.append(f'insert rule {table} pre iifname "{DEVICES[family]}" ct state new drop')
    return "".join(f"{line}\n" for line in lines)


def changes(family: Family, added: Sets, gone: Sets) -> str:
    """A script that takes members out of the sets and puts others in."""
    table = f"{WORD[family]} {TABLE}"
    lines = []
    for verb, sets in (("delete", gone), ("add", added)):
        for name in (SERVICES, PORTS, HOSTS):
            if members := sets.get(name):
                text = ", ".join(map(_text, sorted(members, key=repr)))
                lines.append(f"{verb} element {table} {name} {{ {text} }}")
    return "".join(f"{line}\n" for line in lines)


def _text(member: Member) -> str:
    return member if isinstance(member, str) else " . ".join(map(str, member))


def count(sets: Sets) -> int:
    return sum(map(len, sets.values()))


def minus(one: Sets, other: Sets) -> dict[str, frozenset[Member]]:
    """What of one is not in the other; sets of which nothing is left are left out."""
    found = {name: frozenset(one[name]) - frozenset(other.get(name, ())) for name in one}
    return {name: members for name, members in found.items() if members}


def merged(parts: Iterable[Sets]) -> dict[str, frozenset[Member]]:
    """All of them together, each set named."""
    whole: dict[str, set[Member]] = {name: set() for name in (SERVICES, PORTS, HOSTS, CHECKS)}
    for part in parts:
        for name, members in part.items():
            whole[name].update(members)
    return {name: frozenset(members) for name, members in whole.items()}
