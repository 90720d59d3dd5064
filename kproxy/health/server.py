"""The health server and the metrics server of a daemon, in its event loop.

The ports are taken when the daemon starts; loading the web library is left for after the first
sync.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import socket
import time
from typing import TYPE_CHECKING

from kproxy import config, logs
from kproxy.config import Config
from kproxy.core.objects import Value
from kproxy.errors import KernelError
from kproxy.health import answers
from kproxy.health.monitor import Monitor, Watched
from kproxy.health.sites import RETRY, Site, until_had
from kproxy.health.sockets import listen

if TYPE_CHECKING:
    from aiohttp import web

    from kproxy.health.sites import Handler
    from kproxy.metrics import Metrics

_log = logs.get("servers")

#: Seconds that the first sync has before the servers are there in any case.
_HEAD_START = 5.0

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
        site = Site(port.routes)
        await site.open()
        try:
            held = self._sockets.pop(port.name, None) or await self._bound(port)
            async with await site.listen(held) as listening:
                await listening.start_serving()
                _log.detail("serving", what=port.name, address=port.address)
                await asyncio.Event().wait()
        finally:
            await site.close()

    async def _bound(self, port: _Port) -> socket.socket:
        """The port, as soon as it can be had."""
        return await until_had(
            port.name, lambda: listen(port.address), self._retry, address=port.address
        )

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
