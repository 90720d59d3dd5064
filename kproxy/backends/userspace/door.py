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
from typing import TYPE_CHECKING

from kproxy.backends.base import Finding
from kproxy.backends.userspace import sockets
from kproxy.backends.userspace.budget import Budget, budget, for_each_front
from kproxy.backends.userspace.carried import Carried, Standing
from kproxy.backends.userspace.estate import Figures
from kproxy.backends.userspace.held_ports import HeldPorts
from kproxy.backends.userspace.plan import Front, NodePort, Service
from kproxy.backends.userspace.ports import Ports
from kproxy.core.objects import Family, PortName, Protocol
from kproxy.core.policy import Use
from kproxy.core.snapshot import UserspaceSettings
from kproxy.errors import KernelError

if TYPE_CHECKING:
    from kproxy._relay import Relay

#: Seconds that answers to the last datagrams have to come back when nothing else is waited for.
LAST_ANSWERS = 0.2

#: Seconds between two looks at what is left.
_SLICE = 0.05


class RelayDoor:
    """One family's relay, and the sockets that it serves. Nothing of the kernel's tables.

    One thread at a time changes it; :meth:`figures` are for any thread. A backend shows its door as
    ``relay`` (:class:`kproxy.family.Relaying`).
    """

    def __init__(
        self,
        family: Family,
        settings: UserspaceSettings = UserspaceSettings(),  # noqa: B008 (frozen)
    ) -> None:
        self.family = family
        self.carried = Carried(family, self._start)
        self.node_ports = HeldPorts(family)
        self._settings = settings
        self._limits: Budget | None = None
        self._ports = {udp: Ports(settings.port_range) for udp in (False, True)}
        #: Addresses of the node to connect from when the usual one has no ports left.
        self.sources: tuple[str, ...] = ()
        self._before: dict[Front, int] = {}
        #: Fronts that nobody reaches yet.
        self._deaf: list[Front] = []

    @property
    def listen(self) -> str:
        """The address at which every front listens: the unspecified one, or --bind-address."""
        return self._settings.listen or sockets.UNSPECIFIED[self.family]

    def running(self) -> Mapping[PortName, Standing]:
        """All that is served now, with its relay ports. A view: it goes with every change."""
        return self.carried.standing

    def standing(self, name: PortName) -> Standing | None:
        """One service port as it is served now."""
        return self.carried.standing.get(name)

    @property
    def held(self) -> frozenset[NodePort]:
        """The node ports that are held now."""
        return self.node_ports.held

    @property
    def ports(self) -> dict[Front, int]:
        """Relay ports of all open fronts."""
        return self.carried.ports

    @property
    def changes(self) -> int:
        """How many fronts have come and gone, for those who keep record of ports."""
        return self.carried.changes

    def remember(self, ports: Mapping[Front, int]) -> None:
        """Relay ports of an earlier process, to which rules in the kernel may lead: these are tried
        first when such a front is opened, so that the rules may stay as they are."""
        self._before.update(ports)

    # --- a change ------------------------------------------------------------------------------

    def set_sources(self, addresses: tuple[str, ...]) -> None:
        """Connect from these too, at most 16; see ``Relay.set_sources``."""
        self.sources = addresses
        if (relay := self.carried.started) is not None:
            relay.set_sources(addresses)

    def put(self, services: Iterable[Service], *, deaf: bool = False) -> dict[PortName, str]:
        """Serve these as they say: their endpoints, and every front that they want. ``deaf``: a new
        front lets nobody in before :meth:`hear`, when it is guarded.

        Fronts that they no longer want stay open until :meth:`shut`. Returns those of which a
        front could not be opened, and why: with their new endpoints they have the fronts that they
        had.
        """
        services = list(services)
        for ports in self._ports.values():
            ports.again()
        coming = sum(len(self.carried.missing(service)) for service in services)
        refused = {}
        for service in services:
            missing = self.carried.missing(service)
            self.carried.tell(service)
            for use in missing:
                in_use = self.carried.sockets + self.node_ports.count
                count = for_each_front(self._budget, in_use, coming)
                coming -= 1
                try:
                    self._open(service, use, count, deaf=deaf)
                except KernelError as why:
                    refused[service.name] = str(why)
        return refused

    @property
    def deaf(self) -> bool:
        """Whether there are fronts that let nobody in."""
        return bool(self._deaf)

    def hear(self) -> None:
        """Let in who comes by deaf fronts. OSError at the limit of descriptors: they stay deaf."""
        while self._deaf:
            self.carried.hear(self._deaf[-1])
            self._deaf.pop()

    def _open(self, service: Service, use: Use, count: int, *, deaf: bool) -> None:
        if not count:
            raise KernelError(
                f"no descriptor left for a socket: {self._budget.sockets} are in use",
                where=str(service.name),
                hint="allow the process more open files (ulimit -n, LimitNOFILE=)",
            )

        def open_(port: int) -> sockets.Sockets:
            return sockets.front(
                self.family,
                udp=service.udp,
                address=self.listen,
                port=port,
                count=count,
                deaf=deaf,
            )

        before = self._before.pop(Front(service.name, use), 0)
        opened = self._ports[service.udp].open(open_, before)
        self.carried.enter(service, use, opened.port, opened.fds)
        if deaf:
            self._deaf.append(Front(service.name, use))

    def fits(self, port: int, address: str, *, udp: bool) -> bool:
        """Whether a front may listen there, by --proxy-port-range and --bind-address."""
        return self._ports[udp].allows(port) and address == self.listen

    def adopt(self, service: Service, use: Use, port: int, fds: tuple[int, ...]) -> None:
        """Serve sockets that a predecessor had made for a front of a service that the relay
        knows."""
        self._ports[service.udp].adopt(port)
        self.carried.enter(service, use, port, fds)

    def shut(self, fronts: Iterable[Front]) -> None:
        """Nobody gets in there any more. Flows go on; UDP sessions end. Unknown ones: nothing."""
        for front in fronts:
            port = self.carried.shut(front)
            if port is not None:
                self._ports[front.name.protocol is Protocol.UDP].free(port)

    def drop(self, names: Iterable[PortName]) -> None:
        """These are not served any more. TCP flows go on, UDP sessions end. Unknown: nothing."""
        for name in names:
            for port in self.carried.drop(name):
                self._ports[name.protocol is Protocol.UDP].free(port)

    def hold(self, ports: Iterable[NodePort]) -> dict[NodePort, str]:
        """Take node ports of this node so that nobody else can. Returns those that could not be
        had, and how to find out who has them; one that is held already is no news."""
        return self.node_ports.hold(ports)

    def release(self, ports: Iterable[NodePort]) -> None:
        """Give node ports back. Unknown ones: nothing."""
        self.node_ports.release(ports)

    def figures(self, *, endpoints: bool = False) -> Figures:
        """What the relay has counted, on demand of each endpoint as well; nothing while there is
        none."""
        return self.carried.figures(endpoints=endpoints)

    def findings(self) -> list[Finding]:
        """See :class:`kproxy.backends.base.Witnessing`."""
        return self.carried.findings()

    # --- the end -------------------------------------------------------------------------------

    def left(self) -> int:
        """After a hand-over: how many TCP flows and UDP sessions still go on here.

        The sockets by which sessions are answered are closed when the last one of a service has
        ended: should the successor be killed, the next one finds its port free.
        """
        relay = self.carried.started
        if relay is None:
            return 0
        for name, served in list(self.carried.services.items()):
            if name.protocol is Protocol.UDP and not relay.service_counters(served.id)["active"]:
                self.drop([name])
        totals = relay.totals()
        return totals["flows"] + totals["sessions"]

    def drain(self, seconds: float) -> int:
        """Let nobody in any more, and TCP flows end by themselves for so long; how many are left.

        A UDP session has no end, only a last answer: for that there is :data:`LAST_ANSWERS`."""
        relay = self.carried.started
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
        self.carried.close()
        self.node_ports.close()

    # --- the relay -----------------------------------------------------------------------------

    @property
    def _budget(self) -> Budget:
        if self._limits is None:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            cpus = len(os.sched_getaffinity(0))
            self._limits = budget(limit, self._settings.workers, cpus)
        return self._limits

    def _start(self) -> Relay:
        from kproxy._relay import Relay

        limits = self._budget
        relay = Relay(
            workers=limits.workers,
            max_flows=limits.flows,
            max_sessions=limits.sessions,
            idle_seconds=self._settings.tcp_idle_seconds,
            udp_idle_seconds=self._settings.udp_idle_seconds,
        )
        relay.set_sources(self.sources)
        relay.start()
        return relay
