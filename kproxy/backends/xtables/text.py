"""Rules as text, in the order and with the digits in which ``iptables-save`` prints them.

What the kernel holds can then be compared with what we render line by line, without parsing.
``iptables-legacy-save`` and ``iptables-nft-save`` 1.8.9 print every shape here alike; should
another version print one differently, full syncs rewrite those chains with the same content.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable
from functools import lru_cache

from kproxy.backends.xtables.rules import (
    BASE,
    Accept,
    Dnat,
    Drop,
    Goto,
    Jump,
    Masquerade,
    Recent,
    Redirect,
    Reject,
    Return,
    Rule,
    SetMark,
    SetMatch,
)
from kproxy.core.objects import Family

_REJECT_WITH = {Family.IPV4: "icmp-port-unreachable", Family.IPV6: "icmp6-port-unreachable"}
_HOST_MASK = {Family.IPV4: "255.255.255.255", Family.IPV6: ":".join(["ffff"] * 8)}
_HOST_PREFIX = {Family.IPV4: "/32", Family.IPV6: "/128"}

#: xt_comment holds 256 bytes with the closing zero.
_COMMENT_LIMIT = 255


def line(rule: Rule, family: Family) -> str:
    """``-A CHAIN …`` without line end."""
    parts = [f"-A {rule.chain}"]
    negated = rule.negated
    if rule.source and not rule.source.endswith("/0"):
        parts.append(f"! -s {rule.source}" if "source" in negated else f"-s {rule.source}")
    if rule.destination:
        parts.append(
            f"! -d {rule.destination}" if "destination" in negated else f"-d {rule.destination}"
        )
    if rule.in_interface:
        no = "! " if "in_interface" in negated else ""
        parts.append(f"{no}-i {rule.in_interface}")
    if rule.protocol:
        parts.append(f"-p {rule.protocol}")
    # kube-proxy writes the state before the comment in base chains, and after it elsewhere.
    tracked = bool(rule.ctstate or rule.original_source)
    state_first = tracked and rule.chain in BASE[rule.table]
    if state_first:
        parts.append(_conntrack(rule))
    if rule.comment:
        parts.append(f'-m comment --comment "{rule.comment}"')
    if rule.mark is not None:
        no = "! " if "mark" in negated else ""
        parts.append(f"-m mark {no}--mark {rule.mark.value:#x}/{rule.mark.mask:#x}")
    if tracked and not state_first:
        parts.append(_conntrack(rule))
    parts += [_asked(match) for match in rule.sets]
    if rule.source_local:
        no = "! " if "source_local" in negated else ""
        parts.append(f"-m addrtype {no}--src-type LOCAL")
    if rule.destination_local:
        no = "! " if "destination_local" in negated else ""
        parts.append(f"-m addrtype {no}--dst-type LOCAL")
    if rule.recent is not None:
        parts.append(_recent(rule.recent, family))
    if rule.probability:
        parts.append(f"-m statistic --mode random --probability {rule.probability}")
    if rule.protocol:
        parts.append(f"-m {rule.protocol}")
    if rule.dport:
        parts.append(f"--dport {rule.dport}")
    if rule.counter:
        # Matches are tried in this order, and this one counts whatever gets as far: it comes last.
        parts.append(f"-m nfacct --nfacct-name {rule.counter}")
    if rule.target is not None:
        parts.append(_TARGETS[type(rule.target)](rule.target, family))
    return " ".join(parts)


def lines(rules: Iterable[Rule], family: Family) -> str:
    """One line a rule, each with its line end: the content of a chain."""
    return "".join([line(rule, family) + "\n" for rule in rules])


def _conntrack(rule: Rule) -> str:
    parts = ["-m conntrack"]
    if rule.ctstate:
        no = "! " if "ctstate" in rule.negated else ""
        parts.append(f"{no}--ctstate {','.join(rule.ctstate)}")
    if rule.original_source:
        no = "! " if "original_source" in rule.negated else ""
        parts.append(f"{no}--ctorigsrc {rule.original_source}")
    return " ".join(parts)


def _asked(match: SetMatch) -> str:
    no = "! " if match.negated else ""
    return f"-m set {no}--match-set {match.name} {','.join(match.directions)}"


def _recent(recent: Recent, family: Family) -> str:
    check = "--set" if recent.seconds is None else f"--rcheck --seconds {recent.seconds} --reap"
    return f"-m recent {check} --name {recent.name} --mask {_HOST_MASK[family]} --rsource"


_TARGETS: dict[type, Callable[..., str]] = {
    Jump: lambda target, family: f"-j {target.chain}",
    Goto: lambda target, family: f"-g {target.chain}",
    Accept: lambda target, family: "-j ACCEPT",
    Drop: lambda target, family: "-j DROP",
    Return: lambda target, family: "-j RETURN",
    Reject: lambda target, family: f"-j REJECT --reject-with {_REJECT_WITH[family]}",
    Dnat: lambda target, family: f"-j DNAT --to-destination {target.to}",
    Redirect: lambda target, family: f"-j REDIRECT --to-ports {target.port}",
    Masquerade: lambda target, family: (
        "-j MASQUERADE --random-fully" if target.random_fully else "-j MASQUERADE"
    ),
    SetMark: lambda target, family: f"-j MARK --set-xmark {target.value:#x}/{target.mask:#x}",
}


#: With weights there are more pairs than a process should remember for good.
@lru_cache(maxsize=1 << 14)
def probability(whole: int, part: int = 1) -> str:
    """part/whole as the kernel gives it back: a multiple of 2^-31, printed with eleven digits.

    kube-proxy writes ten decimals of 1/n, and the tool rounds those; starting from the same ten
    decimals gives the same number in the kernel.
    """
    return f"{round(float(f'{part / whole:.10f}') * 2**31) / 2**31:.11f}"


def host(address: str, family: Family) -> str:
    """An address as a CIDR of one host, spelled as the tools spell it."""
    if address.startswith("::"):
        # inet_ntop(3) writes ::ffff:1.2.3.4 with dots, RFC 5952 libraries may not.
        address = socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, address))
    return address + _HOST_PREFIX[family]


_UNPRINTABLE = re.compile(r"[^\x20-\x7e]|[\"\\']")


def comment(text: str) -> str:
    """Text that is safe inside a quoted comment, and no longer than the kernel takes.

    Names that the API admits come through unchanged. Anything else must not be able to end the
    quotation: one odd object would spoil the rules of all others.
    """
    return _UNPRINTABLE.sub("?", text)[:_COMMENT_LIMIT]
