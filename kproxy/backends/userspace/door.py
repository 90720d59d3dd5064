"""The door of userspace mode to its relay: service ports and node ports in, relay ports out.

One :class:`RelayDoor` for each IP family of a daemon. It acts in the network namespace of the
calling thread, and only there can its sockets be made; the relay's threads are born in it as well.
Making a door costs nothing: the relay starts with the first service.

Order of a change: :meth:`RelayDoor.put` and :meth:`RelayDoor.hold` open what is new, then rules
lead there; what rules no longer name goes by :meth:`RelayDoor.shut`, :meth:`RelayDoor.drop` and
:meth:`RelayDoor.release`. What could not be had is told by name and leaves the rest as it should
be.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from kproxy.backends.userspace import sockets
from kproxy.backends.userspace.budget import Budget, budget, for_each_front
from kproxy.backends.userspace.estate import (
    Counters,
    Estate,
    Figures,
    Lent,
    LentFront,
    LentPort,
    ServiceWords,
    Words,
)
from kproxy.backends.userspace.held_ports import HeldPorts
from kproxy.backends.userspace.plan import Front, NodePort, Service
from kproxy.backends.userspace.ports import Ports
from kproxy.core.objects import Family, PortName, Protocol, Value
from kproxy.core.policy import Use
from kproxy.core.snapshot import UserspaceSettings
from kproxy.errors import KernelError

if TYPE_CHECKING:
    from kproxy._relay import Relay


#: Seconds that answers to the last datagrams have to come back when nothing else is waited for.
LAST_ANSWERS = 0.2

#: Seconds between two looks at what is left.
_SLICE = 0.05


class Standing(Value, frozen=True):
    """A service port as the relay serves it now: as it was put, and its fronts' relay ports.

    ``service.uses`` are the fronts that stand where not all that were wanted could be opened;
    ``ports`` may have more of them, which nobody wants any more.
    """

    service: Service
    ports: Mapping[Use, int]


class _Front:
    """An open front: its id in the relay, its port, how many sockets it has."""

    __slots__ = ("id", "port", "sockets")

    def __init__(self, id_: int, port: int, count: int) -> None:
        self.id, self.port, self.sockets = id_, port, count


class _Served:
    """A service of the relay: its id there, as what it was put, its open fronts."""

    __slots__ = ("fronts", "id", "service")

    def __init__(self, id_: int, service: Service) -> None:
        self.id, self.service = id_, service
        self.fronts: dict[Use, _Front] = {}


class RelayDoor:
    """One family's relay, and the sockets that it serves. Nothing of the kernel's tables.

    One thread at a time changes it; :meth:`figures` are for any thread.
    A backend shows its door as ``relay`` (:class:`kproxy.proxy.Relaying`).
    """

    def __init__(
        self,
        family: Family,
        settings: UserspaceSettings = UserspaceSettings(),  # noqa: B008 (frozen)
    ) -> None:
        self.family = family
        self._settings = settings
        self._relay: Relay | None = None
        self._limits: Budget | None = None
        self._served: dict[PortName, _Served] = {}
        self._standing: dict[PortName, Standing] = {}
        self._sockets = 0
        self._held = HeldPorts(family)
        self._ports = {udp: Ports(settings.port_range) for udp in (False, True)}
        self._before: dict[Front, int] = {}
        #: Fronts of a predecessor that are not served yet, and what we have lent to a successor.
        self._waiting: tuple[Lent, ...] = ()
        self._lent: tuple[Lent, ...] = ()
        #: Counts changes of fronts, for those who keep record of ports.
        self.changes = 0

    @property
    def listen(self) -> str:
        """The address at which every front listens: the unspecified one, or --bind-address."""
        return self._settings.listen or sockets.UNSPECIFIED[self.family]

    def running(self) -> Mapping[PortName, Standing]:
        """All that is served now, with its relay ports. A view: it goes with every change."""
        return self._standing

    @property
    def held(self) -> frozenset[NodePort]:
        """The node ports that are held now."""
        return self._held.held

    @property
    def ports(self) -> dict[Front, int]:
        """Relay ports of all open fronts."""
        return {
            Front(name, use): front.port
            for name, served in self._served.items()
            for use, front in served.fronts.items()
        }

    def remember(self, ports: Mapping[Front, int]) -> None:
        """Relay ports of an earlier process, to which rules in the kernel may lead: these are tried
        first when such a front is opened, so that the rules may stay as they are."""
        self._before.update(ports)

    # --- a change ------------------------------------------------------------------------------

    def put(self, services: Iterable[Service]) -> dict[PortName, str]:
        """Serve these as they say: their endpoints, and every front that they want.

        Fronts that they no longer want stay open until :meth:`shut`. Returns those of which a
        front could not be opened, and why: with their new endpoints they have the fronts that they
        had.
        """
        services = list(services)
        for ports in self._ports.values():
            ports.again()
        coming = sum(len(self._missing(service)) for service in services)
        refused = {}
        for service in services:
            missing = self._missing(service)
            self._tell(service)
            for use in missing:
                in_use = self._sockets + self._held.count
                count = for_each_front(self._budget, in_use, coming)
                coming -= 1
                try:
                    self._open(service, use, count)
                except KernelError as why:
                    refused[service.name] = str(why)
        return refused

    def _missing(self, service: Service) -> tuple[Use, ...]:
        served = self._served.get(service.name)
        there = served.fronts if served is not None else {}
        return tuple([use for use in service.uses if use not in there])

    def _tell(self, service: Service) -> None:
        """Make the relay's service like this one; only what differs is told. It keeps its fronts,
        and has those written down only that stand."""
        relay, served = self._running(), self._served.get(service.name)
        if served is None:
            affinity, proxied = service.affinity_seconds, service.proxy_protocol
            id_ = relay.add_service(
                udp=service.udp, affinity_seconds=affinity, proxy_protocol=proxied
            )
            bare = Service(service.name, affinity_seconds=affinity, proxy_protocol=proxied)
            served = self._served[service.name] = _Served(id_, bare)
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

    def _stands(self, served: _Served, service: Service) -> None:
        """Write down what is so: ``service``, but for fronts that do not stand."""
        stand = tuple([use for use in service.uses if use in served.fronts])
        if stand != service.uses:
            service = msgspec.structs.replace(service, uses=stand)
        served.service = service
        ports = {use: front.port for use, front in served.fronts.items()}
        self._standing[service.name] = Standing(service, ports)

    def _open(self, service: Service, use: Use, count: int) -> None:
        if not count:
            raise KernelError(
                f"no descriptor left for a socket: {self._budget.sockets} are in use",
                where=str(service.name),
                hint="allow the process more open files (ulimit -n, LimitNOFILE=)",
            )

        def open_(port: int) -> sockets.Sockets:
            return sockets.front(
                self.family, udp=service.udp, address=self.listen, port=port, count=count
            )

        before = self._before.pop(Front(service.name, use), 0)
        opened = self._ports[service.udp].open(open_, before)
        self._enter(service, use, opened.port, opened.fds)

    def _enter(self, service: Service, use: Use, port: int, fds: tuple[int, ...]) -> None:
        """Serve sockets; the relay has them from here on."""
        served = self._served[service.name]
        id_ = self._running().open(served.id, _use(use), fds)
        served.fronts[use] = _Front(id_, port, len(fds))
        self._stands(served, service)
        self._sockets += len(fds)
        self.changes += 1

    def shut(self, fronts: Iterable[Front]) -> None:
        """Nobody gets in there any more. Flows go on; UDP sessions end. Unknown ones: nothing."""
        for name, use in fronts:
            served = self._served.get(name)
            if served is None or use not in served.fronts:
                continue
            self._running().close(served.fronts[use].id)
            self._forget(served, use)
            self._stands(served, served.service)

    def drop(self, names: Iterable[PortName]) -> None:
        """These are not served any more. TCP flows go on, UDP sessions end. Unknown: nothing."""
        for name in names:
            served = self._served.pop(name, None)
            if served is None:
                continue
            self._running().remove_service(served.id)
            del self._standing[name]
            for use in list(served.fronts):
                self._forget(served, use)

    def _forget(self, served: _Served, use: Use) -> None:
        front = served.fronts.pop(use)
        self._sockets -= front.sockets
        self._ports[served.service.udp].free(front.port)
        self.changes += 1

    def hold(self, ports: Iterable[NodePort]) -> dict[NodePort, str]:
        """Take node ports of this node so that nobody else can. Returns those that could not be
        had, and how to find out who has them; one that is held already is no news."""
        return self._held.hold(ports)

    def release(self, ports: Iterable[NodePort]) -> None:
        """Give node ports back. Unknown ones: nothing."""
        self._held.release(ports)

    # --- figures -------------------------------------------------------------------------------

    def figures(self) -> Figures:
        """What the relay has counted; nothing while there is none."""
        if self._relay is None:
            return Figures(self.family)
        counted = []
        for name, served in list(self._served.items()):
            with suppress(KeyError):  # it has gone this moment
                counted.append(Counters(name, self._relay.service_counters(served.id)))
        return Figures(self.family, self._relay.totals(), tuple(counted))

    # --- succession ----------------------------------------------------------------------------

    def lend(self) -> Estate:
        """All that is served and held, with copies of the descriptors: for a successor. We serve
        on, and keep the copies until :meth:`give_up` or :meth:`resume`. KernelError when there are
        no descriptors left for the copies."""
        lent: list[Lent] = []
        try:
            for served in self._served.values():
                fronts: list[LentFront] = []
                lent.append(Lent(served.service, ()))
                for use, front in served.fronts.items():
                    fronts.append(LentFront(use, front.port, self._running().lend(front.id)))
                    lent[-1] = Lent(served.service, tuple(fronts))
        except OSError as refused:
            raise KernelError(
                f"no copies of the sockets: {refused.strerror}",
                hint="allow the process more open files (ulimit -n, LimitNOFILE=)",
            ) from refused
        finally:
            self._lent = tuple(lent)
        held = tuple([LentPort(port, fds) for port, fds in self._held.lent().items()])
        return Estate(self.family, self._lent, held)

    def quiet(self) -> Words:
        """Take nothing more: a successor is about to. What we know of clients is returned."""
        relay = self._running()
        for served in self._served.values():
            for front in served.fronts.values():
                relay.quiet(front.id)
        said = [
            ServiceWords(name, tuple(relay.affinities(served.id)), tuple(relay.sessions(served.id)))
            for name, served in self._served.items()
        ]
        return Words(self.family, tuple([one for one in said if one.affinities or one.sessions]))

    def resume(self, words: Words | None) -> None:
        """No successor came about: serve on. ``words`` are what :meth:`quiet` returned, if it was
        called."""
        relay = self._running()
        if words is not None:
            self._repeat(words)
            for lent in self._lent:
                served = self._served[lent.service.name]
                for front in lent.fronts:
                    old = served.fronts[front.use].id
                    served.fronts[front.use].id = relay.open(served.id, _use(front.use), front.fds)
                    relay.close(old)
            self._lent = ()
        self._close_copies()

    def give_up(self) -> None:
        """The successor serves: let the copies and the node ports go. Our flows go on."""
        self._close_copies()
        self._held.close()
        self.left()

    def left(self) -> int:
        """After :meth:`give_up`: how many TCP flows and UDP sessions still go on here.

        The sockets by which sessions are answered are closed when the last one of a service has
        ended: should the successor be killed, the next one finds its port free.
        """
        relay = self._relay
        if relay is None:
            return 0
        for name, served in list(self._served.items()):
            if name.protocol is Protocol.UDP and not relay.service_counters(served.id)["active"]:
                self.drop([name])
        totals = relay.totals()
        return totals["flows"] + totals["sessions"]

    def _close_copies(self) -> None:
        for lent in self._lent:
            for front in lent.fronts:
                for fd in front.fds:
                    os.close(fd)
        self._lent = ()

    def adopt(self, estate: Estate) -> None:
        """Get ready to serve what a predecessor does, and hold what it holds; the value's
        descriptors are ours. Nobody is served before :meth:`enter`."""
        for lent in estate.services:
            self._tell(lent.service)
        self._waiting = estate.services
        for held in estate.node_ports:
            self._held.adopt(held.port, held.fds)

    def enter(self, words: Words) -> None:
        """Serve what was adopted: the predecessor has said its last ``words``."""
        self._repeat(words)
        waiting, self._waiting = self._waiting, ()
        for lent in waiting:
            for front in lent.fronts:
                self._ports[lent.service.udp].adopt(front.port)
                self._enter(lent.service, front.use, front.port, front.fds)

    def _repeat(self, words: Words) -> None:
        relay = self._running()
        for said in words.services:
            served = self._served.get(said.name)
            if served is None:
                continue
            relay.set_affinities(served.id, said.affinities)
            if said.sessions:
                relay.set_sessions(served.id, said.sessions)

    def drain(self, seconds: float) -> int:
        """Let nobody in any more, and TCP flows end by themselves for so long; how many are left.

        A UDP session has no end, only a last answer: for that there is :data:`LAST_ANSWERS`."""
        relay = self._relay
        if relay is None:
            return 0
        begun = time.monotonic()
        relay.drain(0)
        while (flows := relay.totals()["flows"]) and time.monotonic() - begun < seconds:
            relay.drain(_SLICE)
        if relay.totals()["sessions"]:
            relay.drain(max(0.0, begun + LAST_ANSWERS - time.monotonic()))
        return flows

    def close(self) -> None:
        """Stop the relay at once and close everything. May be called twice."""
        relay, self._relay = self._relay, None
        if relay is not None:
            relay.stop()
        self._close_copies()
        for front in [front for lent in self._waiting for front in lent.fronts]:
            for fd in front.fds:
                os.close(fd)
        self._waiting = ()
        self._held.close()
        self._served.clear()
        self._standing.clear()
        self._sockets = 0

    # --- the relay -----------------------------------------------------------------------------

    @property
    def _budget(self) -> Budget:
        if self._limits is None:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            cpus = len(os.sched_getaffinity(0))
            self._limits = budget(limit, self._settings.workers, cpus)
        return self._limits

    def _running(self) -> Relay:
        """The relay, started when it is first needed."""
        if self._relay is None:
            from kproxy._relay import Relay

            limits = self._budget
            self._relay = Relay(
                workers=limits.workers,
                max_flows=limits.flows,
                max_sessions=limits.sessions,
                idle_seconds=self._settings.tcp_idle_seconds,
                udp_idle_seconds=self._settings.udp_idle_seconds,
            )
            self._relay.start()
        return self._relay


def _manners(service: Service) -> tuple[int, bool]:
    return service.affinity_seconds, service.proxy_protocol


_Endpoints = tuple[tuple[tuple[str, int], ...], tuple[int, ...], tuple[int, ...]]


def _endpoints(service: Service) -> _Endpoints:
    return service.endpoints, service.cluster, service.local


def _use(use: Use) -> int:
    from kproxy import _relay

    return {Use.CLUSTER: _relay.CLUSTER, Use.LOCAL: _relay.LOCAL}[use]
