"""A relay without sockets that keeps books as the real one does, and can be told what to refuse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from kproxy.backends.userspace.door import Standing
from kproxy.backends.userspace.plan import Front, NodePort, Service
from kproxy.core.objects import PortName


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
        self._next = 40000
        self._services: dict[PortName, Service] = {}
        self._ports: dict[Front, int] = {}
        self._held: set[NodePort] = set()

    @property
    def held(self) -> frozenset[NodePort]:
        return frozenset(self._held)

    def running(self) -> dict[PortName, Standing]:
        return {
            name: Standing(service, self._ports_of(name))
            for name, service in self._services.items()
        }

    def _ports_of(self, name: PortName) -> dict[object, int]:
        return {front.use: port for front, port in self._ports.items() if front.name == name}

    def remember(self, ports: Mapping[Front, int]) -> None:
        self.before.update(ports)

    def put(self, services: Iterable[Service]) -> dict[PortName, str]:
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
            stand = tuple(use for use in service.uses if Front(service.name, use) in self._ports)
            self._services[service.name] = replace(service, uses=stand)
        return refused

    def _port(self, front: Front) -> int:
        before = self.before.pop(front, 0)
        if before and before not in self._ports.values():
            return before
        self._next += 1
        return self._next

    def shut(self, fronts: Iterable[Front]) -> None:
        for front in fronts:
            self.said.append(("shut", front))
            self._ports.pop(front, None)

    def drop(self, names: Iterable[PortName]) -> None:
        for name in names:
            self.said.append(("drop", name))
            self._services.pop(name, None)
            self._ports = {one: port for one, port in self._ports.items() if one.name != name}

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

    def close(self) -> None:
        self._services, self._ports, self._held = {}, {}, set()
