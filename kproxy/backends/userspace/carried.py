"""What one relay carries: its services and their fronts, as they were told and as they stand.

Nothing here makes a socket; the relay is started when it is first needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from kproxy.backends.base import Finding, Outcome
from kproxy.backends.userspace.estate import Counters, EndpointCounters, Figures
from kproxy.backends.userspace.plan import Front, Service
from kproxy.backends.userspace.sockets import hear
from kproxy.core.objects import Family, PortName, Value
from kproxy.core.policy import Use

if TYPE_CHECKING:
    from kproxy._relay import Relay


class Standing(Value, frozen=True):
    """A service port as the relay serves it now: as it was put, and its fronts' relay ports.

    ``service.uses`` are the fronts that stand where not all that were wanted could be opened;
    ``ports`` may have more of them, which nobody wants any more.
    """

    service: Service
    ports: Mapping[Use, int]


class OpenFront:
    """An open front: its id in the relay, its port, how many sockets it has."""

    __slots__ = ("id", "port", "sockets")

    def __init__(self, id_: int, port: int, sockets: int) -> None:
        self.id, self.port, self.sockets = id_, port, sockets


class Served:
    """A service of the relay: its id there, as what it was put, its open fronts."""

    __slots__ = ("fronts", "id", "service")

    def __init__(self, id_: int, service: Service) -> None:
        self.id, self.service = id_, service
        self.fronts: dict[Use, OpenFront] = {}


class Carried:
    """The services of one family's relay, which ``start`` starts."""

    def __init__(self, family: Family, start: Callable[[], Relay]) -> None:
        self.family = family
        self._start = start
        self._relay: Relay | None = None
        self.services: dict[PortName, Served] = {}
        self.standing: dict[PortName, Standing] = {}
        #: Sockets of all fronts.
        self.sockets = 0
        #: Counts changes of fronts, for those who keep record of ports.
        self.changes = 0

    @property
    def relay(self) -> Relay:
        """The relay, started when it is first needed."""
        if self._relay is None:
            self._relay = self._start()
        return self._relay

    @property
    def started(self) -> Relay | None:
        """The relay, if it runs."""
        return self._relay

    @property
    def ports(self) -> dict[Front, int]:
        """Relay ports of all open fronts."""
        return {
            Front(name, use): front.port
            for name, served in self.services.items()
            for use, front in served.fronts.items()
        }

    def missing(self, service: Service) -> tuple[Use, ...]:
        """The fronts that it wants and that are not open."""
        served = self.services.get(service.name)
        there = served.fronts if served is not None else {}
        return tuple([use for use in service.uses if use not in there])

    def tell(self, service: Service) -> None:
        """Make the relay's service like this one; only what differs is told. It keeps its fronts,
        and has those written down only that stand."""
        relay, served = self.relay, self.services.get(service.name)
        if served is None:
            affinity, proxied = service.affinity_seconds, service.proxy_protocol
            id_ = relay.add_service(
                udp=service.udp, affinity_seconds=affinity, proxy_protocol=proxied
            )
            bare = Service(service.name, affinity_seconds=affinity, proxy_protocol=proxied)
            served = self.services[service.name] = Served(id_, bare)
        was = served.service
        if _manners(was) != _manners(service):
            relay.set_service(
                served.id,
                affinity_seconds=service.affinity_seconds,
                proxy_protocol=service.proxy_protocol,
            )
        if _endpoints(was) != _endpoints(service):
            relay.set_endpoints(served.id, *_endpoints(service))
        self._stands(served, service)

    def enter(self, service: Service, use: Use, port: int, fds: tuple[int, ...]) -> None:
        """Serve sockets of a service that was told; the relay has them from here on."""
        served = self.services[service.name]
        id_ = self.relay.open(served.id, code_of(use), fds)
        served.fronts[use] = OpenFront(id_, port, len(fds))
        self._stands(served, service)
        self.sockets += len(fds)
        self.changes += 1

    def hear(self, front: Front) -> None:
        """Let in who comes by a front that was opened deaf, if it is still there. OSError at the
        limit of descriptors."""
        served = self.services.get(front.name)
        if served is None or front.use not in served.fronts:
            return
        for fd in self.relay.lend(served.fronts[front.use].id):
            hear(fd)
            os.close(fd)

    def shut(self, front: Front) -> int | None:
        """Close it; the port that is free now, None when there was no such front."""
        served = self.services.get(front.name)
        if served is None or front.use not in served.fronts:
            return None
        self.relay.close(served.fronts[front.use].id)
        port = self._forget(served, front.use)
        self._stands(served, served.service)
        return port

    def drop(self, name: PortName) -> Iterator[int]:
        """Serve it no more; the ports that are free now."""
        served = self.services.pop(name, None)
        if served is None:
            return
        self.relay.remove_service(served.id)
        del self.standing[name]
        for use in list(served.fronts):
            yield self._forget(served, use)

    def _forget(self, served: Served, use: Use) -> int:
        front = served.fronts.pop(use)
        self.sockets -= front.sockets
        self.changes += 1
        return front.port

    def _stands(self, served: Served, service: Service) -> None:
        """Write down what is so: ``service``, but for fronts that do not stand."""
        stand = tuple([use for use in service.uses if use in served.fronts])
        if stand != service.uses:
            service = msgspec.structs.replace(service, uses=stand)
        served.service = service
        ports = {use: front.port for use, front in served.fronts.items()}
        self.standing[service.name] = Standing(service, ports)

    def figures(self, *, endpoints: bool = False) -> Figures:
        """What the relay has counted, on demand of each endpoint as well; nothing while there is
        none. For any thread."""
        relay = self._relay
        if relay is None:
            return Figures(self.family)
        counted = []
        for name, served in list(self.services.items()):
            with suppress(KeyError):  # it has gone this moment
                of_all = relay.service_counters(served.id)
                of_each = _of_endpoints(relay, served.id) if endpoints else ()
                counted.append(Counters(name, of_all, of_each))
        return Figures(self.family, relay.totals(), tuple(counted))

    def findings(self) -> list[Finding]:
        """What flows told of endpoints since this was last asked; what they told of services that
        are gone is dropped. For any thread."""
        relay = self._relay
        told = relay.take_verdicts() if relay is not None else []
        if not told:
            return []
        names = {served.id: name for name, served in list(self.services.items())}
        return [
            Finding(names[id_], ip, port, Outcome(outcome))
            for id_, ip, port, outcome in told
            if id_ in names
        ]

    def close(self) -> None:
        """End every flow at once. May be called twice."""
        relay, self._relay = self._relay, None
        if relay is not None:
            relay.stop()
        self.services.clear()
        self.standing.clear()
        self.sockets = 0


def _of_endpoints(relay: Relay, service: int) -> tuple[EndpointCounters, ...]:
    counted = relay.endpoint_counters(service)
    return tuple([EndpointCounters(*place, counters) for place, counters in counted.items()])


def _manners(service: Service) -> tuple[int, bool]:
    return service.affinity_seconds, service.proxy_protocol


_Indexes = tuple[int, ...]


def _endpoints(
    service: Service,
) -> tuple[tuple[tuple[str, int], ...], _Indexes, _Indexes, tuple[int, ...]]:
    return service.endpoints, service.cluster, service.local, service.weights


def code_of(use: Use) -> int:
    """The relay's number for it."""
    from kproxy import _relay

    return {Use.CLUSTER: _relay.CLUSTER, Use.LOCAL: _relay.LOCAL}[use]
