"""TUN devices: queues that carry whole packets, offloads included, between the kernel and us.

A device is made by opening its first queue. It stays when the last one closes, without a carrier:
routes over it are then passed over where the device's ``ignore_routes_with_linkdown`` says so, and
whoever opens a queue again finds everything else as it was. All functions act in the network
namespace of the calling thread; a queue belongs to its device for life. Source of the numbers:
linux/if_tun.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from kproxy.errors import KernelError, MachineError
from kproxy.kernel.ctnetlink import attribute
from kproxy.kernel.rtnetlink import CREATE, delete_device, failed, index_of, kind_of, open_channel

_TUNSETIFF, _TUNSETPERSIST, _TUNSETOFFLOAD = 0x400454CA, 0x400454CB, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0001, 0x1000, 0x4000, 0x0100
_FLAGS = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_MULTI_QUEUE

_CSUM, _TSO4, _TSO6, _TSO_ECN, _USO4, _USO6 = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40
#: Tried in this order: segments of UDP can be left whole since Linux 6.2.
_OFFLOADS = (
    _CSUM | _TSO4 | _TSO6 | _TSO_ECN | _USO4 | _USO6,
    _CSUM | _TSO4 | _TSO6 | _TSO_ECN,
)

_REQUEST = struct.Struct("16sH22x")

#: struct tcmsg: family, index, handle, parent, info.
_QDISC = struct.Struct("=B3xiIII")
_NEW_QDISC, _REPLACE, _KIND, _ROOT = 36, 0x100, 1, 0xFFFFFFFF

_NODE = "/dev/net/tun"


def open_queues(name: str, count: int) -> list[int]:
    """Descriptors of ``count`` queues of a device, which is made if it is not there.

    They do not block. KernelError when another device has the name, or somebody deletes this one
    meanwhile, MachineError without TUN.
    """
    queues: list[int] = []
    try:
        while len(queues) < count:
            queues.append(_open_queue(name))
        _persist(queues[0], name)
        _offload(queues[0], name)
        _unqueue(name)
    except BaseException:
        for queue in queues:
            os.close(queue)
        raise
    return queues


def _open_queue(name: str) -> int:
    try:
        queue = os.open(_NODE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as missing:
        raise MachineError(
            f"{_NODE}: {missing.strerror}", hint="try: modprobe tun, or pass the device in"
        ) from missing
    try:
        fcntl.ioctl(queue, _TUNSETIFF, _REQUEST.pack(name.encode(), _FLAGS))
    except OSError as refused:
        os.close(queue)
        # EINVAL: another kind of device, or a TUN device that is not as ours.
        hint = (
            f"rename or delete it: ip link delete {name}" if refused.errno == errno.EINVAL else ""
        )
        raise KernelError(
            f"cannot open a queue of device {name}: {refused.strerror}", hint=hint
        ) from refused
    return queue


def _persist(queue: int, name: str) -> None:
    try:
        fcntl.ioctl(queue, _TUNSETPERSIST, 1)
    except OSError as gone:
        raise _lost(name, gone) from gone


def _offload(queue: int, name: str) -> None:
    for offloads in _OFFLOADS:
        try:
            fcntl.ioctl(queue, _TUNSETOFFLOAD, offloads)
        except OSError as refused:
            if refused.errno == errno.EBADFD:
                raise _lost(name, refused) from refused
        else:
            return
    raise MachineError(f"device {name} leaves no segments whole", hint="Linux 2.6.27 or later")


def _lost(name: str, why: OSError) -> KernelError:
    """EBADFD: the queue has no device any more."""
    return KernelError(f"device {name} was deleted while it was set up: {why.strerror}")


def _unqueue(name: str) -> None:
    """Packets go straight into the ring that the reader empties. What the kernel puts before it by
    default is three rings for each of the 256 queues that the device could have, as long as the
    reader's: 25 MB, and a lock more on the way. A packet never waits there, because the driver
    drops what its ring has no room for."""
    body = _QDISC.pack(0, index_of(name), 0, _ROOT, 0) + attribute(_KIND, b"noqueue\0")
    with open_channel() as channel:
        code = channel.order(_NEW_QDISC, CREATE | _REPLACE, body)
    # Without CONFIG_NET_SCHED there are no others.
    if code not in (0, errno.EOPNOTSUPP):
        raise failed(f"take the queueing discipline from {name}", code)


def delete(name: str) -> bool:
    """Take a TUN device away; whether it was there. One of another kind stays."""
    with open_channel() as channel:
        if kind_of(channel, name) != "tun":
            return False
        code = delete_device(channel, name)
        if code not in (0, errno.ENODEV):
            raise failed(f"delete {name}", code)
        return code == 0


def exists(name: str) -> bool:
    """Whether there is a TUN device of the name."""
    with open_channel() as channel:
        return kind_of(channel, name) == "tun"
