"""TCP sockets for conversations: ended by a reset, and clear about whose an error is."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from kproxy.core.health.values import Target
from kproxy.health.checks.tcp import RESET_ON_CLOSE


class AtOnceError(OSError):
    """The call itself failed, before any packet could have come back."""

    at_once = True


#: Bytes taken at a time. The library would take 256 kB, which is work for all others to wait for.
_PIECE = 64 * 1024


class Stream(socket.socket):
    """Closing it sends a reset. ``connect`` tells this node's errors from the network's: an
    asynchronous one is read from the socket later, and has no call of its own."""

    def connect(self, address: Any) -> None:
        try:
            super().connect(address)
        except BlockingIOError:
            raise
        except OSError as error:
            raise AtOnceError(error.errno, error.strerror) from error

    def recv(self, size: int, flags: int = 0) -> bytes:
        return super().recv(min(size, _PIECE), flags)


def make(family: int) -> Stream:
    """A socket that does not block. OSError."""
    try:
        made = Stream(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise AtOnceError(error.errno, error.strerror) from error
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    return made


async def connected(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection. OSError; end it by aborting the writer's transport."""
    made = make(socket.AF_INET6 if ":" in target.ip else socket.AF_INET)
    try:
        await asyncio.get_running_loop().sock_connect(made, (target.ip, target.port))
        return await asyncio.open_connection(sock=made)
    except BaseException:
        made.close()
        raise
