"""The health server and the metrics server of a daemon, in its event loop.

The ports are taken when the daemon starts, which costs nothing, and requests wait in the kernel
until the web library has been loaded, which costs a fifth of a second: that is left for after the
first sync.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import socket
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from kproxy import config, logs
from kproxy.config import Config
from kproxy.core.objects import Value
from kproxy.errors import KernelError
from kproxy.health import answers
from kproxy.health.guests import Guests
from kproxy.health.monitor import Monitor, Watched
from kproxy.health.sockets import listen

if TYPE_CHECKING:
    from aiohttp import web

    from kproxy.metrics import Metrics

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logs.get("servers")

#: Seconds between two tries to take a port: kube-proxy's.
RETRY = 5.0

#: Seconds that the first sync has before the servers are there in any case.
_HEAD_START = 5.0

#: Seconds for open requests to end when the daemon does.
_SHUTDOWN = 0.2

_PLAIN = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}


class _Port(Value, frozen=True):
    """One server: its name in logs, its address, and its paths."""

    name: str
    address: str
    routes: dict[str, Handler]


class Servers:
    """Both servers. Make it, :meth:`bind`, then :meth:`run` for as long as they are wanted."""

    def __init__(
        self, settings: Config, monitor: Monitor, watched: Watched, *, retry: float = RETRY
    ) -> None:
        self._config = settings
        self._monitor = monitor
        self._watched = watched
        self._retry = retry
        self._metrics: Metrics | None = None
        self._ports = tuple(
            port
            for port in (
                _Port("health", settings.healthz_bind_address, {
                    "/healthz": self._healthz,
                    "/livez": self._livez,
                }),
                _Port("metrics", settings.metrics_bind_address, {
                    "/metrics": self._scraped,
                    "/metrics/slis": self._indicators,
                    "/healthz": self._ok,
                    "/proxyMode": self._mode,
                    "/configz": self._configz,
                }),
            )
            if port.address
        )  # fmt: skip
        self._sockets: dict[str, socket.socket] = {}

    def bind(self) -> None:
        """Take the ports. KernelError with bindAddressHardFail; else it is tried again later."""
        for port in self._ports:
            try:
                self._sockets[port.name] = listen(port.address)
            except KernelError as refused:
                if self._config.bind_address_hard_fail:
                    self.close()
                    raise
                _log.warning(f"no {port.name} server", why=refused, retry_seconds=self._retry)

    def close(self) -> None:
        """Give back the ports that no server has taken over."""
        for held in self._sockets.values():
            held.close()
        self._sockets.clear()

    async def run(self, synced: asyncio.Event) -> None:
        """Serve until cancelled. ``synced`` is set when the first sync has ended."""
        if not self._ports:
            return
        try:
            async with asyncio.timeout(_HEAD_START):
                await synced.wait()
        except TimeoutError:
            pass
        await asyncio.to_thread(preload)
        self._metrics = self._monitor.load(self._watched)
        try:
            async with asyncio.TaskGroup() as group:
                for port in self._ports:
                    group.create_task(self._serve(port))
        finally:
            self.close()

    async def _serve(self, port: _Port) -> None:
        from aiohttp import web

        guests = Guests()

        @web.middleware
        async def noted(request: web.Request, handler: Handler) -> web.StreamResponse:
            guests.asked(request.transport)
            return await handler(request)

        application = web.Application(middlewares=[noted])
        for path, handler in port.routes.items():
            application.router.add_route("*", path, handler)
        application.on_response_prepare.append(_be_discreet)
        runner = web.AppRunner(
            application, access_log=None, handle_signals=False, shutdown_timeout=_SHUTDOWN
        )
        await runner.setup()
        try:
            held = self._sockets.pop(port.name, None) or await self._bound(port)
            loop = asyncio.get_running_loop()
            assert runner.server is not None
            listening = await loop.create_server(guests.factory(runner.server), sock=held)
            _log.detail("serving", what=port.name, address=port.address)
            async with listening:
                await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    async def _bound(self, port: _Port) -> socket.socket:
        """The port, as soon as it can be had."""
        while True:
            await asyncio.sleep(self._retry)
            try:
                held = listen(port.address)
            except KernelError as refused:
                _log.detail(f"still no {port.name} server", why=refused)
            else:
                _log.info(f"{port.name} server is there now", address=port.address)
                return held

    # --- answers -----------------------------------------------------------------------------

    async def _healthz(self, request: web.Request) -> web.StreamResponse:
        return self._health("healthz", *answers.healthz(self._monitor.verdict(), time.time()))

    async def _livez(self, request: web.Request) -> web.StreamResponse:
        return self._health("livez", *answers.livez(self._monitor.verdict(), time.time()))

    def _health(self, path: str, status: int, body: str) -> web.StreamResponse:
        from aiohttp import web

        self._monitor.answered(path, status)
        # Bytes: of text the library would add a charset, which JSON has not.
        return web.Response(status=status, body=body.encode(), headers=answers.HEADERS)

    async def _scraped(self, request: web.Request) -> web.StreamResponse:
        assert self._metrics is not None
        # In a thread: of a large cluster it takes a moment to count the rules.
        return _exposition(*await asyncio.to_thread(self._metrics.text, _accepted(request)))

    async def _indicators(self, request: web.Request) -> web.StreamResponse:
        from kproxy.health import slis

        return _exposition(*slis.text(self._monitor.verdict(), _accepted(request)))

    async def _ok(self, request: web.Request) -> web.StreamResponse:
        return _plain("ok")

    async def _mode(self, request: web.Request) -> web.StreamResponse:
        return _plain(self._watched.mode)

    async def _configz(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        body = {"kubeproxy.config.k8s.io": config.to_mapping(self._config)}
        return web.Response(body=json.dumps(body).encode(), headers=answers.HEADERS)


def preload() -> None:
    """Load what the servers need, so that making them is quick. Good for before a fork, too."""
    importlib.import_module("aiohttp.web")
    importlib.import_module("kproxy.metrics")
    importlib.import_module("kproxy.health.slis")


def _accepted(request: web.Request) -> str:
    return ",".join(request.headers.getall("Accept", ()))


def _exposition(body: bytes, content_type: str) -> web.Response:
    from aiohttp import web

    return web.Response(body=body, headers={"Content-Type": content_type})


def _plain(text: str) -> web.Response:
    from aiohttp import web

    return web.Response(text=text, headers=_PLAIN)


async def _be_discreet(request: web.Request, response: web.StreamResponse) -> None:
    """Versions of libraries are nobody's business on a port that the network reaches."""
    response.headers["Server"] = "kproxy"
