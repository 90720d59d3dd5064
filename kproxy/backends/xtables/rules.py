"""Typed iptables rules: what render makes, text prints, and explain and tests walk.

A rule is flat: every match that a service proxy needs is one field, absent when empty. The text is
made in one place, :mod:`kproxy.backends.xtables.text`.
"""

from __future__ import annotations

from enum import StrEnum

from kproxy.core.objects import Value


class Table(StrEnum):
    """The tables that rules of ours live in."""

    NAT = "nat"
    FILTER = "filter"
    MANGLE = "mangle"


#: The chains that the kernel itself calls, by table: no restore declares them.
BASE: dict[Table, frozenset[str]] = {
    Table.NAT: frozenset({"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"}),
    Table.FILTER: frozenset({"INPUT", "FORWARD", "OUTPUT"}),
    Table.MANGLE: frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}),
}


class Jump(Value, frozen=True):
    """Go to a chain of the same table, and come back when it has no verdict."""

    chain: str


class Goto(Value, frozen=True):
    """Go to a chain and return to the caller's caller."""

    chain: str


class Accept(Value, frozen=True):
    pass


class Drop(Value, frozen=True):
    pass


class Return(Value, frozen=True):
    pass


class Reject(Value, frozen=True):
    """Answer port unreachable, in the ICMP of the family: a TCP connect sees "refused"."""


class Dnat(Value, frozen=True):
    """``to`` is ``ip:port``, IPv6 in brackets, or an address alone: the port stays."""

    to: str


class Redirect(Value, frozen=True):
    """To ``port`` of this node: at an address of the device that the packet came by (one without
    any drops it), or at the loopback address for what the node itself sends."""

    port: int


class Masquerade(Value, frozen=True):
    """``random_fully``: source ports drawn at random, which ends races for the same port."""

    random_fully: bool


class SetMark(Value, frozen=True):
    """mark = (mark & ~mask) ^ value. Or: value == mask. Xor: mask 0."""

    value: int
    mask: int


Target = Jump | Goto | Accept | Drop | Return | Reject | Dnat | Redirect | Masquerade | SetMark


class Mark(Value, frozen=True):
    """Matches when mark & mask == value."""

    value: int
    mask: int


class Recent(Value, frozen=True):
    """A list of client addresses, named ``name``.

    ``seconds`` None: put the client on the list. Otherwise: match when the client was put there
    within that time, and drop older entries of the list.
    """

    name: str
    seconds: int | None = None


class SetMatch(Value, frozen=True):
    """A set that is asked for a packet's addresses and ports.

    ``directions`` say, part by part of a member, whose address or port is asked for: ``("dst",
    "dst")`` for destination address and port. ``negated``: matches what is not in the set.
    """

    name: str
    directions: tuple[str, ...]
    negated: bool = False


#: Fields of a rule that can be inverted by naming them in ``negated``.
NEGATABLE = (
    "source",
    "destination",
    "in_interface",
    "mark",
    "ctstate",
    "original_source",
    "source_local",
    "destination_local",
)


class Rule(Value, frozen=True):
    """One rule; a packet has to meet all of its matches.

    ``protocol`` is lower case. ``source`` and ``destination`` are CIDRs (hosts too: ``/32``,
    ``/128``). ``dport`` 0 is any port. ``source_local``/``destination_local``: the address is one
    of this node. ``ctstate``: any of these states. ``original_source`` is a CIDR too, of the source
    that the connection began with: a second one beside ``source``. ``probability`` is the decimal
    number that the kernel gives back (:func:`kproxy.backends.xtables.text.probability`).
    ``in_interface`` may end in ``+``. ``sets`` are asked in their order, after ``ctstate``.
    ``counter`` names an object of the kernel (nfacct) that counts the packets which met all the
    other matches; it has to be there before the rule.
    ``target`` None: the rule only counts and explains. ``negated`` names inverted fields.
    """

    table: Table
    chain: str
    target: Target | None = None
    comment: str = ""
    protocol: str = ""
    source: str = ""
    destination: str = ""
    dport: int = 0
    in_interface: str = ""
    source_local: bool = False
    destination_local: bool = False
    mark: Mark | None = None
    ctstate: tuple[str, ...] = ()
    original_source: str = ""
    sets: tuple[SetMatch, ...] = ()
    recent: Recent | None = None
    probability: str = ""
    counter: str = ""
    negated: tuple[str, ...] = ()
