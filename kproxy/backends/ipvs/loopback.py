"""Serves clients with a loopback source in IPVS mode, by a small relay on 127.0.0.1.

IPVS lets no packet with a loopback source leave the node (crosses_local_route_boundary in
net/netfilter/ipvs/ip_vs_xmit.c, since 2.6.37). So a rule brings such packets here as long as the
service has an endpoint, and the relay asks the service itself, as the node does, with a source of
the kernel's choice. A proxy that ends takes its relay's connections with it; until the next one
has opened its own, these clients are refused.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Callable, Iterable

from kproxy import logs
from kproxy._relay import ORIGINAL, Relay
from kproxy.backends.ipvs import chains
from kproxy.backends.ipvs.datagrams import Datagrams
from kproxy.backends.ipvs.fixed import RelayPorts
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.saved import parse
from kproxy.errors import KproxyError

_log = logs.get("ipvs")

_HOST = "127.0.0.1"

#: TCP connections at once: each has two descriptors, of which the services' own must be left some.
_MOST_FLOWS = 4096

#: Patience in seconds with each endpoint: IPVS chooses anew for each try. The kernel's own second
#: try, after one second, is still of use.
_LADDER = (1.0, 2.0, 4.0, 8.0)

#: Connections that wait to be accepted.
_BACKLOG = 1024


class Loopback:
    """The relay of one network namespace: that of the thread which first asks for :meth:`ports`.

    A process has one for each backend of IPv4.
    """

    def __init__(self) -> None:
        self._relay: Relay | None = None
        self._service = 0
        self._datagrams: Datagrams | None = None
        self._ports: RelayPorts | None = None
        self._instead = ""
        self._told = ""

    def ports(self, instead: str, saved: Callable[[], str]) -> RelayPorts | None:
        """Where the relay listens; None when it cannot, which is told once: services are served
        without it.

        ``instead`` is the address that is asked in place of one in 127.0.0.0/8. ``saved`` gives the
        rules of a predecessor as the save tool prints them: its ports are taken again if they are
        free, so that a restart changes no rule.
        """
        try:
            if self._ports is None:
                self._ports = self._open(found(saved()))
                self._instead = ""
            self._lead(instead)
        except (OSError, KproxyError) as error:
            self._say(str(error))
            self.close()
        else:
            self._told = ""
        return self._ports

    def _open(self, former: RelayPorts | None) -> RelayPorts:
        stream = _bound(socket.SOCK_STREAM, former.tcp if former else 0)
        stream.listen(_BACKLOG)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tcp = stream.getsockname()[1]
        self._relay = Relay(max_flows=_MOST_FLOWS, max_sessions=1, ladder=_LADDER)
        self._relay.start()
        self._service = self._relay.add_service()
        self._relay.open(self._service, ORIGINAL, (stream.detach(),))
        front = _bound(socket.SOCK_DGRAM, former.udp if former else 0)
        udp = front.getsockname()[1]
        self._datagrams = Datagrams(front)
        _log.detail("clients with a loopback source are served", tcp=tcp, udp=udp)
        return RelayPorts(tcp, udp)

    def _lead(self, instead: str) -> None:
        if instead == self._instead or self._relay is None or self._datagrams is None:
            return
        # The port is the one that was asked for.
        self._relay.set_endpoints(self._service, ((instead, 1),), (0,), ())
        self._datagrams.instead = self._instead = instead

    def _say(self, why: str) -> None:
        if why != self._told:
            _log.warning("clients with a loopback source are not served", why=why)
        self._told = why

    def close(self) -> None:
        """Ends its connections. Asked for its ports again, it opens anew. May be called twice."""
        if self._relay is not None:
            self._relay.stop()
        if self._datagrams is not None:
            self._datagrams.close()
        self._relay = self._datagrams = self._ports = None


_OPTIONS = re.compile(rf"-p (tcp|udp)\b.* -j DNAT --to-destination {re.escape(_HOST)}:(\d+)$")


def found(saved: str) -> RelayPorts | None:
    """The ports that rules lead to, None when there are no such rules. Pure."""
    rows: Iterable[str] = parse(saved).get(Table.NAT, {}).get(chains.FROM_LOOPBACK, ())
    ports = {match[1]: int(match[2]) for row in rows if (match := _OPTIONS.search(row))}
    return RelayPorts(**ports) if ports.keys() == {"tcp", "udp"} else None


def _bound(kind: int, port: int) -> socket.socket:
    """A socket on 127.0.0.1: at ``port`` if that is free, else (and for 0) at one that is."""
    made = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC)
    try:
        if kind == socket.SOCK_STREAM:
            # Connections of a predecessor may be in TIME_WAIT there.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((_HOST, port))
    except OSError as error:
        made.close()
        if not port or error.errno != errno.EADDRINUSE:
            raise
        return _bound(kind, 0)
    return made
