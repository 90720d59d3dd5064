"""Addresses and devices by rtnetlink, in packed messages: a node with IPVS has thousands of them.

Source of the format: linux/rtnetlink.h, linux/if_addr.h, linux/if_link.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from kproxy.errors import NetlinkError
from kproxy.kernel.channel import Channel, Message
from kproxy.kernel.ctnetlink import attribute, contents

NEW_LINK, DEL_LINK, GET_LINK = 16, 17, 18
NEW_ADDRESS, DEL_ADDRESS, GET_ADDRESS = 20, 21, 22
NEW_ROUTE, DEL_ROUTE, GET_ROUTE = 24, 25, 26
CREATE, EXCLUSIVE = 0x400, 0x200

#: family, bits of the prefix, flags, scope, index of the device.
ADDRESS_HEAD = struct.Struct("=BBBBI")
#: struct rtmsg: family, bits of destination and source, tos, table, protocol, scope, type, flags.
ROUTE_HEAD = struct.Struct("=BBBBBBBBI")
#: family, nothing, type, index, flags, which flags to change.
LINK_HEAD = struct.Struct("=BxHiII")

IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
_RTA_DESTINATION, _RTA_PREFERRED_SOURCE = 1, 7
_IFLA_NAME, _IFLA_LINK_INFO, _INFO_KIND = 3, 18, 1

#: linux/if_addr.h: no look for others that have the address; somebody else has it.
NO_DAD, DAD_FAILED = 0x02, 0x08

SCOPE_UNIVERSE = 0

#: Nobody's addresses, and in nobody's routes but the default one: RFC 6890 keeps the first for
#: protocols to come (192.0.0.8 would not do: IPVS mode binds it), RFC 6666 the second for what is
#: to be discarded.
ELSEWHERE: dict[int, str] = {socket.AF_INET: "192.0.0.11", socket.AF_INET6: "100::1"}

_U32 = struct.Struct("=I")


class Address(NamedTuple):
    """An address of a device: ``host`` is packed, ``prefix`` in bits, ``device`` an index."""

    host: bytes
    prefix: int
    flags: int
    scope: int
    device: int

    @property
    def text(self) -> str:
        family = socket.AF_INET if len(self.host) == 4 else socket.AF_INET6
        return socket.inet_ntop(family, self.host)


def open_channel() -> Channel:
    """In the network namespace of the calling thread, for life; the caller closes it."""
    return Channel(socket.NETLINK_ROUTE, "addresses")


def list_addresses(
    channel: Channel, family: int = socket.AF_UNSPEC, device: int = 0
) -> Iterator[Address]:
    """In the kernel's order; ``device`` 0: of all."""
    # Before 4.20 the kernel does not look at the device, and gives all.
    for message in channel.dump(GET_ADDRESS, ADDRESS_HEAD.pack(family, 0, 0, 0, device)):
        found = _address(message)
        if found is not None and device in (0, found.device):
            yield found


def _address(message: Message) -> Address | None:
    kind, buffer, at, end = message
    if kind != NEW_ADDRESS:
        return None
    _, prefix, flags, scope, device = ADDRESS_HEAD.unpack_from(buffer, at)
    local = other = b""
    for which, start, stop in contents(buffer, at + ADDRESS_HEAD.size, end):
        if which == IFA_LOCAL:
            local = buffer[start:stop]
        elif which == IFA_ADDRESS:
            other = buffer[start:stop]
        elif which == IFA_FLAGS:  # all of them, where the head has room for eight
            (flags,) = _U32.unpack_from(buffer, start)
    # On a point-to-point link IFA_ADDRESS is the peer's; IFA_LOCAL, where present, is ours.
    host = local or other
    return Address(host, prefix, flags, scope, device) if host else None


def outward_address(channel: Channel, family: int) -> str:
    """The source that the kernel takes for what leaves by the default route; "" without one.

    Asked of the routing table, no packet is sent."""
    host = socket.inet_pton(family, ELSEWHERE[family])
    head = ROUTE_HEAD.pack(family, 8 * len(host), 0, 0, 0, 0, 0, 0, 0)
    try:
        kind, buffer, at, end = channel.ask(GET_ROUTE, head + attribute(_RTA_DESTINATION, host))[0]
    except NetlinkError:  # unreachable, prohibited, or no such family here
        return ""
    if kind == NEW_ROUTE:
        for which, start, stop in contents(buffer, at + ROUTE_HEAD.size, end):
            if which == _RTA_PREFERRED_SOURCE:
                return socket.inet_ntop(family, buffer[start:stop])
    return ""


# --- devices -----------------------------------------------------------------------------------


def index_of(name: str) -> int:
    """Of a device in the calling thread's namespace; 0 when there is none of the name.

    Not by the ioctl: for a name that it does not know it runs modprobe, 5 to 30 ms each time."""
    with open_channel() as channel:
        message = _device(channel, name)
    return 0 if message is None else int(LINK_HEAD.unpack_from(message[1], message[2])[2])


def kind_of(channel: Channel, name: str) -> str | None:
    """What made a device (``veth``, ``dummy``; "" for hardware); None when there is none."""
    message = _device(channel, name)
    if message is None:
        return None
    _, buffer, at, end = message
    for which, start, stop in contents(buffer, at + LINK_HEAD.size, end):
        if which == _IFLA_LINK_INFO:
            for inner, first, past in contents(buffer, start, stop):
                if inner == _INFO_KIND:
                    return buffer[first:past].rstrip(b"\0").decode()
    return ""


def _device(channel: Channel, name: str) -> Message | None:
    body = LINK_HEAD.pack(0, 0, 0, 0, 0) + _text(_IFLA_NAME, name)
    try:
        return channel.ask(GET_LINK, body)[0]
    except NetlinkError as refused:
        if refused.errno == errno.ENODEV:
            return None
        raise


def make_device(channel: Channel, name: str, kind: str) -> int:
    """A device that is down; errno when the kernel refuses, else 0."""
    info = attribute(_IFLA_LINK_INFO, _text(_INFO_KIND, kind))
    body = LINK_HEAD.pack(0, 0, 0, 0, 0) + _text(_IFLA_NAME, name) + info
    return channel.order(NEW_LINK, CREATE | EXCLUSIVE, body)


def delete_device(channel: Channel, name: str) -> int:
    """errno when the kernel refuses, else 0."""
    return channel.order(DEL_LINK, 0, LINK_HEAD.pack(0, 0, 0, 0, 0) + _text(_IFLA_NAME, name))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def failed(what: str, code: int, hint: str = "") -> NetlinkError:
    return NetlinkError(f"cannot {what}: {os.strerror(code)}", code, hint=hint)
