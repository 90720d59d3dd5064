"""healthCheckNodePort: a port of this node for each Service whose balancer asks about the node.

A balancer that keeps clients' addresses (externalTrafficPolicy Local) may send them only to nodes
with endpoints of the Service; it asks each node on that port, any path, and reads the status
(:func:`kproxy.health.answers.node_port`). Each family has its sockets and its own count, as a
balancer's address has a family: a pod with an address of both counts once for each.

What is answered is taken from the Snapshots in force, so nobody is sent here before the rules are
there. Who holds a number that two services claim has been decided before
(:mod:`kproxy.core.conflicts`); one that a stranger holds is tried again until it can be had.
"""

from __future__ import annotations

import asyncio
import importlib
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from kproxy import logs
from kproxy.core.objects import Family, ObjectKey, Refusal
from kproxy.core.snapshot import Snapshot
from kproxy.errors import KernelError
from kproxy.health import answers
from kproxy.health.roll import Roll
from kproxy.health.sites import RETRY, Site, until_had
from kproxy.health.sockets import listen, spell
from kproxy.tasks import beside

if TYPE_CHECKING:
    from aiohttp import web

_log = logs.get("servers")

_NAME = "health check"


class NodePorts:
    """All of them. Of the event loop's thread; the sockets are of its network namespace.

    ``healthy`` is asked for each answer: is the proxy healthy, whatever becomes of the node
    (``monitor.verdict().healthy``)?
    """

    def __init__(self, healthy: Callable[[], bool], *, retry: float = RETRY) -> None:
        self._healthy = healthy
        self._retry = retry
        self._rolls: dict[Family, Roll] = {}
        self._doors: dict[tuple[Family, int], _Door] = {}
        # One for all ports, and one limit: silent clients of many must not use up descriptors.
        self._site = Site(self._answer)
        self._wanted, self._ready = asyncio.Event(), asyncio.Event()

    def follow(self, snapshots: Iterable[Snapshot]) -> None:
        """These are in force now, one of each family at most. What is not wanted any more is closed
        before this returns, connections too, and what is new has its port, if it can be had."""
        for snapshot in snapshots:
            family = snapshot.family
            roll = self._rolls.setdefault(family, Roll(family))
            for number in roll.take(snapshot):
                door = self._doors.get((family, number))
                wanted = number in roll.asked
                if door is not None and not (wanted and door.addresses == roll.addresses):
                    self._close((family, number))
                    door = None
                if door is None and wanted:
                    self._open((family, number), roll.addresses)

    @property
    def refusals(self) -> tuple[str, ...]:
        """Ports that could not be had, and why; they are tried again. Sorted."""
        return tuple(
            sorted(
                str(_refusal(self._rolls[family].asked[number].service, door.refused))
                for (family, number), door in self._doors.items()
                if door.refused is not None
            )
        )

    async def run(self) -> None:
        """Answer until cancelled; then all is closed. The first wanted port loads the library."""
        try:
            await self._wanted.wait()
            await asyncio.to_thread(importlib.import_module, "aiohttp.web")
            await self._site.open()
            self._ready.set()
            await asyncio.Event().wait()
        finally:
            self.close()
            await self._site.close()

    def close(self) -> None:
        """Close all at once: for the owner to call, :meth:`run` may never have begun."""
        for key in tuple(self._doors):
            self._close(key)

    def _open(self, key: tuple[Family, int], addresses: tuple[str, ...]) -> None:
        door = self._doors[key] = _Door(addresses, key[1])
        try:
            door.bind()
        except KernelError as refused:
            door.refused = refused
        door.task = beside(self._serve(door), f"health check node port {key[1]}")
        self._wanted.set()

    async def _serve(self, door: _Door) -> None:
        if door.refused is not None:
            await until_had(_NAME, door.bind, self._retry, port=door.number)
        await self._ready.wait()
        for held in door.sockets:
            listening = await self._site.listen(held)
            door.listening.append(listening)
            await listening.start_serving()
        _log.detail("serving", what=_NAME, port=door.number, addresses=",".join(door.addresses))

    def _close(self, key: tuple[Family, int]) -> None:
        self._doors.pop(key).close()
        self._site.guests.dismiss(lambda transport: _door_of(transport) == key)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        transport = request.transport
        if transport is None:  # it has gone meanwhile
            return web.Response(status=503)
        family, number = _door_of(transport)
        service, endpoints = self._rolls[family].asked[number]
        status, body = answers.node_port(service, endpoints, healthy=self._healthy())
        return web.Response(status=status, body=body.encode(), headers=answers.weighted(endpoints))


def _door_of(transport: asyncio.BaseTransport) -> tuple[Family, int]:
    """By the address to which a client came: IPv6 ones have four parts."""
    name = transport.get_extra_info("sockname")
    return (Family.IPV6 if len(name) == 4 else Family.IPV4), name[1]


def _refusal(service: ObjectKey, refused: KernelError) -> Refusal:
    field = "spec.healthCheckNodePort"
    return Refusal(str(refused), kind="Service", key=str(service), field=field, whole=False)


class _Door:
    """One port: all its sockets, or none and why. ``listening`` are those that are answered on."""

    def __init__(self, addresses: tuple[str, ...], number: int) -> None:
        self.addresses = addresses
        self.number = number
        self.sockets: list[socket.socket] = []
        self.listening: list[asyncio.Server] = []
        self.refused: KernelError | None = None
        self.task: asyncio.Task[None] | None = None

    def bind(self) -> None:
        """Take the port on every address; KernelError, and on none, when one cannot be had."""
        try:
            for address in self.addresses:
                self.sockets.append(listen(spell(address, self.number), both=False))
        except KernelError as refused:
            self._close_sockets()
            self.refused = refused
            raise
        self.refused = None

    def close(self) -> None:
        """At once: who comes now is refused."""
        if self.task is not None:
            self.task.cancel()
        # Before the sockets themselves: the event loop has to let go of them first.
        for each in self.listening:
            each.close()
        self._close_sockets()

    def _close_sockets(self) -> None:
        for held in self.sockets:
            held.close()
        self.sockets.clear()
