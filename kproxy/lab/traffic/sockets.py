"""Sockets of every protocol that a Service may have, as far as this kernel has them.

SCTP in its one-to-one style (RFC 6458, section 4) behaves as TCP does: listen, accept, connect, and
an ABORT reads as a refusal.
"""

from __future__ import annotations

import socket
from functools import cache

from kproxy.core.objects import Family, Protocol

AF = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_KINDS = {
    Protocol.TCP: (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    Protocol.UDP: (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    Protocol.SCTP: (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}

#: Protocols with connections; in the others each packet stands for itself.
STREAMS = frozenset({Protocol.TCP, Protocol.SCTP})


def make(family: Family, protocol: Protocol) -> socket.socket:
    """A socket in the calling thread's namespace. OSError when the kernel lacks the protocol."""
    return socket.socket(AF[family], *_KINDS[protocol])


@cache
def kernel_has(protocol: Protocol) -> bool:
    """Whether sockets of a protocol can be made (the kernel may load a module for that)."""
    try:
        for family in Family:
            make(family, protocol).close()
    except OSError:
        return False
    return True
