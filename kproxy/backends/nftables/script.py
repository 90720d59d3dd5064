"""The rules of nftables mode as scripts that nft reads. Pure."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from kproxy.backends.nftables.elements import (
    AFFINITY,
    KINDS,
    MOST_CLIENTS,
    NODE_PORT,
    SERVICE,
    SOURCES,
    WHOLE_SOURCES,
    bit_behind,
)
from kproxy.backends.nftables.rules import (
    HASH_SEED,
    TABLE,
    WORD,
    Action,
    Ask,
    Chain,
    Choose,
    Condition,
    Do,
    Draw,
    Frame,
    Go,
    Permitted,
    Pick,
    Rule,
    Send,
    Step,
    ToRange,
    When,
    base,
)
from kproxy.core.objects import Family
from kproxy.core.steering import TO_ENGINE

_LOOPBACK = {Family.IPV4: "127.0.0.0/8", Family.IPV6: "::1"}
_UNREACHABLE = {Family.IPV4: "icmp", Family.IPV6: "icmpv6"}


def rule_text(rule: Rule, frame: Frame) -> str:
    """One rule as nft reads it."""
    return " ".join([*(_condition(one, frame) for one in rule.when),
                     *(_action(one, frame) for one in rule.then)])  # fmt: skip


def _condition(one: Condition, frame: Frame) -> str:
    word = WORD[frame.family]
    if isinstance(one, ToRange):
        return f"{word} daddr {one.cidr}"
    if isinstance(one, Permitted):
        return f"{SERVICE.format(ip=word)} . {_permitted(one.length, frame.family)}"
    if one is When.POD:
        return _pod(frame)
    if one is When.TO_NODE:
        if not frame.every_address:
            return f"{word} daddr @node-addresses"
        return f"fib daddr type local {word} daddr != {_LOOPBACK[frame.family]}"
    return _CONDITIONS[one].format(ip=word, mark=f"{frame.mark:#x}")


_CONDITIONS = {
    When.NEW: "ct state new",
    When.FROM_NODE: "fib saddr type local",
    When.UNTRANSLATED: "ct status and dnat == 0",
    When.CLUSTER_IP: "{ip} daddr @cluster-ips",
    When.NOT_STEERED: f"meta mark and {TO_ENGINE:#x} == 0",
    When.TCP: "meta l4proto tcp",
    When.HAIRPIN: "ct status dnat {ip} saddr . {ip} daddr @hairpin",
    When.MARKED: "meta mark and {mark} == {mark}",
}


def _permitted(length: int, family: Family) -> str:
    """The source as its set has it."""
    source = f"{WORD[family]} saddr"
    whole = ip_network(f"{'0.0.0.0' if family is Family.IPV4 else '::'}/{length}")
    behind = bit_behind(length, whole.max_prefixlen)
    if not behind:
        return f"{source} @{WHOLE_SOURCES.name}"
    bit = ip_address(behind.to_bytes(whole.max_prefixlen // 8))
    return f"{source} and {whole.netmask} or {bit} @{SOURCES.name}"


def _pod(frame: Frame) -> str:
    detector = frame.detector
    assert detector is not None
    if detector.cidr:
        return f"{WORD[frame.family]} saddr {detector.cidr}"
    return f'iifname "{detector.bridge or detector.prefix + "*"}"'


_ACTIONS = {
    Do.MARK: "meta mark set meta mark or {mark}",
    Do.DROP: "drop",
    Do.RETURN: "return",
    Do.RESET: "reject with tcp reset",
    Do.REFUSE: "reject with {icmp} type port-unreachable",
    Do.UNMARK: "meta mark set meta mark xor {mark}",
    Do.MASQUERADE: "masquerade fully-random",
}


def _action(one: Action, frame: Frame) -> str:
    word = WORD[frame.family]
    if isinstance(one, Do):
        return _ACTIONS[one].format(mark=f"{frame.mark:#x}", icmp=_UNREACHABLE[frame.family])
    if isinstance(one, Go):
        return f"goto {one.chain}"
    if isinstance(one, Ask):
        return f"{_key(one.map, word)} vmap @{one.map}"
    if isinstance(one, Choose):
        slot = _slot(one.size, one.by_client, word)
        return f"dnat {word} to {_key(one.map, word)} . {slot} map @{one.map}"
    if isinstance(one, Draw):
        slot = _slot(one.size, one.by_client, word)
        return f"meta priority set {slot} goto {one.chain}"
    if isinstance(one, Send):
        return f"dnat {word} to {_key(one.map, word)} . meta priority map @{one.map}"
    return _stay(one.step, one.pick, frame)


def _key(map_: str, word: str) -> str:
    return (NODE_PORT if map_.startswith("node-") else SERVICE).format(ip=word)


def _slot(size: int, by_client: bool, word: str) -> str:
    if by_client:
        return f"jhash {word} saddr mod {size} seed {HASH_SEED:#x}"
    return f"numgen random mod {size}"


def _stay(step: Step, pick: Pick, frame: Frame) -> str:
    word, v4 = WORD[frame.family], frame.family is Family.IPV4
    key = _key(pick.prefix, word)
    names = f"{'node-' * pick.node}names"
    client = f"{word} saddr . ct mark" if v4 else "ct mark"
    hashed = f"ct mark set jhash {word} saddr . meta priority mod 4294967295 seed {frame.seed:#x}"
    texts = {
        Step.NAME: f"ct mark set {key} map @{names}" if v4
        else f"meta priority set {key} map @{names} {hashed}",
        Step.CANDIDATE: f"meta priority set {key} . {_slot(pick.size, pick.by_client, word)}"
        f" map @{pick.prefix}ids",
        Step.RECALL: f"update @{AFFINITY} {{ {client} timeout {pick.stay}s : meta priority }}",
        Step.READ: f"meta priority set {client} map @{AFFINITY}",
        Step.CLEAR: "ct mark set 0",
        Step.SEND: f"dnat {word} to {key} . meta priority map @{pick.prefix}known",
        Step.FORGET: f"delete @{AFFINITY} {{ {client} : meta priority }}",
    }  # fmt: skip
    return texts[step]


def chain_text(chain: Chain, frame: Frame) -> str:
    """A script that makes a chain."""
    where = f"{WORD[frame.family]} {TABLE} {chain.name}"
    hook = chain.hook
    lines = [f"add rule {where} {rule_text(rule, frame)}" for rule in chain.rules]
    said = f" {{ type {hook.type} hook {hook.hook} priority {hook.priority}; }}" if hook else ""
    return "\n".join([f"add chain {where}{said}", *lines]) + "\n"


def skeleton(frame: Frame) -> str:
    """A script that makes table, maps and base chains, where there is no such table."""
    word = WORD[frame.family]
    table, v4 = f"{word} {TABLE}", frame.family is Family.IPV4
    lines = [f"add table {table}"]
    for kind in KINDS.values():
        types = kind.types.format(ip=word, name="ct mark" if v4 else "meta priority")
        word_ = "map" if kind.map else "set"
        lines.append(f"add {word_} {table} {kind.name} {{ typeof {types}; }}")
    client = f"{word} saddr . ct mark" if v4 else "ct mark"
    more = f"flags dynamic,timeout; size {MOST_CLIENTS};"
    lines.append(f"add map {table} {AFFINITY} {{ typeof {client} : meta priority; {more} }}")
    return "\n".join(lines) + "\n" + "".join(chain_text(chain, frame) for chain in base(frame))
