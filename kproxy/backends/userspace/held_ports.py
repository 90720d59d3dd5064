"""Node ports that are really held: while a service has one, no other program of the node gets it.

A TCP port is bound and does not listen, a UDP port is bound and never read: packets to node ports
are translated before they get so far, and what comes untranslated is not answered by these
sockets. Without them a daemon could take a node port unseen and never hear from anybody.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Mapping
from contextlib import ExitStack

from kproxy.backends.userspace.plan import NodePort
from kproxy.backends.userspace.sockets import UNSPECIFIED, plain
from kproxy.core.objects import Family
from kproxy.errors import KernelError

#: The kernel takes its least instead, some 2 KB: what lands there is never read.
_NO_BUFFER = 0

#: Port number, and whether it is one of UDP.
_Key = tuple[int, bool]


class HeldPorts:
    """The node ports of one family that this process holds."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._held: dict[_Key, tuple[NodePort, tuple[socket.socket, ...]]] = {}

    @property
    def held(self) -> frozenset[NodePort]:
        """Those that are held now."""
        return frozenset([port for port, _ in self._held.values()])

    @property
    def count(self) -> int:
        """Descriptors in use."""
        return sum(len(sockets) for _, sockets in self._held.values())

    def hold(self, ports: Iterable[NodePort]) -> dict[NodePort, str]:
        """Take these; returns those that could not be had, and why. One that is held on other
        addresses so far is held on the new ones instead."""
        refused = {}
        for port in ports:
            key = (port.port, port.udp)
            if key in self._held and self._held[key][0] == port:
                continue
            self._let_go(key)
            try:
                self._held[key] = (port, self._bound(port))
            except KernelError as taken:
                refused[port] = str(taken)
        return refused

    def release(self, ports: Iterable[NodePort]) -> None:
        """Give them back. One that is held on other addresses by now stays."""
        for port in ports:
            key = (port.port, port.udp)
            if key in self._held and self._held[key][0] == port:
                self._let_go(key)

    def close(self) -> None:
        """Give all of them back."""
        for key in list(self._held):
            self._let_go(key)

    def lent(self) -> Mapping[NodePort, tuple[int, ...]]:
        """Descriptors by port, for a successor; they stay ours."""
        return {
            port: tuple([one.fileno() for one in sockets]) for port, sockets in self._held.values()
        }

    def adopt(self, port: NodePort, fds: Iterable[int]) -> None:
        """Go on holding what a predecessor held; takes the descriptors over."""
        key = (port.port, port.udp)
        self._let_go(key)
        self._held[key] = (port, tuple([socket.socket(fileno=fd) for fd in fds]))

    def _let_go(self, key: _Key) -> None:
        for one in self._held.pop(key, (None, ()))[1]:
            one.close()

    def _bound(self, port: NodePort) -> tuple[socket.socket, ...]:
        with ExitStack() as opened:
            made = [
                opened.enter_context(_bind(self._family, address, port.port, udp=port.udp))
                for address in port.addresses or (UNSPECIFIED[self._family],)
            ]
            opened.pop_all()
            return tuple(made)


def _bind(family: Family, address: str, port: int, *, udp: bool) -> socket.socket:
    one = plain(family, udp=udp)
    try:
        if udp:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NO_BUFFER)
        try:
            one.bind((address, port))
        except OSError as refused:
            if udp or refused.errno != errno.EADDRINUSE:
                raise
            # Closed connections of an earlier user may linger on the port; a listener is refused
            # all the same. Afterwards without it, or others who set it could bind as well.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((address, port))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as refused:
        one.close()
        look = f"ss -{'u' if udp else 't'}anp 'sport = :{port}'"
        raise KernelError(
            f"node port {port}/{'UDP' if udp else 'TCP'} cannot be held: {refused.strerror}",
            where=address,
            hint=f"see who has it with: {look}",
        ) from refused
    return one
