"""Signatures of the compiled load generator; :mod:`kproxy.bench.load` has typed values around it.

Places are ``(address, port)``; several are taken in turn, as ``sources`` are (addresses of the
client that its sockets are bound to). Times that go in are seconds, those that come out are
nanoseconds of CLOCK_MONOTONIC. All of it runs without the GIL and returns when it is over.

What the three client functions take:

``connections``: at once. ``rate``: operations a second, started when they are due (open loop); 0:
each slot starts the next operation when its last one ended (closed loop). ``seconds`` after
``warmup``, of which nothing is counted; or so many ``operations`` (0: no limit), whichever ends
first. ``timeout``: of one operation, and how long the end waits for those that run.
``request_bytes`` and ``response_bytes`` are at least 24, which the header takes.

What they return: ``began`` and ``ended`` of what was counted; operations ``started`` and
``completed`` in time; ``bytes_in`` and ``bytes_out``; ``failures`` by kind; ``latency`` and
``connect`` (bucket -> count, :mod:`kproxy.bench.histogram`, ns; latency from the *intended* start,
so a server that stalls is charged with everything that it held up); ``series``, what was completed
in each second; ``cpu``, seconds of this thread, warm-up included; ``quiet``, the longest time
without a completion; ``lost``, TCP operations that failed, the first 65,536 of them: intended
start, when they were given up, kind, and whether their connection had been made.

OSError: the client could not get what it needs (descriptors, memory). ValueError: no such load.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias, TypedDict

Place: TypeAlias = tuple[str, int]

#: Names of failures; ``no_port`` and ``no_descriptor`` are the client's own.
FAILURES: tuple[str, ...]
CLOSERS: tuple[str, ...]
DIRECTIONS: tuple[str, ...]

class Counted(TypedDict):
    began: int
    ended: int
    started: int
    completed: int
    bytes_in: int
    bytes_out: int
    failures: dict[str, int]
    latency: dict[int, int]
    connect: dict[int, int]
    series: list[int]
    cpu: float
    quiet: int
    lost: list[tuple[int, int, str, bool]]

def exchange(
    targets: Sequence[Place],
    sources: Sequence[str] = (),
    *,
    closer: Literal["client", "reset", "server", "both"] = "client",
    per_connection: int = 1,
    connections: int,
    rate: float,
    seconds: float,
    operations: int,
    warmup: float,
    timeout: float,
    request_bytes: int,
    response_bytes: int,
) -> Counted:
    """TCP requests. ``per_connection`` 1: connect, ask, be answered, close, all in the latency; 0:
    on connections that are made first and kept; else so many on each. ``closer``: who ends a
    connection, and how (FIN by the client, RST by the client, FIN by the server, FIN by both as
    soon as each has done its part)."""

def stream(
    targets: Sequence[Place],
    sources: Sequence[str] = (),
    *,
    direction: Literal["down", "up", "both"] = "down",
    connections: int,
    rate: float,
    seconds: float,
    operations: int,
    warmup: float,
    timeout: float,
    request_bytes: int,
    response_bytes: int,
) -> Counted:
    """TCP bulk. ``bytes_in`` and ``series`` count what came down; what went up is what the server's
    series says."""

def datagram(
    targets: Sequence[Place],
    sources: Sequence[str] = (),
    *,
    window: int = 1,
    connections: int,
    rate: float,
    seconds: float,
    operations: int,
    warmup: float,
    timeout: float,
    request_bytes: int,
    response_bytes: int,
) -> Counted:
    """UDP by ``connections`` sockets. Each waits for up to ``window`` answers; one that does not
    come in time is ``lost``. ``response_bytes`` 0: no answers, as fast as the rate says (0: as fast
    as it goes); then the server's series says what arrived."""

def bucket(value: int) -> int:
    """Which bucket of a histogram a value (ns) is counted in."""

class Server:
    """Serves every load at ``tcp`` and ``udp`` places. OSError: one cannot be had.

    Clients of others may speak HTTP/1.1 there: ``GET /N`` is answered with N bytes in all (at least
    46, the head), and the connection kept unless they send ``Connection: close``."""

    def __init__(self, tcp: Sequence[Place] = (), udp: Sequence[Place] = ()) -> None: ...
    def run(self) -> None:
        """Serve until :meth:`stop`, in a thread of its own."""

    def stop(self) -> None: ...
    def deafen(self) -> None:
        """Listen no more for TCP; what is open is served on. Only while :meth:`run` runs."""

    def counters(self) -> dict[str, int]:
        """``accepted``, ``open``, ``requests``, ``bytes_in``, ``bytes_out``, ``datagrams_in``,
        ``datagrams_out``, ``wrong`` (what no client of ours sends), ``accept_failures``."""

    def series(self, since: int, until: int) -> list[tuple[int, int]]:
        """(bytes, datagrams) that arrived in each whole hundredth of a second (of the clock, not of
        ``since``) between two times, ns. Ten minutes are kept."""
