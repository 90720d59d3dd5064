"""What a person needs next when a flow failed: the packets at each hop, and the rules concerned."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from kproxy.core.objects import Family, Protocol, family_of
from kproxy.errors import KproxyError
from kproxy.kernel.command import run
from kproxy.lab.scenario.build import NODE
from kproxy.lab.scenario.schema import Flow
from kproxy.lab.scenario.stage import Stage
from kproxy.lab.traffic.capture import Capture, Sighting
from kproxy.lab.traffic.probe import probe_all

#: More lines than this hide what they show.
_MOST_PACKETS = 40
_MOST_RULES = 60

#: Seconds that the flow is tried once more while everything is watched.
_AGAIN = 0.3

_OURS = re.compile(r"-[jg] (KUBE-[A-Z]+-[A-Z0-9]+)")


def explain(stage: Stage, flow: Flow) -> str:
    """Send the flow once more with every hop watched; its packets, then its rules."""
    lines = [f"packets of one more try ({flow.line}):"]
    packets = list(_packets(stage, flow))
    lines += [f"  {line}" for line in packets[:_MOST_PACKETS]] or ["  none were seen"]
    if len(packets) > _MOST_PACKETS:
        lines.append(f"  … {len(packets) - _MOST_PACKETS} more")
    lines.append("rules concerned:")
    try:
        rules = _rules(stage, flow)
    except KproxyError as error:
        rules = [str(error)]
    lines += [f"  {line}" for line in rules[:_MOST_RULES]] or ["  none"]
    if len(rules) > _MOST_RULES:
        lines.append(f"  … {len(rules) - _MOST_RULES} more")
    if stage.proxy is not None:
        lines.append(f"log of the proxy: {stage.proxy.log}")
    return "\n".join(lines)


def _packets(stage: Stage, flow: Flow) -> Iterable[str]:
    from kproxy.lab.scenario.craft import send_crafted

    hosts = [host.name for host in stage.layout.network.hosts]
    sightings: list[Sighting] = []
    with Capture([(host, stage.fd(host)) for host in hosts]) as capture:
        if flow.proto is Protocol.SCTP or stage.layout.crafted(flow):
            send_crafted(stage, [msgspec.structs.replace(flow, expect=None)])
        else:
            probe = stage.probe(flow, timeout=_AGAIN)
            probe_all([msgspec.structs.replace(probe, control=None)])
        while more := capture.wait(0):
            sightings += more
    sightings.sort(key=lambda one: one.when)
    for one in sightings:
        text = _decoded(one.data)
        if text:
            first = sightings[0].when
            place = f"{one.place}:{one.interface}"
            way = "out" if one.outgoing else "in "
            yield f"{one.when - first:6.3f} {place:<22} {way} {text}"


def _decoded(data: bytes) -> str:
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, IPv6

    packet = IPv6(data) if data[0] >> 4 == 6 else IP(data)
    if ICMPv6ND_NS in packet or ICMPv6ND_NA in packet:
        return ""
    return str(packet.summary())


def _rules(stage: Stage, flow: Flow) -> list[str]:
    """Rules for the flow's destination, and those of every chain that they lead to."""
    if stage.choice is not None and stage.choice.mode == "nftables":
        return _elements(stage, flow)
    if stage.choice is None or stage.choice.mode != "iptables":
        return []
    tool = "ip6tables" if family_of(flow.to) is Family.IPV6 else "iptables"
    argv = [f"{tool}-{stage.choice.variant}-save"]
    saved = run(argv, namespace=stage.fd(NODE), env=stage.environment).stdout.decode()
    rules = [line for line in saved.splitlines() if line.startswith("-A")]
    chosen = [line for line in rules if _concerns(line, flow)]
    chains = [name for line in chosen for name in _OURS.findall(line)]
    seen: set[str] = set()
    while chains:
        chain = chains.pop(0)
        if chain not in seen:
            seen.add(chain)
            inside = [line for line in rules if line.startswith(f"-A {chain} ")]
            chosen += inside
            chains += [name for line in inside for name in _OURS.findall(line)]
    return list(dict.fromkeys(chosen))


def _elements(stage: Stage, flow: Flow) -> list[str]:
    """Elements of nftables mode's sets that name the flow's destination or, for a node port, its
    protocol and port."""
    word = "ip6" if family_of(flow.to) is Family.IPV6 else "ip"
    argv = ["nft", "-nn", "list", "table", word, "kproxy"]
    listed = run(argv, namespace=stage.fd(NODE), env=stage.environment).stdout.decode()
    number = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}[flow.proto]
    address = rf"(?<![\w.:]){re.escape(flow.to)}(?![\w.:])"
    concerns = re.compile(rf"{address}|^\s*{number} \. {flow.port}\b")
    found, name = [], ""
    for line in listed.splitlines():
        head = re.match(r"\s+(?:set|map) (\S+)", line)
        name = head[1] if head else name
        elements = re.split(r"[,{}]|elements =", line)
        found += [f"{name}: {one.strip()}" for one in elements if concerns.search(one)]
    return found


def _concerns(rule: str, flow: Flow) -> bool:
    """Whether a dispatching rule could match the flow by destination and port."""
    if " --dport " not in rule or not re.search(rf" --dport {flow.port}\b", rule):
        return False
    return f" -d {flow.to}/" in rule or " -d " not in rule
