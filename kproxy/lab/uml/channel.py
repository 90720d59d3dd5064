"""What is said between a command on the host and a machine that stays up. Pure: no I/O here.

::

    kproxy lab …          broker                         agent
    (client)   ──unix socket──  (host)  ──serial line──  (inside, process 1)  ──pipes──  command

All three speak frames. A frame belongs to a request; a client has one, and the broker writes its
number into the header, so that many share the line. A stream is a file descriptor of the command;
:data:`TERMINAL` is the one that stands for those that are a terminal.

Nobody ever has more than :data:`WINDOW` bytes of a stream on the way: a sender has credit, and gets
back what the other end has really written. So a reader that has stopped (a pager, a full pipe)
stops its own command, and nobody else's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from kproxy.core.objects import Value

#: Payload bytes, request, kind, stream.
_HEADER = struct.Struct(">IIBB")
_NUMBER = struct.Struct(">I")
_SIZE = struct.Struct(">HH")

#: Bytes of one stream that may be on the way: what a pipe holds.
WINDOW = 65536

#: Bytes of data in one frame: small enough that others are not kept waiting.
CHUNK = 16384

#: Bytes on the line towards the machine that are not read yet. The terminal layer holds 4,095
#: and stops the driver 128 before that; UML's serial driver, once stopped, never listens again
#: (line_throttle takes the interrupt away, seen on 6.1).
LINE_WINDOW = 3072

#: The stream of a terminal, in both directions. No file descriptor has this number.
TERMINAL = 255


class Kind(IntEnum):
    """What a frame says; → for towards the command, ← for towards the client."""

    READY = 1  #: ← the machine is up; the payload is its kernel's version
    START = 2  #: → run this: a Request
    DATA = 3  #: → ← bytes of a stream
    END = 4  #: → ← nothing more comes on this stream; ← for an input: nobody reads it any more
    CREDIT = 5  #: → ← so many bytes of a stream were taken
    SIGNAL = 6  #: → a signal for the command and its children
    SIZE = 7  #: → the terminal's rows and columns
    GONE = 8  #: → the client is no more (said by the broker)
    STATUS = 9  #: ← how the command ended; the last frame of a request
    HALT = 10  #: → end the machine
    HEARD = 11  #: ← so many bytes of the line were read, whosever they were (for who writes to it)


class Frame(NamedTuple):
    kind: Kind
    request: int = 0
    stream: int = 0
    payload: bytes = b""

    def encode(self) -> bytes:
        return _HEADER.pack(len(self.payload), self.request, self.kind, self.stream) + self.payload

    @property
    def number(self) -> int:
        """The payload of CREDIT, SIGNAL and HEARD."""
        return int(_NUMBER.unpack(self.payload)[0])

    @property
    def size(self) -> tuple[int, int]:
        """The payload of SIZE: rows, columns."""
        rows, columns = _SIZE.unpack(self.payload)
        return rows, columns

    @property
    def status(self) -> int:
        """The payload of STATUS: as ``os.waitstatus_to_exitcode``, a signal is negative."""
        return int(struct.unpack(">i", self.payload)[0])


def credit(request: int, stream: int, count: int) -> Frame:
    return Frame(Kind.CREDIT, request, stream, _NUMBER.pack(count))


def heard(count: int) -> Frame:
    return Frame(Kind.HEARD, payload=_NUMBER.pack(count))


def signalled(number: int) -> Frame:
    return Frame(Kind.SIGNAL, payload=_NUMBER.pack(number))


def sized(rows: int, columns: int) -> Frame:
    return Frame(Kind.SIZE, stream=TERMINAL, payload=_SIZE.pack(rows, columns))


def ended(request: int, status: int) -> Frame:
    return Frame(Kind.STATUS, request, payload=struct.pack(">i", status))


class Request(Value, frozen=True):
    """A command to run as if it had been started where the client was.

    Names are bytes as the kernel has them. ``terminals`` are those of the descriptors 0, 1 and 2
    that are a terminal, ``rows`` and ``columns`` its size. ``inputs`` are the other descriptors
    that the client feeds; 1 and 2 are sent to it unless they are a terminal, and what is in none
    of these is /dev/null.
    """

    argv: tuple[bytes, ...]
    environment: tuple[tuple[bytes, bytes], ...]
    directory: bytes
    umask: int
    inputs: tuple[int, ...] = ()
    terminals: tuple[int, ...] = ()
    rows: int = 0
    columns: int = 0

    @property
    def outputs(self) -> tuple[int, ...]:
        return tuple(number for number in (1, 2) if number not in self.terminals)


class Decoder:
    """Frames out of a stream of bytes that arrives in pieces of any size."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole now. ValueError for a kind that there is not: the bytes are
        none of ours, and nothing after them can be trusted."""
        self._held += data
        while len(self._held) >= _HEADER.size:
            length, request, kind, stream = _HEADER.unpack_from(self._held)
            end = _HEADER.size + length
            if len(self._held) < end:
                Kind(kind)
                return
            payload = bytes(self._held[_HEADER.size : end])
            del self._held[:end]
            yield Frame(Kind(kind), request, stream, payload)
