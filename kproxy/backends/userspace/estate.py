"""What one process hands to the next so that no connection is refused in between. Values.

An :class:`Estate` is all that a relay of one family serves and holds, with descriptors where there
are sockets. :class:`Words` are said of each service when the old relay takes nothing more for it:
who is bound to which endpoint.
"""

from __future__ import annotations

import msgspec

from kproxy.backends.userspace.plan import NodePort, Service
from kproxy.core.objects import Family, PortName, Value
from kproxy.core.policy import Use


class LentFront(Value, frozen=True):
    """A front: its relay port, and its sockets' descriptors (numbers of the process that holds the
    value)."""

    use: Use
    port: int
    fds: tuple[int, ...]


class Lent(Value, frozen=True):
    """A service port as it is served, with its fronts."""

    service: Service
    fronts: tuple[LentFront, ...]


class LentPort(Value, frozen=True):
    """A held node port, with its sockets' descriptors."""

    port: NodePort
    fds: tuple[int, ...]


class Estate(Value, frozen=True):
    """All of one family."""

    family: Family
    services: tuple[Lent, ...] = ()
    node_ports: tuple[LentPort, ...] = ()

    @property
    def fds(self) -> tuple[int, ...]:
        """Every descriptor, in the order of the fields."""
        fronts = [fd for lent in self.services for front in lent.fronts for fd in front.fds]
        return (*fronts, *[fd for held in self.node_ports for fd in held.fds])


class Words(Value, frozen=True):
    """Of one service port: (client, endpoint address, endpoint port, seconds since its last
    connection), and UDP sessions as (client address, client port, endpoint address, endpoint
    port)."""

    name: PortName
    affinities: tuple[tuple[str, str, int, float], ...] = ()
    sessions: tuple[tuple[str, int, str, int], ...] = ()


class EndpointCounters(Value, frozen=True):
    """What a relay has counted of one endpoint of a service port (``Relay.endpoint_counters``)."""

    address: str
    port: int
    counters: dict[str, int]

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


class Counters(Value, frozen=True):
    """What a relay has counted of one service port (``Relay.service_counters``), and of its
    endpoints where that was asked for: those that it has, and those that went while connections to
    them go on."""

    name: PortName
    counters: dict[str, int]
    endpoints: tuple[EndpointCounters, ...] = ()


class Figures(Value, frozen=True):
    """What the relay of one family has counted (``Relay.totals``)."""

    family: Family
    totals: dict[str, int] = msgspec.field(default_factory=dict)
    services: tuple[Counters, ...] = ()
