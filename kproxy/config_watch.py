"""The configuration file of a running daemon: says when it has become another one.

Settings are read once. As with kube-proxy, a changed file ends the process, and a supervisor starts
it again with the new settings; rules stay in place meanwhile. A file that is broken, invalid or
gone would make that restart fail, so it is told and waited for instead.
"""

from __future__ import annotations

import asyncio

from kproxy import config_check, flags, logs
from kproxy.config import Config
from kproxy.errors import ConfigError
from kproxy.sources.files import Found
from kproxy.sources.watcher import Watcher, places

_log = logs.get("config")

#: Seconds between looks that no file event asks for.
_BACKSTOP = 10.0


async def changed(path: str) -> None:
    """Returns when the file at ``path`` holds valid settings other than it does now."""
    before = await asyncio.to_thread(_read, path)
    told = ""
    wake = asyncio.Event()
    watcher: Watcher | None = None
    try:
        while True:
            wake.clear()
            watcher = await _watching(path, watcher, wake)
            try:
                now = await asyncio.to_thread(_read, path)
            except ConfigError as wrong:
                if str(wrong) != told:
                    told = str(wrong)
                    _log.error("the configuration file is not usable now", why=told)
            else:
                told = ""
                if now != before:
                    return
            try:
                async with asyncio.timeout(_BACKSTOP):
                    await wake.wait()
            except TimeoutError:
                pass
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


def _read(path: str) -> Config:
    config, _ = flags.load(path)
    return config_check.check(config, where=path)
