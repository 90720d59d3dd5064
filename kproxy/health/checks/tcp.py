"""TCP: the endpoint takes a connection, which is ended by a reset before a byte is sent.

The cheapest that the kernel has: a socket, a connect, a close. Three options make it so.

* SO_LINGER of 0 seconds: close sends RST, so neither side keeps a TIME_WAIT. At 2,500 checks a
  second, those would hold 150,000 sockets.
* TCP_QUICKACK off before the connect: the kernel holds the last ACK of the handshake back for some
  40 ms, and our RST comes instead of it. The endpoint's kernel has answered, which is all that this
  check asks; its program never sees a connection, and its backlog is not filled by ours when it
  hangs.
* Neither TCP_SYNCNT nor TCP_USER_TIMEOUT: the time-out of the check closes the socket, and SYNs
  are sent again at 1 s and 3 s as for anybody.
"""

from __future__ import annotations

import errno
import select
import socket
import struct

from kproxy.core.health.values import Target
from kproxy.health.checks.outcome import Outcome, bad, of_errno

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_FAILED = select.EPOLLERR | select.EPOLLHUP
_GOOD = Outcome(True, "connected")


class TcpProber:
    """A :class:`~kproxy.health.checks.descriptors.DescriptorProber`."""

    mask = select.EPOLLOUT

    def open(self, target: Target) -> socket.socket | Outcome:
        family = socket.AF_INET6 if ":" in target.ip else socket.AF_INET
        try:
            made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            return of_errno(error.errno, at_once=True)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            code = made.connect_ex((target.ip, target.port))
        except BaseException:
            made.close()
            raise
        if code in (0, errno.EINPROGRESS):
            return made
        made.close()
        return of_errno(code, at_once=True)

    def ended(self, target: Target, its: socket.socket, events: int) -> Outcome:
        if events & _FAILED:
            return of_errno(its.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        try:
            local = its.getsockname()
        except OSError as error:
            return of_errno(error.errno)
        # A port of ours that nobody listens on may be given to this very socket, which TCP then
        # connects to itself (RFC 9293, simultaneous open).
        if local[1] == target.port and local[0] == target.ip:
            return bad("connection refused")
        return _GOOD
