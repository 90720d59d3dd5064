"""The set of all endpoints' addresses and ports, beside the rules that ask for it. Pure.

A stray reply of an endpoint would reach its client untranslated; a stray packet of anybody else is
not the proxy's business. A rule for each endpoint would double a chain that all traffic passes, so
one rule asks a set. Several service ports may share an endpoint: it stays until the last one goes.

A member is packed as :mod:`kproxy.kernel.ipset` takes it: address, port, protocol number.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet

from kproxy.core.objects import Family, PortName, Protocol, Value
from kproxy.core.snapshot import PortPlan, Snapshot

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


class Members:
    """The members for one plan, each with the number of service ports that have it.

    The count is made when somebody first looks. A successor takes its predecessor's count over and
    does the work of what changed; a predecessor that is looked at again counts anew.
    """

    __slots__ = ("_added", "_base", "_counts", "_gone", "_plans", "_token")

    def __init__(self, plans: Mapping[PortName, PortPlan]) -> None:
        self._plans = plans
        self._counts: dict[bytes, int] | None = None
        self._token = object()
        #: The one that ``_added`` and ``_gone`` are relative to.
        self._base: object | None = None
        self._added = self._gone = _NOTHING

    @property
    def all(self) -> AbstractSet[bytes]:
        return self._count().keys()

    def following(
        self,
        plans: Mapping[PortName, PortPlan],
        changed: Iterable[PortName],
        removed: Iterable[PortName],
    ) -> Members:
        """Those of the next plan, which differs in the ports that are named."""
        change: Counter[bytes] = Counter()
        for name in (*changed, *removed):
            if name in plans:
                change.update(members_of(plans[name]))
            if name in self._plans:
                change.subtract(members_of(self._plans[name]))
        counts, self._counts = self._count(), None
        added, gone = set(), set()
        for member, more in change.items():
            before = counts.get(member, 0)
            after = before + more
            if after:
                counts[member] = after
            elif before:
                del counts[member]
            if not before and after:
                added.add(member)
            if before and not after:
                gone.add(member)
        made = Members(plans)
        made._counts, made._base = counts, self._token
        made._added, made._gone = frozenset(added), frozenset(gone)
        return made

    def since(self, before: Members) -> SetChange:
        """From ``before`` to this."""
        if self is before:
            return SetChange()
        if self._base is before._token:
            return SetChange(added=self._added, gone=self._gone)
        return change(self.all, before.all)

    def _count(self) -> dict[bytes, int]:
        if self._counts is None:
            counts: Counter[bytes] = Counter()
            for plan in self._plans.values():
                counts.update(members_of(plan))
            self._counts = counts
        return self._counts


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
