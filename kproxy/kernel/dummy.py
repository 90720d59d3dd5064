"""The dummy device that VIPs are bound to in IPVS mode: made, filled by the thousand, taken away.

IPVS acts on packets that are delivered to the node itself, so every VIP has to be an address of the
node. The device stays down, as kube-proxy leaves it: the local route of an address needs no device
that is up, in either family, and one that is up would get a link-local address and a second route
for each IPv6 address. (Set up and down again by hand it loses its IPv6 addresses, which are bound
anew by the next full sync.) All functions act in the network namespace of the calling thread.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

from kproxy.core.objects import Family
from kproxy.errors import NetlinkError
from kproxy.kernel.channel import Channel
from kproxy.kernel.ctnetlink import REQUEST, attribute
from kproxy.kernel.rtnetlink import (
    ADDRESS_HEAD,
    CREATE,
    DEL_ADDRESS,
    EXCLUSIVE,
    IFA_ADDRESS,
    IFA_FLAGS,
    IFA_LOCAL,
    NEW_ADDRESS,
    NO_DAD,
    SCOPE_UNIVERSE,
    delete_device,
    failed,
    index_of,
    kind_of,
    list_addresses,
    make_device,
    open_channel,
)

#: kube-proxy's own name for it.
NAME = "kube-ipvs0"

_KIND = "dummy"

#: Bytes of the largest message: nlmsghdr, ifaddrmsg, two IPv6 addresses, flags.
_LARGEST = 16 + 8 + 20 + 20 + 8

_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}

#: The heads of attributes whose content follows.
_LOCAL = {
    socket.AF_INET: struct.pack("=HH", 8, IFA_LOCAL),
    socket.AF_INET6: struct.pack("=HH", 20, IFA_LOCAL),
}
_ADDRESS = struct.pack("=HH", 8, IFA_ADDRESS)
#: nlmsghdr, ifaddrmsg with the head of IFA_LOCAL, address; then the same address as IFA_ADDRESS, or
#: IFA_FLAGS.
_V4, _V6 = struct.Struct("=IHHII12s4s4s4s"), struct.Struct("=IHHII12s16s8s")

#: Addresses of the whole length all of them.
_WHOLE: Mapping[str, int] = MappingProxyType({})

_NO_DAD = attribute(IFA_FLAGS, struct.pack("=I", NO_DAD))


class RefusedAddress(NamedTuple):
    """An address that was not bound, or not taken away, and the kernel's errno."""

    address: str
    errno: int

    def __str__(self) -> str:
        if self.errno == errno.EACCES:  # inet6_addr_add
            return f"{self.address}: IPv6 is disabled there (sysctl net.ipv6.conf.*.disable_ipv6)"
        return f"{self.address}: {os.strerror(self.errno)}"


def ensure(name: str = NAME) -> None:
    """Make the device if it is not there. NetlinkError when the kernel has none of the kind, or
    another device has the name."""
    with open_channel() as channel:
        code = make_device(channel, name, _KIND)
        if code == errno.EOPNOTSUPP:
            raise NetlinkError(
                f"cannot make {name}: this kernel has no dummy devices",
                code,
                hint="try: modprobe dummy",
            )
        if code == errno.EEXIST:
            _expect_dummy(channel, name)
        elif code:
            raise failed(f"make {name}", code)


def _expect_dummy(channel: Channel, name: str) -> None:
    kind = kind_of(channel, name)
    if kind not in (_KIND, None):
        raise NetlinkError(
            f"device {name} is not of type dummy but {kind or 'hardware'}",
            errno.EEXIST,
            hint=f"rename or delete it: ip link delete {name}",
        )


def delete(name: str = NAME) -> bool:
    """Take the device away with all its addresses; whether it was there. NetlinkError when another
    device has the name."""
    with open_channel() as channel:
        kind = kind_of(channel, name)
        if kind is None:
            return False
        _expect_dummy(channel, name)
        code = delete_device(channel, name)
        if code not in (0, errno.ENODEV):
            raise failed(f"delete {name}", code)
        return code == 0


def addresses(name: str = NAME, family: Family | None = None) -> frozenset[str] | None:
    """What is bound to the device, of one family or both; None when there is no such device, or
    only one of another kind: that one's addresses are somebody else's.

    An IPv6 address of link scope is the kernel's own and left out.
    """
    device = index_of(name)
    if not device:
        return None
    code = socket.AF_UNSPEC if family is None else _FAMILIES[family]
    with open_channel() as channel:
        if kind_of(channel, name) != _KIND:
            return None
        try:
            found = list(list_addresses(channel, code, device))
        except NetlinkError as refused:
            if refused.errno == errno.ENODEV:  # gone in between
                return None
            raise
    return frozenset(
        each.text for each in found if len(each.host) == 4 or each.scope == SCOPE_UNIVERSE
    )


def add(addresses: Iterable[str], name: str = NAME) -> list[RefusedAddress]:
    """Bind addresses of either family; one that is bound already is fine.

    IPv6 without a look for others that have it (nodad): every node of the cluster does.
    """
    refused = _change(NEW_ADDRESS, CREATE | EXCLUSIVE, addresses, name)
    return [each for each in refused if each.errno != errno.EEXIST]


def remove(addresses: Iterable[str], name: str = NAME) -> list[RefusedAddress]:
    """Take addresses away, whatever prefix they have there; one that is not there is fine."""
    refused = _change(DEL_ADDRESS, 0, addresses, name)
    missing = [each.address for each in refused if each.errno == errno.EADDRNOTAVAIL]
    if missing:
        # Or it is there with another prefix than ours, which somebody else gave it.
        prefixes = _prefixes(name)
        there = [text for text in missing if text in prefixes]
        refused += _change(DEL_ADDRESS, 0, there, name, prefixes)
    return [each for each in refused if each.errno != errno.EADDRNOTAVAIL]


def _prefixes(name: str) -> dict[str, int]:
    device = index_of(name)
    with open_channel() as channel:
        found = list_addresses(channel, device=device) if device else ()
        return {each.text: each.prefix for each in found}


def _change(
    kind: int,
    flags: int,
    addresses: Iterable[str],
    name: str,
    prefixes: Mapping[str, int] = _WHOLE,
) -> list[RefusedAddress]:
    """All that is refused. ``prefixes`` in bits, of addresses that have not the whole length."""
    device = index_of(name)
    if not device:
        raise NetlinkError(f"there is no device {name}", errno.ENODEV)

    @cache
    def head(code: socket.AddressFamily, length: int) -> bytes:
        return ADDRESS_HEAD.pack(code, length, 0, SCOPE_UNIVERSE, device) + _LOCAL[code]

    flags |= REQUEST

    def pack(some: list[str], first: int) -> list[bytes]:
        messages = []
        for number, text in enumerate(some, first):
            if ":" in text:
                host = socket.inet_pton(socket.AF_INET6, text)
                start = head(socket.AF_INET6, prefixes.get(text, 128))
                one = _V6.pack(_V6.size, kind, flags, number, 0, start, host, _NO_DAD)
            else:
                host = socket.inet_pton(socket.AF_INET, text)
                start = head(socket.AF_INET, prefixes.get(text, 32))
                one = _V4.pack(_V4.size, kind, flags, number, 0, start, host, _ADDRESS, host)
            messages.append(one)
        return messages

    with open_channel() as channel:
        refused = channel.carry_out(addresses, pack, _LARGEST)
    return [RefusedAddress(text, code) for text, code in refused]
