"""IPVS mode gives way to another mode: the connections that it carries become conntrack's.

A real server that is taken away takes its connections along, and their entries of conntrack with
them (expire_nodest_conn; from Linux 5.9 on at once, before that with the next packet). So first it
is looked what they are, then the real servers go, then conntrack is told to translate as IPVS did.
A packet that comes in between would be taken for a new connection by the other mode's rules and led
to any endpoint, which resets it; so such packets are dropped for that time, and sent again. The
virtual servers stay until all is swept away: with the last of them IPVS would let go of its hooks,
and what is still known to conntrack would reach the node itself, which resets it.

Nobody new is led to the servers: the other mode's rules translate before a packet gets there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from kproxy import logs
from kproxy.backends.ipvs import refusal
from kproxy.backends.ipvs.chains import LAYOUT, LEAVING
from kproxy.backends.ipvs.diff import Leaving
from kproxy.backends.ipvs.door import Door
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.saved import Line
from kproxy.backends.xtables.script import deleted, deletions, flushes, on_top, section
from kproxy.backends.xtables.text import line
from kproxy.core.objects import Family
from kproxy.core.servers import Order, Verb
from kproxy.kernel.conntrack_gifts import ConntrackGifts, Gift
from kproxy.kernel.ipvs_connections import Carried, carried

_log = logs.get("ipvs")

#: Seconds for the kernel to end connections whose servers are gone, and between two looks.
_ENDED_WITHIN, _LOOK = 3.0, 0.005

#: Packets of TCP connections that conntrack does not know.
_LOST = f"-A {LEAVING} -p tcp -m tcp ! --syn -m conntrack --ctstate NEW -j DROP\n"


def depart(door: Door, family: Family, reals: Iterable[Leaving]) -> int:
    """``reals`` go, what they carry stays; how many connections are conntrack's now. Those of other
    programs' servers are left to IPVS."""
    reals = list(reals)
    servers = {server for server, _ in reals}
    with ConntrackGifts(family) as table:
        _guard(door, family)
        try:
            gifts = _gifts(table, family, servers)
            orders = [Order(Verb.REMOVE_REAL, server, real) for server, real in reals]
            refusal.raise_for_servers(door.send(orders), None)
            _await_end(family, servers)
            return table.give(gifts)
        finally:
            _unguard(door, family)


def _ours(family: Family, servers: AbstractSet[bytes]) -> list[Carried]:
    return [
        each
        for each in carried(family)
        if each.asked[0] + each.asked[1] + bytes([each.protocol]) in servers
    ]


def _gifts(table: ConntrackGifts, family: Family, servers: AbstractSet[bytes]) -> list[Gift]:
    return [
        Gift(*each, table.seen(each.protocol, each.client, each.asked) or each.client)
        for each in _ours(family, servers)
    ]


def _await_end(family: Family, servers: AbstractSet[bytes]) -> None:
    """Until IPVS has let go of everything: what it lets go of later, conntrack loses as well."""
    deadline = time.monotonic() + _ENDED_WITHIN
    while left := _ours(family, servers):
        if time.monotonic() > deadline:
            _log.warning("connections may end", family=int(family), count=len(left))
            return
        time.sleep(_LOOK)
    # Off the list first, then out of conntrack (ip_vs_conn_expire).
    time.sleep(_LOOK)


def _guard(door: Door, family: Family) -> None:
    made = (*flushes([LEAVING]), _LOST, *on_top(_jumps(family), Table.MANGLE))
    door.restore([piece.encode() for piece in section(Table.MANGLE, iter(made))])


def _unguard(door: Door, family: Family) -> None:
    gone = (*deleted(_jumps(family), Table.MANGLE), *flushes([LEAVING]), *deletions([LEAVING]))
    door.restore([piece.encode() for piece in section(Table.MANGLE, iter(gone))])


def _jumps(family: Family) -> list[Line]:
    return [(rule.table, line(rule, family)) for rule in LAYOUT.passing]
