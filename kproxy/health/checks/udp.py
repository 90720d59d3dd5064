"""UDP: a datagram goes out, and a reply comes back.

The socket is connected, so the kernel reports an ICMP port unreachable on it (and takes replies of
nobody else): that is a failure at once. Each try has a socket, and so a local port, of its own: a
late reply to an earlier one finds nobody.
"""

from __future__ import annotations

import select
import socket

from kproxy.core.health.values import Target, Udp
from kproxy.health.checks.outcome import Outcome, bad, of_errno
from kproxy.health.checks.text import quoted

#: The largest datagram there is.
_MOST = 65535
_GOOD = Outcome(True, "replied")


class UdpProber:
    """A :class:`~kproxy.health.checks.descriptors.DescriptorProber`."""

    mask = select.EPOLLIN

    def open(self, target: Target) -> socket.socket | Outcome:
        probe = target.check.probe
        assert isinstance(probe, Udp)
        family = socket.AF_INET6 if ":" in target.ip else socket.AF_INET
        try:
            made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            return of_errno(error.errno, at_once=True)
        try:
            made.connect((target.ip, target.port))
            made.send(probe.send)
        except OSError as error:
            made.close()
            return of_errno(error.errno, at_once=True)
        return made

    def ended(self, target: Target, its: socket.socket, events: int) -> Outcome | None:
        probe = target.check.probe
        assert isinstance(probe, Udp)
        try:
            reply = its.recv(_MOST)
        except BlockingIOError:
            # A datagram whose checksum was wrong: the kernel woke us and dropped it.
            return None
        except OSError as error:
            return of_errno(error.errno)
        if probe.expect and probe.expect not in reply:
            return bad(f"reply {quoted(reply)}, want {quoted(probe.expect)}")
        return _GOOD
