"""A relay without sockets that keeps books as the real one does, and can be told what to refuse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from kproxy.backends.base import Finding
from kproxy.backends.userspace.door import Standing
from kproxy.backends.userspace.plan import Front, NodePort, Service
from kproxy.core.objects import PortName
from kproxy.core.policy import Use


class FakeRelay:
    """See :class:`kproxy.backends.userspace.door.RelayDoor`.

    ``taken`` are (port, UDP) of node ports that others have, ``unopened`` fronts of which no
    sockets can be had. ``said`` is every change that it was told, oldest first.
    """

    def __init__(self) -> None:
        self.taken: set[tuple[int, bool]] = set()
        self.unopened: set[Front] = set()
        self.said: list[tuple[str, object]] = []
        self.before: dict[Front, int] = {}
        self.sources: tuple[str, ...] = ()
        self._next = 40000
        self.deafened: set[Front] = set()
        self._services: dict[PortName, Service] = {}
        self._standing: dict[PortName, Standing] = {}
        self._ports: dict[Front, int] = {}
        self._held: set[NodePort] = set()

    @property
    def held(self) -> frozenset[NodePort]:
        return frozenset(self._held)

    def running(self) -> Mapping[PortName, Standing]:
        return self._standing

    def _settle(self, name: PortName) -> None:
        service = self._services.get(name)
        if service is None:
            self._standing.pop(name, None)
            return
        ports = {use: self._ports.get(Front(name, use), 0) for use in Use}
        stand = tuple(use for use in service.uses if ports[use])
        open_ = {use: port for use, port in ports.items() if port}
        self._standing[name] = Standing(replace(service, uses=stand), open_)

    def remember(self, ports: Mapping[Front, int]) -> None:
        self.before.update(ports)

    def set_sources(self, addresses: tuple[str, ...]) -> None:
        self.said.append(("sources", addresses))
        self.sources = addresses

    @property
    def deaf(self) -> bool:
        return bool(self.deafened)

    def hear(self) -> None:
        if self.deafened:
            self.said.append(("hear", frozenset(self.deafened)))
            self.deafened.clear()

    def put(self, services: Iterable[Service], *, deaf: bool = False) -> dict[PortName, str]:
        refused = {}
        for service in services:
            self.said.append(("put", service))
            for front in service.fronts:
                if front in self._ports:
                    continue
                if front in self.unopened:
                    refused[front.name] = f"no port for {front.use}"
                else:
                    self._ports[front] = self._port(front)
                    if deaf:
                        self.deafened.add(front)
            self._services[service.name] = service
            self._settle(service.name)
        return refused

    def _port(self, front: Front) -> int:
        before = self.before.pop(front, 0)
        if before:
            return before
        self._next += 1
        return self._next

    def shut(self, fronts: Iterable[Front]) -> None:
        for front in fronts:
            self.said.append(("shut", front))
            self._ports.pop(front, None)
            self._settle(front.name)

    def drop(self, names: Iterable[PortName]) -> None:
        for name in names:
            self.said.append(("drop", name))
            self._services.pop(name, None)
            for use in Use:
                self._ports.pop(Front(name, use), None)
            self._settle(name)

    def hold(self, ports: Iterable[NodePort]) -> dict[NodePort, str]:
        refused = {}
        for port in ports:
            self.said.append(("hold", port))
            if (port.port, port.udp) in self.taken:
                refused[port] = "somebody has it"
            else:
                self._held = {one for one in self._held if one.port != port.port} | {port}
        return refused

    def release(self, ports: Iterable[NodePort]) -> None:
        for port in ports:
            self.said.append(("release", port))
            self._held.discard(port)

    def findings(self) -> list[Finding]:
        return []

    def close(self) -> None:
        self._services, self._standing, self._ports, self._held = {}, {}, {}, set()
