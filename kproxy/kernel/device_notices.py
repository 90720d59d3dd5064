"""Word of changes of one device's addresses, and of its end, in the calling thread's namespace."""

from __future__ import annotations

import errno
import socket
import struct

from kproxy.errors import NetlinkError
from kproxy.kernel.ctnetlink import HEADER
from kproxy.kernel.rtnetlink import DEL_ADDRESS, DEL_LINK, NEW_ADDRESS, index_of

#: linux/rtnetlink.h: multicast groups that tell of devices and of addresses.
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100

#: struct ifinfomsg and struct ifaddrmsg have the device's index at the same place.
_DEVICE_AT = HEADER.size + 4
_INDEX = struct.Struct("=I")

_WHAT = {
    DEL_LINK: "device {} deleted",
    NEW_ADDRESS: "address added to {}",
    DEL_ADDRESS: "address taken from {}",
}


class DeviceNotices:
    """A socket that becomes readable when something may have become of a device named ``name``.

    Bound for life to the namespace of the thread that makes it. ``fileno`` is for an event loop.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._index = index_of(name)
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            socket.NETLINK_ROUTE,
        )
        self._socket.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> str:
        """Take every notice that waits; the first thing that was done to the device, in words."""
        said = ""
        while True:
            try:
                notice = self._socket.recv(1 << 16)
            except BlockingIOError:
                return said
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise NetlinkError(
                        f"no word of device {self._name} any more: {error.strerror}",
                        error.errno or 0,
                    ) from error
                said = said or f"more changes of {self._name} than could be told"
            else:
                said = said or self._concern(notice)

    def settle(self) -> None:
        """Whatever was said until now is as it should be. To be called in the same namespace."""
        self.drain()
        self._index = index_of(self._name)

    def close(self) -> None:
        self._socket.close()

    def _concern(self, notice: bytes) -> str:
        kind = HEADER.unpack_from(notice)[1]
        (index,) = _INDEX.unpack_from(notice, _DEVICE_AT)
        if kind not in _WHAT or index != self._index:
            return ""
        return _WHAT[kind].format(self._name)
