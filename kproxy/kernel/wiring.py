"""Orders that wire namespaces: veth pairs, bridges, addresses, routes, as packed messages.

A network of ten namespaces takes about a hundred of them, and a lab, a scenario and a test each
make one: as messages of our own, many to one send, they cost a twentieth of what a library's object
for each costs. Sources: linux/rtnetlink.h, linux/if_link.h, linux/veth.h, net/core/rtnetlink.c.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from kproxy.errors import NetlinkError
from kproxy.kernel.channel import Channel, message
from kproxy.kernel.ctnetlink import REQUEST, attribute, contents
from kproxy.kernel.netns import entered
from kproxy.kernel.rtnetlink import (
    ADDRESS_HEAD,
    CREATE,
    DEL_ADDRESS,
    DEL_LINK,
    EXCLUSIVE,
    GET_LINK,
    IFA_ADDRESS,
    IFA_LOCAL,
    NEW_ADDRESS,
    NEW_LINK,
    NO_DAD,
)

_NEW_ROUTE, _DEL_ROUTE = 24, 25
_MAKE = CREATE | EXCLUSIVE

#: family, nothing, type, index, flags, which flags to change.
_LINK_HEAD = struct.Struct("=BxHiII")
_IFF_UP = 1
_IFLA_NAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_INFO, _IFLA_NAMESPACE = 3, 4, 10, 18, 28
_IFLA_STATE, _STATE_UP = 16, 6  # RFC 2863
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1

#: family, bits of destination and source, TOS, table, protocol, scope, type, flags.
_ROUTE_HEAD = struct.Struct("=BBBBBBBBI")
_RTA_DESTINATION, _RTA_DEVICE, _RTA_GATEWAY, _RTA_SOURCE = 1, 4, 5, 7
_ONLINK, _STATIC = 4, 4
MAIN, LOCAL = 254, 255
_SCOPES = {"universe": 0, "link": 253, "host": 254, "any": 255}
_TYPES = {"unicast": 1, "local": 2, "blackhole": 6, "unreachable": 7}

_U32 = struct.Struct("=I")

#: Bytes of the largest order: a veth pair with both its names.
_LARGEST = 256


class Order(NamedTuple):
    """A message without its number; ``what`` is what it does, in words ("cannot <what>")."""

    what: str
    kind: int
    flags: int
    body: bytes


def open_channel(namespace: int) -> Channel:
    """For orders in a namespace (descriptor), for life; the caller closes it."""
    with entered(namespace):
        return Channel(socket.NETLINK_ROUTE, "devices and routes")


def carry_out(channel: Channel, orders: Iterable[Order]) -> None:
    """All orders, one after the other, in few system calls. NetlinkError names the first that was
    refused, with its errno; those after it were tried all the same."""
    for order, code in channel.carry_out(orders, _pack, _LARGEST):
        raise NetlinkError(f"cannot {order.what}: {os.strerror(code)}", code)


def _pack(orders: list[Order], first: int) -> list[bytes]:
    return [
        message(order.kind, REQUEST | order.flags, number, order.body)
        for number, order in enumerate(orders, first)
    ]


# --- devices ----------------------------------------------------------------------------------


def veth(
    what: str,
    near: tuple[str, int],
    far: tuple[str, int],
    namespace: int,
    *,
    mtu: int,
    master: int = 0,
) -> Order:
    """A pair: ``near`` (name, index) here and up, a port of bridge ``master`` if given; ``far`` in
    ``namespace`` (descriptor) and down: the kernel cannot raise it before it has its peer."""
    size = attribute(_IFLA_MTU, _U32.pack(mtu))
    peer = _LINK_HEAD.pack(0, 0, far[1], 0, 0) + _text(_IFLA_NAME, far[0]) + size
    peer += attribute(_IFLA_NAMESPACE, _U32.pack(namespace))
    data = attribute(_INFO_DATA, attribute(_VETH_PEER, peer))
    body = _LINK_HEAD.pack(0, 0, near[1], _IFF_UP, _IFF_UP) + _text(_IFLA_NAME, near[0]) + size
    body += _master(master) + attribute(_IFLA_INFO, _text(_INFO_KIND, "veth") + data)
    return Order(what, NEW_LINK, _MAKE, body)


def bridge(what: str, name: str, index: int) -> Order:
    """A bridge that is up, without ports."""
    head = _LINK_HEAD.pack(0, 0, index, _IFF_UP, _IFF_UP)
    info = attribute(_IFLA_INFO, _text(_INFO_KIND, "bridge"))
    return Order(what, NEW_LINK, _MAKE, head + _text(_IFLA_NAME, name) + info)


def raise_link(what: str, index: int, master: int = 0) -> Order:
    """Set a device up, a port of bridge ``master`` if given."""
    return Order(
        what, NEW_LINK, 0, _LINK_HEAD.pack(0, 0, index, _IFF_UP, _IFF_UP) + _master(master)
    )


def carries(channel: Channel, index: int) -> bool:
    """Whether a device sends what it is given. Between the moment that its peer comes up and the
    one at which the kernel has worked that off (net/core/link_watch.c) it loses it."""
    body = _LINK_HEAD.pack(0, 0, index, 0, 0)
    for kind, buffer, at, end in channel.ask(GET_LINK, body):
        if kind == NEW_LINK:
            for which, start, _ in contents(buffer, at + _LINK_HEAD.size, end):
                if which == _IFLA_STATE:
                    return buffer[start] == _STATE_UP
    return False


def delete_link(what: str, index: int) -> Order:
    return Order(what, DEL_LINK, 0, _LINK_HEAD.pack(0, 0, index, 0, 0))


def _master(index: int) -> bytes:
    return attribute(_IFLA_MASTER, _U32.pack(index)) if index else b""


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


# --- addresses and routes ---------------------------------------------------------------------


def address(what: str, verb: str, cidr: str, index: int) -> Order:
    """``verb`` add or del. An IPv6 address is used at once, without a look for others."""
    family, host, length = _parsed(cidr)
    flags = NO_DAD if family == socket.AF_INET6 else 0
    body = ADDRESS_HEAD.pack(family, length, flags, 0, index)
    body += attribute(IFA_LOCAL, host) + attribute(IFA_ADDRESS, host)
    if verb == "add":
        return Order(what, NEW_ADDRESS, _MAKE, body)
    return Order(what, DEL_ADDRESS, 0, body)


def route(
    what: str,
    verb: str,
    destination: str,
    *,
    kind: str = "unicast",
    table: int = MAIN,
    index: int = 0,
    gateway: str = "",
    source: str = "",
) -> Order:
    """``verb`` add or del; ``kind`` unicast, local, blackhole, unreachable; gateways are taken as
    on the link. Scopes are those that ip(8) gives."""
    family, network, length = _parsed(destination)
    direct = "link" if kind == "unicast" and not gateway else "universe"
    scope = "host" if kind == "local" else direct
    if verb == "del":
        scope = "any"
    head = _ROUTE_HEAD.pack(
        *(family, length, 0, 0, table, _STATIC if verb == "add" else 0),
        *(_SCOPES[scope], _TYPES[kind], _ONLINK if gateway else 0),
    )
    body = head + (attribute(_RTA_DESTINATION, network) if length else b"")
    if index:
        body += attribute(_RTA_DEVICE, _U32.pack(index))
    if gateway:
        body += attribute(_RTA_GATEWAY, socket.inet_pton(family, gateway))
    if source:
        body += attribute(_RTA_SOURCE, socket.inet_pton(family, source))
    if verb == "add":
        return Order(what, _NEW_ROUTE, _MAKE, body)
    return Order(what, _DEL_ROUTE, 0, body)


def _parsed(cidr: str) -> tuple[int, bytes, int]:
    """Family, packed address, bits of the prefix."""
    host, _, length = cidr.partition("/")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    packed = socket.inet_pton(family, host)
    return family, packed, int(length) if length else 8 * len(packed)
