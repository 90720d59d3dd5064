"""Tasks that run beside the main one, and their end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from kproxy import logs

_log = logs.get("daemon")


def beside(work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
    """Start work that the proxy can do without: if it breaks off, that is told, and no more."""

    def told(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (fault := task.exception()) is not None:
            _log.fault(f"{what} broke off", fault)

    task = asyncio.create_task(work)
    task.add_done_callback(told)
    return task


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end. Who wanted its outcome has asked before."""
    task.cancel()
    await asyncio.wait([task])
