"""Addresses of the network namespace that the calling thread is in, and word of their changes."""

from __future__ import annotations

import errno
import socket
from typing import Any

from kproxy.kernel.netlink import explained, open_route

#: linux/rtnetlink.h: multicast groups that tell of added and removed addresses.
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100

#: linux/if_addr.h: an IPv6 address found to be in use elsewhere.
_IFA_F_DADFAILED = 0x08

_SCOPE_UNIVERSE = 0


def host_addresses() -> tuple[str, ...]:
    """All addresses of this namespace, both families, global scope first, else the kernel's order.

    Text without prefix length. Call it outside of an event loop's thread: pyroute2's synchronous
    socket runs a loop of its own.
    """
    with explained("list addresses"), open_route() as route:
        rows: list[Any] = list(route.get_addr())
    found = [(row["scope"] != _SCOPE_UNIVERSE, _address(row)) for row in rows if _usable(row)]
    return tuple(dict.fromkeys(address for _, address in sorted(found, key=lambda pair: pair[0])))


def _address(row: Any) -> str:
    # On a point-to-point link IFA_ADDRESS is the peer's; IFA_LOCAL, where present, is ours.
    return str(row.get_attr("IFA_LOCAL") or row.get_attr("IFA_ADDRESS"))


def _usable(row: Any) -> bool:
    return not (row.get_attr("IFA_FLAGS") or row["flags"]) & _IFA_F_DADFAILED


class AddressNotices:
    """A socket that becomes readable when an address of this namespace comes or goes.

    Bound for life to the namespace of the thread that makes it. ``fileno`` is for an event loop.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            socket.NETLINK_ROUTE,
        )
        self._socket.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> None:
        """Take every notice that waits. What changed is not in them: read the addresses."""
        while True:
            try:
                self._socket.recv(65536)
            except BlockingIOError:
                return
            except OSError as error:
                # Notices were lost for lack of room; the caller reads everything anyway.
                if error.errno != errno.ENOBUFS:
                    raise

    def close(self) -> None:
        self._socket.close()
