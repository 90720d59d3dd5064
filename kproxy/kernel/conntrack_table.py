"""The table of tracked connections as a whole: emptied.

Its entries are the business of :mod:`kproxy.kernel.conntrack`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from kproxy.errors import NetlinkError
from kproxy.kernel.ctnetlink import ACK, CT_DELETE, REQUEST, answers, message

# linux/netlink.h
_NETLINK_NETFILTER = 12

#: Emptying a table of 262,144 entries takes tenths of a second (struct timeval).
_PATIENCE = struct.pack("@ll", 10, 0)

#: What a kernel says that tracks no connections, or has no messages about them.
_NONE = (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP)


def flush() -> None:
    """Forget every connection of the calling thread's namespace, of every family and protocol.

    A deletion that names no entry is about all of them (``ctnetlink_del_conntrack``). Where nothing
    is tracked there is nothing to do. NetlinkError: the kernel refuses.
    """
    try:
        code = _asked()
    except OSError as error:
        code = error.errno or errno.EIO
    if code and code not in _NONE:
        raise NetlinkError(f"cannot empty the conntrack table: {os.strerror(code)}", code)


def _asked() -> int:
    """The kernel's errno, 0 for good."""
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
    ) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
        door.bind((0, 0))
        door.send(message(CT_DELETE, REQUEST | ACK, 1, socket.AF_UNSPEC, b""))
        for _, code in answers(door.recv(1 << 16)):
            return code
    return errno.EBADMSG
