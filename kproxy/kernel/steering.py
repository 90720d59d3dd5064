"""What leads packets to a device by policy: an address, a table with two routes, three rules.

The kernel asks its rules in the order of their preference, and the first is to look up the table
``local``. A packet with a mark is to go to our device even when its destination is this node, so
that rule moves back and ours comes before it. At every moment some rule looks up ``local``: the new
one is made before the old one goes, and the other way round on the way back.

Behind the route to the device is one to nowhere: while nobody reads the device, what is marked is
dropped, for its sender to send again, and does not wander off to somebody who would refuse it.

All of it is one list of :class:`Part`, each in place or not; :func:`put` makes them in their order,
:func:`take` undoes them in the opposite one. In the network namespace of the calling thread.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError as RefusedByKernel

from kproxy.core.objects import Family
from kproxy.core.steering import Part, Plan
from kproxy.errors import NetlinkError
from kproxy.kernel import tun
from kproxy.kernel.netlink import explained, open_route

_LOCAL_TABLE = 255
_HOST_SCOPE, _LINK_SCOPE = 254, 253
_IFF_UP = 0x1
_BLACKHOLE = 6
#: Of the route to nowhere: any other one comes first.
_LAST = 4096

_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


# --- looking ------------------------------------------------------------------------------------


def held(plan: Plan) -> frozenset[Part]:
    """The parts that are in place. A rule or route that is not quite ours is none of ours."""
    with open_route() as route:
        return frozenset(_held(plan, route))


def _held(plan: Plan, route: IPRoute) -> Iterator[Part]:
    rules = list(_rules(plan, route))
    if (plan.local, _LOCAL_TABLE, None) in rules:
        yield Part.LATER
    if (plan.marked, plan.table, (plan.mark, plan.mark)) in rules:
        yield Part.MARKED
    if (0, _LOCAL_TABLE, None) not in rules:
        yield Part.NOT_FIRST
    if any(found["type"] == _BLACKHOLE for found in _routes(plan, route)):
        yield Part.NOWHERE
    link = _link(plan, route)
    if link is None:
        return
    if link["flags"] & _IFF_UP:
        yield Part.UP
    if plan.address and _addresses(plan, route, link["index"]):
        yield Part.ADDRESS
    if any(_to(found) == link["index"] for found in _routes(plan, route)):
        yield Part.ROUTE


def _link(plan: Plan, route: IPRoute) -> Any:
    if not tun.exists(plan.device):
        return None
    found = route.link_lookup(ifname=plan.device)
    return route.link("get", index=found[0])[0] if found else None


def _rules(plan: Plan, route: IPRoute) -> Iterator[tuple[int, int, tuple[int, int] | None]]:
    """(preference, table, mark and mask) of each rule that asks nothing else."""
    for rule in route.get_rules(family=_FAMILIES[plan.family]):
        attributes = dict(rule["attrs"])
        narrowed = {"FRA_SRC", "FRA_DST", "FRA_IIFNAME", "FRA_OIFNAME", "FRA_GOTO"}
        if narrowed & attributes.keys():
            continue
        mark = attributes.get("FRA_FWMARK")
        mask = attributes.get("FRA_FWMASK", 0xFFFFFFFF)
        table = attributes.get("FRA_TABLE", rule["table"])
        priority = attributes.get("FRA_PRIORITY", 0)
        yield priority, table, None if not mark else (mark, mask)


def _addresses(plan: Plan, route: IPRoute, index: int) -> list[Any]:
    found = route.get_addr(family=_FAMILIES[plan.family], index=index)
    return [each for each in found if dict(each["attrs"]).get("IFA_ADDRESS") == plan.address]


def _routes(plan: Plan, route: IPRoute) -> list[Any]:
    found = route.get_routes(family=_FAMILIES[plan.family], table=plan.table)
    return [
        each
        for each in found
        if each["dst_len"] == 0 and dict(each["attrs"]).get("RTA_TABLE") == plan.table
    ]


def _to(found: Any) -> int | None:
    index = dict(found["attrs"]).get("RTA_OIF")
    return None if index is None else int(index)


# --- making and undoing -------------------------------------------------------------------------


def put(plan: Plan, parts: Iterable[Part]) -> None:
    """Make parts, in their order. NetlinkError, naming the part, when the kernel refuses."""
    missing = frozenset(parts)
    with open_route() as route:
        for part in Part:
            if part in missing:
                with explained(f"make the {part} ({plan.device})"):
                    _MAKE[part](plan, route)


def take(plan: Plan, parts: Iterable[Part]) -> None:
    """Undo parts, in the opposite order; what is not there is fine. The device itself stays."""
    there = frozenset(parts)
    with open_route() as route:
        for part in reversed(Part):
            if part in there:
                with explained(f"undo the {part} ({plan.device})"), _gone_is_fine():
                    _UNDO[part](plan, route)


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except RefusedByKernel as refused:
        if refused.code not in (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL):
            raise


def _index(plan: Plan, route: IPRoute) -> int:
    found = route.link_lookup(ifname=plan.device)
    if not found:
        raise NetlinkError(f"there is no device {plan.device}", errno.ENODEV)
    return int(found[0])


def _up(plan: Plan, route: IPRoute) -> None:
    route.link("set", index=_index(plan, route), state="up", txqlen=plan.queue_length)


def _down(plan: Plan, route: IPRoute) -> None:
    if found := route.link_lookup(ifname=plan.device):
        route.link("set", index=found[0], state="down")


def _give_address(plan: Plan, route: IPRoute) -> None:
    # Of host scope: nobody takes it for an address of the node.
    route.addr(
        "replace",
        index=_index(plan, route),
        address=plan.address,
        prefixlen=32 if plan.family is Family.IPV4 else 128,
        family=_FAMILIES[plan.family],
        scope=_HOST_SCOPE,
    )


def _take_address(plan: Plan, route: IPRoute) -> None:
    found = route.link_lookup(ifname=plan.device)
    if found:
        length = 32 if plan.family is Family.IPV4 else 128
        route.addr("del", index=found[0], address=plan.address, prefixlen=length)


def _give_route(plan: Plan, route: IPRoute) -> None:
    _take_route(plan, route)
    route.route("add", **_route(plan), oif=_index(plan, route), scope=_LINK_SCOPE)


def _take_route(plan: Plan, route: IPRoute) -> None:
    """All of the table that lead to a device: it is ours."""
    for found in _routes(plan, route):
        if found["type"] != _BLACKHOLE:
            route.route("del", **_route(plan), oif=_to(found), scope=found["scope"])


def _give_nowhere(plan: Plan, route: IPRoute) -> None:
    route.route("replace", **_route(plan), type="blackhole", priority=_LAST)


def _take_nowhere(plan: Plan, route: IPRoute) -> None:
    route.route("del", **_route(plan), type="blackhole", priority=_LAST)


def _route(plan: Plan) -> dict[str, Any]:
    any_ = "0.0.0.0/0" if plan.family is Family.IPV4 else "::/0"
    return {"dst": any_, "table": plan.table, "family": _FAMILIES[plan.family]}


def _rule(
    preference: Callable[[Plan], int], table: Callable[[Plan], int], *, marked: bool = False
) -> tuple[Callable[[Plan, IPRoute], None], Callable[[Plan, IPRoute], None]]:
    """What makes a rule, and what deletes it."""

    def fields(plan: Plan) -> dict[str, Any]:
        mark = {"fwmark": plan.mark, "fwmask": plan.mark} if marked else {}
        family = _FAMILIES[plan.family]
        return {"priority": preference(plan), "table": table(plan), "family": family, **mark}

    def make(plan: Plan, route: IPRoute) -> None:
        try:
            route.rule("add", **fields(plan))
        except RefusedByKernel as refused:
            if refused.code != errno.EEXIST:
                raise

    def delete(plan: Plan, route: IPRoute) -> None:
        route.rule("del", **fields(plan))

    return make, delete


_MAKE_LATER, _DELETE_LATER = _rule(lambda plan: plan.local, lambda plan: _LOCAL_TABLE)
_MAKE_FIRST, _DELETE_FIRST = _rule(lambda plan: 0, lambda plan: _LOCAL_TABLE)
_MAKE_MARKED, _DELETE_MARKED = _rule(lambda plan: plan.marked, lambda plan: plan.table, marked=True)

_MAKE: dict[Part, Callable[[Plan, IPRoute], None]] = {
    Part.UP: _up,
    Part.ADDRESS: _give_address,
    Part.NOWHERE: _give_nowhere,
    Part.ROUTE: _give_route,
    Part.LATER: _MAKE_LATER,
    Part.MARKED: _MAKE_MARKED,
    Part.NOT_FIRST: _DELETE_FIRST,
}
_UNDO: dict[Part, Callable[[Plan, IPRoute], None]] = {
    Part.UP: _down,
    Part.ADDRESS: _take_address,
    Part.NOWHERE: _take_nowhere,
    Part.ROUTE: _take_route,
    Part.LATER: _DELETE_LATER,
    Part.MARKED: _DELETE_MARKED,
    Part.NOT_FIRST: _MAKE_FIRST,
}
