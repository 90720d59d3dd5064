"""Addresses of the network namespace that the calling thread is in, and word of their changes.

What is bound to the device of VIPs (:mod:`kproxy.kernel.dummy`) is no address of the node: it is
left out of both.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from contextlib import suppress

from kproxy.errors import NetlinkError
from kproxy.kernel import dummy
from kproxy.kernel.ctnetlink import HEADER
from kproxy.kernel.rtnetlink import (
    ADDRESS_HEAD,
    DAD_FAILED,
    DEL_ADDRESS,
    NEW_ADDRESS,
    SCOPE_UNIVERSE,
    index_of,
    list_addresses,
    open_channel,
    outward_address,
)

#: linux/rtnetlink.h: multicast groups that tell of added and removed addresses.
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100

_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33

#: Room for notices of a first sync's ten thousand addresses (768 bytes of memory each, and the
#: kernel gives twice what is asked for): the device is known only by the first of them.
_ROOM = 4 << 20


def host_addresses(but: str = dummy.NAME) -> tuple[str, ...]:
    """All addresses of this namespace, both families, global scope first; of these, what leaves
    by the default route (kubelet's choice of a node's address as well); then by device.

    Text without prefix length. Those of the device ``but`` are left out, and any that another host
    was found to have. :class:`AddressNotices` tells of no routes: that another default route has
    come is seen by the next one who asks. The kernel's own order is no order: it lists devices by
    their index modulo 256 (before 6.6), so that the first one differs from boot to boot.
    """
    left_out = index_of(but)
    with open_channel() as channel:
        found = [
            each
            for each in list_addresses(channel)
            if each.device != left_out and not each.flags & DAD_FAILED
        ]
        outward = {outward_address(channel, f) for f in (socket.AF_INET, socket.AF_INET6)}
    found.sort(
        key=lambda each: (each.scope != SCOPE_UNIVERSE, each.text not in outward, each.device)
    )
    return tuple(dict.fromkeys(each.text for each in found))


#: What fastpath mode calls its devices (:mod:`kproxy.backends.fastpath.steer`).
ENGINE_DEVICES = frozenset({"kp4", "kp6"})


class AddressNotices:
    """A socket that becomes readable when an address of this namespace comes or goes.

    Bound for life to the namespace of the thread that makes it, and to be used in that namespace.
    ``fileno`` is for an event loop. The device ``but`` counts for nothing: a sync in IPVS mode
    binds addresses by the thousand, and must not ask for the next one.
    """

    def __init__(self, but: str = dummy.NAME) -> None:
        self._but = but
        self._left_out = 0
        #: Devices of fastpath mode: their addresses are no addresses of the node.
        self._engines = {index for name in ENGINE_DEVICES if (index := index_of(name))}
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            socket.NETLINK_ROUTE,
        )
        with suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        self._socket.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        self._leave_out(index_of(but))

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> bool:
        """Take every notice that waits. Whether the node's addresses may have changed; how is not
        said: read them."""
        changed = False
        while True:
            try:
                notice = self._socket.recv(65536)
            except BlockingIOError:
                return changed
            except OSError as error:
                # Notices were lost for lack of room; the caller reads everything anyway.
                if error.errno != errno.ENOBUFS:
                    raise NetlinkError(
                        f"no word of addresses any more: {error.strerror}", error.errno or 0
                    ) from error
                changed = True
            else:
                changed = self._matters(notice) or changed

    def _matters(self, notice: bytes) -> bool:
        kind = HEADER.unpack_from(notice)[1]
        if kind not in (NEW_ADDRESS, DEL_ADDRESS):
            return False
        device = ADDRESS_HEAD.unpack_from(notice, HEADER.size)[4]
        if device == self._left_out or device in self._engines:
            return False
        name = ""
        with suppress(OSError):  # a device that is gone: its addresses are as well
            name = socket.if_indextoname(device)
        if name in ENGINE_DEVICES:
            self._engines.add(device)  # known by its number when it is gone
            return False
        if name != self._but:
            return True
        self._leave_out(device)  # made since, or made anew
        return False

    def _leave_out(self, device: int) -> None:
        """No more notices of this device, 0 for none: the kernel itself drops them."""
        if device:
            self._left_out = device
            _attach(self._socket, _without(device))

    def close(self) -> None:
        self._socket.close()


# --- a filter in the kernel (linux/filter.h) ---------------------------------------------------

_LOAD_HALF, _LOAD_WORD, _EQUAL, _RETURN = 0x28, 0x20, 0x15, 0x06
_ALL = 0xFFFFFFFF

#: Where nlmsg_type and ifa_index stand.
_TYPE_AT, _DEVICE_AT = 4, HEADER.size + 4

#: One step: what to do, steps to skip if it holds and if not, operand.
_STEP = struct.Struct("=HBBI")
#: struct sock_fprog: how many steps, and where they are.
_PROGRAM = struct.Struct("@HP")


def _without(device: int) -> bytes:
    """Drops what is said of the addresses of one device."""
    steps = (
        (_LOAD_HALF, 0, 0, _TYPE_AT),
        (_EQUAL, 1, 0, _loaded("=H", NEW_ADDRESS)),
        (_EQUAL, 0, 2, _loaded("=H", DEL_ADDRESS)),
        (_LOAD_WORD, 0, 0, _DEVICE_AT),
        (_EQUAL, 1, 0, _loaded("=I", device)),
        (_RETURN, 0, 0, _ALL),
        (_RETURN, 0, 0, 0),
    )
    return b"".join(_STEP.pack(*step) for step in steps)


def _loaded(form: str, number: int) -> int:
    """As a filter sees it: it takes all it loads for network order."""
    return int.from_bytes(struct.pack(form, number))


def _attach(sock: socket.socket, program: bytes) -> None:
    held = ctypes.create_string_buffer(program, len(program))
    steps = len(program) // _STEP.size
    described = _PROGRAM.pack(steps, ctypes.addressof(held))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
