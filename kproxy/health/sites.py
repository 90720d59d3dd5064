"""What all web servers of the daemon share: the library, limits on silent clients, and patience
until a port can be had.

A :class:`Site` answers on any number of listening sockets. The sockets are made by the caller
(:mod:`kproxy.health.sockets`), because that costs nothing, and requests wait in the kernel until
the web library has been loaded, which costs a fifth of a second.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from kproxy import logs
from kproxy.errors import KernelError
from kproxy.health.guests import Guests

if TYPE_CHECKING:
    from aiohttp import web

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logs.get("servers")

_T = TypeVar("_T")

#: Seconds between two tries to take a port: kube-proxy's.
RETRY = 5.0

#: Seconds for open requests to end when the server does.
_SHUTDOWN = 0.2


class Site:
    """One set of answers. Make it, :meth:`open`, then :meth:`listen` as often as it is wanted.

    ``routes``: path -> handler, for every method; or one handler for whatever is asked. The
    connections of all its sockets are the guests of one house: there is one limit for them.
    """

    def __init__(self, routes: Mapping[str, Handler] | Handler) -> None:
        self._whatever = routes if callable(routes) else None
        self._routes: Mapping[str, Handler] = {} if callable(routes) else routes
        self._runner: web.AppRunner | None = None
        self.guests = Guests()

    async def open(self) -> None:
        """Load the library, be ready to answer."""
        from aiohttp import web

        @web.middleware
        async def noted(request: web.Request, handler: Handler) -> web.StreamResponse:
            self.guests.asked(request.transport)
            # Routes begin with a slash, and OPTIONS may ask for "*".
            return await (self._whatever or handler)(request)

        application = web.Application(middlewares=[noted])
        for path, handler in self._routes.items():
            application.router.add_route("*", path, handler)
        application.on_response_prepare.append(_be_discreet)
        self._runner = web.AppRunner(
            application, access_log=None, handle_signals=False, shutdown_timeout=_SHUTDOWN
        )
        await self._runner.setup()

    async def listen(self, held: socket.socket) -> asyncio.Server:
        """What answers at a listening socket, once it is told to start serving."""
        assert self._runner is not None
        assert self._runner.server is not None
        factory = self.guests.factory(self._runner.server)
        loop = asyncio.get_running_loop()
        # Started by the caller: were it cancelled in here, nobody could stop what is not returned.
        return await loop.create_server(factory, sock=held, start_serving=False)

    async def close(self) -> None:
        """End what is open. The sockets are their holders' to close."""
        if self._runner is not None:
            await self._runner.cleanup()


async def until_had(name: str, take: Callable[[], _T], retry: float, **fields: object) -> _T:
    """What ``take`` gives, tried every ``retry`` seconds until it raises no KernelError.

    ``name`` and ``fields`` are for the log.
    """
    while True:
        await asyncio.sleep(retry)
        try:
            had = take()
        except KernelError as refused:
            _log.detail(f"still no {name} server", why=refused, **fields)
        else:
            _log.info(f"{name} server is there now", **fields)
            return had


async def _be_discreet(request: web.Request, response: web.StreamResponse) -> None:
    """Versions of libraries are nobody's business on a port that the network reaches."""
    response.headers["Server"] = "kproxy"
