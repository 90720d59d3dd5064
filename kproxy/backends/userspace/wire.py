"""Messages between two processes of one node, with descriptors: framing and nothing else.

A frame is a header, with which the descriptors travel, and a body of MessagePack. Everything is
bounded: the length of a body, the number of descriptors, the time for each step. Whoever sends what
is no frame is not spoken to any more.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeVar

import msgspec
from msgspec.msgpack import Decoder

from kproxy.errors import KernelError

#: Length of the body, number of descriptors.
_HEADER = struct.Struct("!IH")

#: A descriptor, as the kernel hands it over.
_FD = struct.Struct("i")

#: Bytes of a body. The largest are the clients of one service: 65,536 of them take 5 MB.
_LONGEST = 64 << 20

#: Descriptors in one frame; the kernel takes 253 (SCM_MAX_FD).
MOST_FDS = 250

#: Seconds for the other side to take, or to say, the next thing.
PATIENCE = 10.0

_Message = TypeVar("_Message")


class HungUp(KernelError):
    """The other process has closed its end, or is no more."""


class Line:
    """One end of a conversation over a connected unix socket, which is closed with it."""

    def __init__(self, connected: socket.socket, *, patience: float = PATIENCE) -> None:
        self._socket = connected
        connected.settimeout(patience)

    def patience(self, seconds: float | None) -> None:
        """From now on each step may take that long; None: as long as it takes."""
        self._socket.settimeout(seconds)

    @property
    def peer(self) -> tuple[int, int]:
        """Process id and user id of the other side, as the kernel saw it connect."""
        found = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = struct.unpack("iII", found)
        return pid, uid

    def say(self, message: object, fds: Sequence[int] = ()) -> None:
        """Send one message; the descriptors stay ours. KernelError when nobody takes it."""
        body = msgspec.msgpack.encode(message)
        try:
            # The header by itself: descriptors come with the first byte of what one call sent.
            socket.send_fds(self._socket, [_HEADER.pack(len(body), len(fds))], fds)
            self._socket.sendall(body)
        except OSError as failed:
            raise _broken(failed) from failed

    def heard(self, kinds: Decoder[_Message]) -> _Message:
        """As :meth:`hear`, of messages that come without descriptors."""
        message, fds = self.hear(kinds)
        for fd in fds:
            os.close(fd)
        return message

    def hear(self, kinds: Decoder[_Message]) -> tuple[_Message, tuple[int, ...]]:
        """The next message, and descriptors that are ours now. KernelError when there is none in
        time, or one of another kind."""
        fds: list[int] = []
        try:
            length, count = self._header(fds)
            if length > _LONGEST or len(fds) != count:
                raise KernelError(f"no frame: {length} bytes, {len(fds)} of {count} descriptors")
            return kinds.decode(self._exactly(length)), tuple(fds)
        except BaseException as failed:
            for fd in fds:
                os.close(fd)
            if isinstance(failed, OSError):
                raise _broken(failed) from failed
            if isinstance(failed, msgspec.MsgspecError):
                raise KernelError(f"not what was expected: {failed}") from failed
            raise

    def _header(self, fds: list[int]) -> tuple[int, int]:
        # Not socket.recv_fds(): it passes no flags on, and tools that we start would get them all.
        data, said, flags, _ = self._socket.recvmsg(
            _HEADER.size, socket.CMSG_SPACE(MOST_FDS * _FD.size), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, content in said:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = len(content) - len(content) % _FD.size
                fds += [fd for (fd,) in _FD.iter_unpack(content[:whole])]
        if flags & socket.MSG_CTRUNC:
            raise KernelError("not all descriptors could be taken: too many open files")
        rest = _HEADER.size - len(data)
        length, count = _HEADER.unpack(data + self._exactly(rest) if data else self._exactly(rest))
        return length, count

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self._socket.recv(min(count - len(data), 1 << 20))
            if not part:
                raise HungUp(_HUNG_UP)
            data += part
        return bytes(data)

    def hang_up(self) -> None:
        """End the conversation, also for a thread of ours that waits for a word."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


_HUNG_UP = "the other process has hung up"


def _broken(failed: OSError) -> KernelError:
    if isinstance(failed, ConnectionError):
        return HungUp(_HUNG_UP)
    why = "no word in time" if isinstance(failed, TimeoutError) else failed.strerror
    return KernelError(f"the other process: {why}")
