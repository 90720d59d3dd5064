"""The configuration file of a running daemon: says when it has become another one.

Settings are read once. As with kube-proxy, a changed file ends the process, and a supervisor starts
it again with the new settings; rules stay in place meanwhile. A file that is broken, invalid or
gone would make that restart fail, so it is told and waited for instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from kproxy import config_check, logs
from kproxy.config import Config
from kproxy.core.objects import Value
from kproxy.errors import ConfigError
from kproxy.sources.files import Found
from kproxy.sources.watcher import Watcher, places

_log = logs.get("config")

#: Seconds between looks that no file event asks for.
_BACKSTOP = 10.0
_BACKSTOP_WITHOUT_EVENTS = 1.0


class ConfigFile(Value, frozen=True):
    """Where settings came from. ``read`` gives what they would be now; ConfigError if none."""

    path: str
    read: Callable[[], Config]


async def changed(file: ConfigFile, config: Config) -> None:
    """Returns when ``file`` holds valid settings other than ``config``, those in use."""
    told = ""
    wake = asyncio.Event()
    watcher: Watcher | None = None
    try:
        while True:
            wake.clear()
            watcher = await _watching(file.path, watcher, wake)
            try:
                now = config_check.check(await asyncio.to_thread(file.read), where=file.path)
            except ConfigError as wrong:
                if str(wrong) != told:
                    told = str(wrong)
                    _log.error("the configuration file is not usable now", why=told)
            else:
                told = ""
                if now != config:
                    return
            if watcher.failed:
                await asyncio.sleep(_BACKSTOP_WITHOUT_EVENTS)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(_BACKSTOP):
                    await wake.wait()
    finally:
        if watcher is not None:
            await watcher.stop()


async def _watching(path: str, watcher: Watcher | None, wake: asyncio.Event) -> Watcher:
    """A watcher for every link and folder on the way to the file, as the way is now."""
    now = places([Found(path, (path,))])
    if watcher is not None:
        if watcher.watched == now and not watcher.failed:
            return watcher
        await watcher.stop()
    return await Watcher.start(now, wake)
