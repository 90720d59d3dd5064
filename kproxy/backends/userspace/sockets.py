"""Sockets of one front: several on one port, so that each worker has a queue of its own.

SO_REUSEPORT makes the kernel spread new connections and UDP clients over the sockets of a port by
a hash. It also lets any process of the same user join in, silently; hence the first socket of a
port is bound without it, which fails when anybody has the port, and gets the option afterwards.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from contextlib import ExitStack, suppress

from kproxy.core.objects import Family, Value
from kproxy.errors import KernelError

#: The kernel takes net.core.somaxconn instead when that is less: the administrator's word counts.
_BACKLOG = 65535

#: The address that means all of a family's.
UNSPECIFIED = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}

_DOMAIN = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_KIND = {False: socket.SOCK_STREAM, True: socket.SOCK_DGRAM}

#: Tries for a port of the kernel's choice: between its choice and our listen() somebody else may
#: have begun to listen there.
_TRIES = 8


#: What a deaf socket has: BPF that drops whatever the kernel would give it, first packets of
#: connections as well (``ret #0``). Not in :mod:`socket`: SO_ATTACH_FILTER, SO_DETACH_FILTER.
_DROP_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0)
_ATTACH, _DETACH = 26, 27


class PortTaken(KernelError):
    """Somebody else has the port."""


class Sockets(Value, frozen=True):
    """Descriptors of one front, all on ``port``; whoever holds the value closes them."""

    port: int
    fds: tuple[int, ...]


def front(
    family: Family, *, udp: bool, address: str, port: int, count: int, deaf: bool = False
) -> Sockets:
    """``count`` sockets on ``address``: listening for TCP, bound for UDP. Port 0: the kernel's
    choice. ``deaf``: nothing reaches them until :func:`hear`. PortTaken when somebody has the port,
    KernelError for anything else."""
    for left in reversed(range(_TRIES if port == 0 else 1)):
        try:
            return _front(family, udp=udp, address=address, port=port, count=count, deaf=deaf)
        except PortTaken:
            if not left:
                raise
    raise AssertionError("unreachable")


def _front(
    family: Family, *, udp: bool, address: str, port: int, count: int, deaf: bool
) -> Sockets:
    where = f"{address}:{port}" if family is Family.IPV4 else f"[{address}]:{port}"
    with ExitStack() as opened:
        made: list[socket.socket] = []
        try:
            for _ in range(count):
                one = opened.enter_context(plain(family, udp=udp))
                if deaf:
                    _deafen(one)
                if made:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if port and not udp:
                    # Connections of a relay that was killed linger on its ports; they are no
                    # reason to leave them. Two UDP sockets with it would share the port instead.
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind((address, port))
                port = one.getsockname()[1]
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if not udp:
                    _listen(one)
                made.append(one)
        except OSError as refused:
            kind = PortTaken if refused.errno == errno.EADDRINUSE else KernelError
            raise kind(f"cannot be had: {refused.strerror}", where=where) from refused
        return Sockets(port, tuple([one.detach() for one in made]))


def plain(family: Family, *, udp: bool) -> socket.socket:
    """A socket of one family only, close-on-exec, that never blocks."""
    one = socket.socket(_DOMAIN[family], _KIND[udp] | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    if family is Family.IPV6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return one


def _deafen(one: socket.socket) -> None:
    code = ctypes.create_string_buffer(_DROP_ALL, len(_DROP_ALL))
    program = struct.pack("@HP", 1, ctypes.addressof(code))
    one.setsockopt(socket.SOL_SOCKET, _ATTACH, program)


def hear(fd: int) -> None:
    """A deaf socket gets what comes from here on; another one does anyway."""
    one = socket.socket(fileno=fd)
    try:
        with suppress(FileNotFoundError):
            one.setsockopt(socket.SOL_SOCKET, _DETACH, 0)
    finally:
        one.detach()


def address_of(fd: int) -> str:
    """Where a socket is bound, as text; the descriptor stays open."""
    one = socket.socket(fileno=fd)
    try:
        return str(one.getsockname()[0])
    finally:
        one.detach()


def _listen(one: socket.socket) -> None:
    """What is set here, the accepted connections inherit: it saves two calls for each of them."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # A relay passes on what it gets when it gets it; waiting for more is up to the ends.
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    one.listen(_BACKLOG)
