"""The set of all endpoints' addresses and ports, beside the rules that ask for it. Pure.

A stray reply of an endpoint would reach its client untranslated; a stray packet of anybody else is
not the proxy's business. A rule for each endpoint would double a chain that all traffic passes, so
one rule asks a set. Several service ports may share an endpoint: it stays until the last one goes.

A member is packed as :mod:`kproxy.kernel.ipset` takes it: address, port, protocol number.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet

from kproxy.core.objects import Family, PortName, Protocol, Value
from kproxy.core.snapshot import PortPlan, Snapshot
from kproxy.core.tally import Tally

#: Both variants of a family share one set.
NAMES = {Family.IPV4: "KPROXY-ENDPOINTS", Family.IPV6: "KPROXY-6-ENDPOINTS"}

_NUMBERS = {Protocol.TCP: b"\x06", Protocol.UDP: b"\x11", Protocol.SCTP: b"\x84"}

_NOTHING: frozenset[bytes] = frozenset()


class SetChange(Value, frozen=True, eq=False):
    """What becomes of the set: ``added`` before the rules are written (``create``: it is made
    first), ``gone`` after them (``destroy``: all of it)."""

    create: bool = False
    destroy: bool = False
    added: Collection[bytes] = _NOTHING
    gone: Collection[bytes] = _NOTHING

    def __bool__(self) -> bool:
        return bool(self.create or self.destroy or self.added or self.gone)


def members(plans: Mapping[PortName, PortPlan]) -> Tally[bytes]:
    """The members for one plan."""
    return Tally(plans, members_of)


def change(wanted: AbstractSet[bytes] | None, held: AbstractSet[bytes] | None) -> SetChange:
    """From what is held to what is wanted; None: no set at all."""
    if wanted is None:
        return SetChange(destroy=held is not None)
    if held is None:
        return SetChange(create=True, added=wanted)
    return SetChange(added=wanted - held, gone=held - wanted)


def members_of(plan: PortPlan) -> list[bytes]:
    """All endpoints of one service port, packed."""
    ends = plan.endpoints.all
    if not ends:
        return []
    code = socket.AF_INET6 if ":" in ends[0].ip else socket.AF_INET
    number, packed = _NUMBERS[plan.protocol], socket.inet_pton
    return [packed(code, end.ip) + end.port.to_bytes(2, "big") + number for end in ends]


def sources(snapshot: Snapshot) -> frozenset[tuple[str, Protocol, int]]:
    """The same as values, to be walked: (address, protocol, port) of every endpoint."""
    return frozenset(
        (end.ip, plan.protocol, end.port)
        for plan in snapshot.ports.values()
        for end in plan.endpoints.all
    )
